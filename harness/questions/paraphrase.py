"""Whether two questions that look alike ask the same thing.

Templates make questions that differ in a number or a name only ("What does Article 14 deal with?", "... Article 15 ...") and ask different
things; paraphrases differ in many words and ask the same. What a question names, and what its answer says, tells them apart.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from dataclasses import dataclass

from harness.questions.dataset import Row

ANSWERS_AGREE = 0.5
"""Share of the shorter answer's words that the other must have for the two to agree."""

STEM = 5
"""Characters of a word that count: "appoint", "appoints" and "appointing" are one."""
FUNCTION_WORDS = """
    a according an and any are as at be been being by can could did do does for from give had has have how i if in into is it its may might
    must name not of on or shall should such tell than that the their then there these this those to under was we were what when where
    which who whom whose why will with would you
"""
STOP_WORDS = frozenset(FUNCTION_WORDS.split())
# What a template is filled with: numbers (21, 21A, 21-A, 3rd), letters and numerals in brackets, and capitalised words.
ROMAN = re.compile(r"[IVXLC]+")
KEY = re.compile(r"(?P<number>\d+(?:[-–]?[A-Za-z]{1,3}\b)?)|\((?P<bracket>[A-Za-z]{1,4})\)|\b(?P<name>[^\W\d_]\w*)")


class _Spaces(dict[int, str]):
    """str.translate table that turns whatever is no letter, mark or digit of any script into a space, filled as characters are met."""

    def __missing__(self, code: int) -> str:
        self[code] = chr(code) if unicodedata.category(chr(code))[0] in "LMN" else " "
        return self[code]


_SPACES = _Spaces()


def normalise(text: str) -> str:
    """Case, punctuation, white space and Unicode's compatibility forms removed; a text of punctuation only stays as it is."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_SPACES).split()) or " ".join(folded.split())


def is_long(text: str, words: int) -> bool:
    """Whether a text has at least so many words, punctuation standing alone counted as in `str.split`."""
    return max(len(text.split()), len(normalise(text).split())) >= words


@dataclass(frozen=True, slots=True)
class Meaning:
    """What `ask_the_same` looks at in a row: sets of case-folded words, stems and keys."""

    keys: frozenset[str]
    """Of the question: numbers, letters after numbers or in brackets, capitalised names."""
    words: frozenset[str]
    """Of the question, its keys among them."""
    content: frozenset[str]
    """Of the question: words other than function words, cut to `STEM` characters."""
    answer: str
    """Normalised."""
    answer_words: frozenset[str]
    answer_numbers: frozenset[str]
    """Numbers, Roman numerals, letters in brackets."""
    label: str | None
    """The row's `group`."""

    @classmethod
    def of(cls, row: Row) -> Meaning:
        """Reads a row."""
        question, answer = _words(row.question), _words(row.answer)
        keys = _keys(row.question)
        return cls(
            keys=keys,
            words=question | keys | {_singular(word) for word in question},
            content=frozenset(word[:STEM] for word in question - STOP_WORDS),
            answer=normalise(row.answer),
            answer_words=answer - STOP_WORDS,
            answer_numbers=_numbers(row.answer),
            label=row.group,
        )


def ask_the_same(a: Meaning, b: Meaning) -> bool:
    """Whether two questions that look alike ask the same thing; question and answer decide together.

    Different things are asked

    - if each question has keys that the other has not ("Article 14", "Article 15"; "Bihar", "Goa");
    - if each answer has numbers that the other has not: "Article 17" and "Article 18" answer two questions, however alike these are;
    - if only one question has such keys, unless the answers agree;
    - if each question has other words of its own, unless these are the fewer ("who appoints", "who may choose"; but not "the Part that
      contains the abolition of titles", "... the annual budget") and the answers agree and the file does not give the two different groups.
    """
    own_a, own_b = a.keys - b.words, b.keys - a.words
    if (own_a and own_b) or (a.answer_numbers - b.answer_numbers and b.answer_numbers - a.answer_numbers):
        return False
    if a.content <= b.content or b.content <= a.content:
        return answers_agree(a, b) if own_a or own_b else True
    labelled_apart = a.label is not None and b.label is not None and a.label != b.label
    mostly_shared = len(a.content & b.content) > len(a.content ^ b.content)
    return mostly_shared and not labelled_apart and answers_agree(a, b)


def answers_agree(a: Meaning, b: Meaning) -> bool:
    """Whether one answer says what the other does: equal, or at least half the words of the shorter in the longer."""
    shorter = min(len(a.answer_words), len(b.answer_words))
    return a.answer == b.answer or (shorter > 0 and len(a.answer_words & b.answer_words) / shorter >= ANSWERS_AGREE)


def _singular(word: str) -> str:
    return word.removesuffix("s") if len(word) > 3 else word


def _words(text: str) -> frozenset[str]:
    return frozenset(map(sys.intern, normalise(text).split()))


def _numbers(text: str) -> frozenset[str]:
    numerals = {word for word in text.replace(".", " ").split() if ROMAN.fullmatch(word)}
    return frozenset(key for key in _keys(text) if not key[0].isalpha()) | numerals


def _keys(text: str) -> frozenset[str]:
    keys = set()
    for match in KEY.finditer(unicodedata.normalize("NFKC", text)):
        if number := match["number"]:
            keys.add(number.replace("-", "").replace("–", "").casefold())
        elif bracket := match["bracket"]:
            keys.add(f"({bracket.casefold()})")
        elif (name := match["name"])[0].isupper() and (name.casefold() not in STOP_WORDS or ROMAN.fullmatch(name)):
            keys.add(_singular(name.casefold()))
    return frozenset(keys)
