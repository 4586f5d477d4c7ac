"""Which provisions an answer names, and whether they are the right ones.

A wrong article number is the error that matters in a legal answer, and the other metrics hardly notice it: "Article 32" for "Article 226"
costs one token of twenty. Read are articles, clauses and sub-clauses, Parts, Schedules and amendments of the Constitution, and sections of other laws,
in English and in Hindi:

    "clause (1) of article 19", "Article 19(1)"        article 19, clause 19(1)
    "sub-clause (a) of clause (1) of Article 19"       article 19, clause 19(1)(a)
    "Articles 14, 15 and 21-A", "Article 14 to 16"     each article
    "Part IV-A", "Seventh Schedule", "अनुच्छेद २१क"       part 4A, schedule 7, article 21A
    "section 302 of the Indian Penal Code", "S. 302 IPC"  section 302 of one law (`harness.metrics.laws`)
    "Forty-second Amendment", "42nd Amendment Act"     amendment 42
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from harness.metrics.base import Metric
from harness.metrics.laws import law_after
from harness.metrics.normalize import HYPHENS, INVISIBLE, tokens
from harness.metrics.number_words import ordinal_figures, spelled_figures

ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth",
    "1st 2nd 3rd 4th 5th 6th 7th 8th 9th 10th 11th 12th",
    "पहली दूसरी तीसरी चौथी पांचवीं छठी सातवीं आठवीं नौवीं दसवीं ग्यारहवीं बारहवीं",
    "प्रथम द्वितीय तृतीय चतुर्थ पंचम षष्ठ सप्तम अष्टम नवम दशम एकादश द्वादश",
)
ORDINAL = {word: number for words in ORDINALS for number, word in enumerate(words.split(), 1)} | {
    "पाँचवीं": 5,
    "छठीं": 6,
    "नवीं": 9,
    **{f"{number}वीं": number for number in range(1, 13)},
    "1ली": 1,
    "2री": 2,
    "3री": 3,
    "4थी": 4,
    "6ठी": 6,
}
LONGEST_RANGE = 100
"""A range of more provisions than this counts as its two ends."""
LONGEST_LIST = 60
"""Provisions after one head word, at most: a model that repeats itself must not cost quadratic time."""

# The letters that number inserted provisions in the Hindi text: अनुच्छेद 21क is Article 21A, 243यक is 243ZA.
HINDI_LETTERS = str.maketrans(dict(zip("कखगघङचछजझञटठडढणतथदधनपफबभमय", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", strict=True)))
LETTER = r"[^\W\d_]"
# "21", "21A", "21-A" and, in capitals only, "21 A"; not "21st".
NUMBER = rf"\d{{1,3}}(?!\d)(?:(?!(?:st|nd|rd|th)\b)-?{LETTER}{{1,2}}(?![^\W_])|(?-i:[ ][A-HJ-Z]\b(?![ ][a-z]{{4}})))?"
LABEL = rf"\(\s*(?:\d{{1,3}}{LETTER}{{0,2}}|[ivxlc]+|{LETTER}{{1,2}})\s*\)"
PATH = rf"(?:\s?{LABEL})"
# "IV", "4", "IVA", "IV-A" and, in capitals only, "IV A"; not the "in" of "parts in".
ROMAN = r"(?:[ivx]+|\d{1,2})(?:-?[a-d](?![^\W_])|(?-i:[ ][A-D]\b))?(?![^\W_])"
ORDER = "(?:" + "|".join(sorted(ORDINAL, key=len, reverse=True)) + ")"
AND = r"(?:\s*,\s*(?:and\s+|or\s+|और\s+|तथा\s+)?|\s*[&/]\s*|\s+(?:and|or|to|और|या|तथा|एवं|व|से)\s+|\s*-\s*)"
# After a singular head ("Article 14 and 15") a further number is a provision where a verb, a preposition, a sign or the end follows, and a count of
# something where a noun does ("Article 14 and 2 members"); "21" of "2024" is neither.
GOES_ON = r"""(?=\s*(?:$|[.,;:)\]!?"'/&|-]|(?:and|or|to|of|in|under|are|is|was|were|shall|may|must|can|both|read|deals?|provides?|guarantees?|which|that|as|on|
for|with|by|respectively|together|protects?|relates?|prohibits?|secures?|gives?|confers?|lays?|says?|apply|applies|the|और|या|तथा|एवं|व|के|में|का|की|से|को)(?![^\W_])))"""
GOES_ON = GOES_ON.replace("\n", "")

ITEM = {
    "articles": NUMBER + PATH + "*",
    "article": NUMBER + PATH + "*",
    "sections": NUMBER + PATH + "*",
    "section": NUMBER + PATH + "*",
    "amendment": r"\d{1,3}",
    "subclause": LABEL,
    "clause": f"(?:{LABEL}{PATH}*|{NUMBER})",
    "part": ROMAN,
    "schedule": ROMAN,
    "ordinal": ORDER,
    "hindi_schedule": ROMAN,
}
"""What is counted off after each head word."""
ITEMS = {kind: re.compile(item, re.IGNORECASE) for kind, item in ITEM.items()}


def _list_of(kind: str, further: str = "") -> str:
    return rf"(?P<{kind}>{ITEM[kind]}(?:{AND}{ITEM[kind]}{further}){{0,{LONGEST_LIST}}})"


# Python's \b falls between a Devanagari consonant and its vowel sign, so Hindi words are bounded by the space after them.
MENTION = re.compile(
    "|".join(
        [
            rf"(?:\b(?:articles|arts\.?)|अनुच्छेदों)\s+{_list_of('articles')}",
            rf"(?:\b(?:article|art\.?)|अनुच्छेद)\s+{_list_of('article', GOES_ON)}",
            rf"(?:\b(?:sections|secs\.?)|(?<![\w'’])ss\.|§§|धाराओं)\s*{_list_of('sections')}",
            rf"(?:\b(?:section|sec\.?)|(?<![\w'’])s\.|§|धारा)\s*{_list_of('section', GOES_ON)}",
            r"\b(?P<amendment>\d{1,3})(?:st|nd|rd|th)\s+(?:constitution(?:al)?\s+)?amendments?\b",
            rf"(?:\bsub-?\s?clauses?|उप-?\s?(?:खंड|खण्ड))\s+{_list_of('subclause')}",
            rf"(?:\b(?:clauses?|cls?\.)|खंड|खण्ड)\s+{_list_of('clause')}",
            rf"(?:\bparts?|भाग)\s+{_list_of('part')}",
            rf"\bschedules?\s+{_list_of('schedule')}",
            rf"\b{_list_of('ordinal')}\s+(?:schedules?\b|अनुसूची|अनुसूचियों)",
            rf"अनुसूची\s+{_list_of('hindi_schedule')}",
        ]
    ),
    re.IGNORECASE,
)
BARE = re.compile(
    rf"(?:{NUMBER}{PATH}*|{ROMAN})(?:{AND}(?:{NUMBER}{PATH}*|{ROMAN})){{0,{LONGEST_LIST}}}(?:st|nd|rd|th)?",
    re.IGNORECASE,
)
HEADS = ("articles?", "arts?", "sections?", "clauses?", "parts?")
KINDS = {"articles": "article", "ordinal": "schedule", "hindi_schedule": "schedule", "sections": "section"}
"""Names in `MENTION` -> kinds, where they differ."""
OF = re.compile(r"\s+(?:of|in|under|to)\s+(?:the\s+|said\s+)*", re.IGNORECASE)
AFTER = re.compile(r"\s*,?\s*(?:के\s+)?")


class Citation(NamedTuple):
    """One provision: `kind` is article, clause, part, schedule, section or amendment; `label` is canonical ("21A", "19(1)(a)", "4A", "7")."""

    kind: str
    label: str
    law: str = ""
    """Of a section, the law that the text names after it, else empty."""


@dataclass
class _Mention:
    kind: str
    labels: list[str]
    start: int
    end: int
    law: str = ""


def citations(text: str) -> set[Citation]:
    """The provisions that a text names.

    A clause is bound to its article ("19(1)") where the text says which; else its label begins with the bracket ("(1)").
    """
    text = unicodedata.normalize("NFC", text).translate(INVISIBLE).translate(HYPHENS)
    text = ordinal_figures(spelled_figures(text, HEADS), "amendment")
    mentions = list(_mentions(text))
    _bind(text, mentions)
    found: set[Citation] = set()
    for mention in mentions:
        for label in mention.labels:
            if mention.kind in ("part", "schedule", "section", "amendment"):
                found.add(Citation(mention.kind, label, mention.law))
                continue
            article, *brackets = re.split(r"(?=\()", label)
            if article:
                found.add(Citation("article", article))
            # Article 19(1)(a) names clause (1) as well as its sub-clause (a).
            found.update(Citation("clause", article + "".join(brackets[:n])) for n in range(1, len(brackets) + 1))
    return found


def _mentions(text: str) -> Iterator[_Mention]:
    for match in MENTION.finditer(text):
        kind = match.lastgroup or ""
        labels: list[str] = []
        end = 0
        for item in ITEMS[kind].finditer(match[kind]):
            label = _canonical(kind, item[0])
            if labels and match[kind][end : item.start()].strip().lower() in ("to", "-", "से"):
                labels += _between(labels[-1], label)
            labels.append(label)
            end = item.end()
        law = law_after(text, match.end()) if kind in ("section", "sections") else ""
        yield _Mention(KINDS.get(kind, kind), labels, match.start(), match.end(), law)


def _canonical(kind: str, item: str) -> str:
    """One label: digits of any script as 0-9, upper-case suffix of a number, lower-case in brackets, Roman numerals as figures."""
    item = "".join(str(unicodedata.digit(c)) if c.isdigit() else c for c in re.sub(r"[\s-]", "", item))
    item = (item if kind == "ordinal" else item.translate(HINDI_LETTERS)).lower()
    if kind == "ordinal":
        # A match that ignores case accepts "ſ" for "s": such a word is its own label.
        return str(ORDINAL.get(item, item))
    if kind in ("part", "schedule", "hindi_schedule"):
        roman = re.match(r"[ivx]*", item)[0]  # pyright: ignore[reportOptionalSubscript]
        return (str(_roman(roman)) if roman else "") + item[len(roman) :].upper()
    number, bracket, rest = item.partition("(")
    if kind == "clause" and not bracket:
        return f"({number})"
    return number.upper() + bracket + rest


def _roman(numeral: str) -> int:
    values = [{"i": 1, "v": 5, "x": 10}[c] for c in numeral]
    return sum(-v if v < max(values[i:]) else v for i, v in enumerate(values))


def _between(first: str, last: str) -> list[str]:
    """What a range holds between its ends: numbers, or single letters in brackets."""
    bare = [first.strip("()"), last.strip("()")]
    if all(b.isdigit() for b in bare):
        inner = [str(n) for n in range(int(bare[0]) + 1, int(bare[1]))]
    elif first.startswith("(") and all(len(b) == 1 and b.isascii() and b.isalpha() for b in bare):
        inner = [chr(n) for n in range(ord(bare[0]) + 1, ord(bare[1]))]
    else:
        return []
    return [f"({label})" if first.startswith("(") else label for label in inner] if len(inner) <= LONGEST_RANGE else []


def _bind(text: str, mentions: list[_Mention]) -> None:
    """Puts the article in front of a clause, and the clause in front of a sub-clause, where the words between say so."""
    above = {"clause": ("article",), "subclause": ("clause", "article")}
    for i in reversed(range(len(mentions))):
        mention = mentions[i]
        following = mentions[i + 1] if i + 1 < len(mentions) else None
        if (
            following
            and following.kind in above.get(mention.kind, ())
            and OF.fullmatch(text[mention.end : following.start])
        ):
            mention.labels = [following.labels[0] + label for label in mention.labels]
    for before, mention in pairwise(mentions):
        unbound = all(label.startswith("(") for label in mention.labels)
        if unbound and before.kind in above.get(mention.kind, ()) and AFTER.fullmatch(text[before.end : mention.start]):
            mention.labels = [before.labels[-1] + label for label in mention.labels]


class CitationF1(Metric):
    """F1 of the provisions that the answer names against those of the reference.

    A clause whose article is not said ("clause (1)") agrees with a clause that ends so ("19(1)"). Unscored (None) is every question whose
    reference names no provision, whatever the answer names: an added citation cannot be judged without one to compare it with, and which questions
    are scored must not depend on the answers, or two variants would be compared on different questions.
    """

    name = "citation_f1"
    version = 2
    description = "F1 of the articles, clauses, Parts, Schedules and sections named, over the questions whose reference names any."
    normaliser = "citations-2"

    def score_one(self, prediction: str, references: Sequence[str]) -> float | None:
        """Best score over the references that name a provision; 1 if the answer is any of the references, whether that one names any or not."""
        score = super().score_one(prediction, references)
        if score is None or score == 1:
            return score
        said = tokens(prediction, "legal")
        return 1.0 if said and any(said == tokens(reference, "legal") for reference in references) else score

    def score_pair(self, prediction: str, reference: str) -> float | None:
        """F1 in 0..1; None if the reference names no provision."""
        expected = citations(reference)
        if not expected:
            return None
        named = citations(prediction) or _bare(prediction, expected)
        return 2 * _agreeing(named, expected) / (len(named) + len(expected))


def _bare(prediction: str, expected: set[Citation]) -> set[Citation]:
    """The provisions of an answer of numbers alone ("21", "14 and 15A"), where all expected ones are of one kind."""
    kinds = {citation.kind for citation in expected} - {"clause"}
    numbers = prediction.strip().strip(" .")
    if len(kinds) != 1 or not BARE.fullmatch(numbers):
        return set()
    head = next(iter(kinds))
    if head == "amendment":
        return citations(re.sub(r"(?:st|nd|rd|th)?$", "th amendment", numbers, count=1))
    return citations(f"{head}s {numbers}")


def _agreeing(left: set[Citation], right: set[Citation]) -> int:
    """How many citations agree one to one: first the equal ones, then unbound clauses with clauses of any article, and sections without a law with any."""
    equal = left & right
    left, right = left - equal, right - equal
    agreed = len(equal)
    for loose, others in ((left, right), (right, left)):
        for clause in sorted(c for c in loose if c.label.startswith("(")):
            match = min((o for o in others if o.kind == "clause" and o.label.endswith(clause.label)), default=None)
            if match:
                others.discard(match)
                agreed += 1
        for section in sorted(c for c in loose if c.kind == "section" and not c.law):
            match = min((o for o in others if o.kind == "section" and o.label == section.label), default=None)
            if match:
                others.discard(match)
                agreed += 1
    return agreed
