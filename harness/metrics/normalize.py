"""One normalisation of text, for the split (equal questions) and for the metrics (equal answers).

`fold` undoes differences of encoding: Unicode's compatibility forms, case, digits of every script, kinds of dash and quotation mark, invisible
characters. `tokens` cuts the folded text and drops what carries no meaning. Three styles, chosen by `score.normalizer`:

- `plain`: any subject. Punctuation between words, articles and hyphens inside words are dropped; the sign of a number and symbols are kept.
- `legal`: as `plain`, but bracketed labels ("(1)", "(a)") are kept, and number words are figures ("thirty-five" is 35).
- `code`: case and every sign are kept; only white space, code fences and Unicode's composed forms are folded.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache
from typing import Literal

from harness.metrics.number_words import figures

Style = Literal["plain", "legal", "code"]
VERSIONS: dict[Style, str] = {"plain": "plain-1", "legal": "legal-2", "code": "code-1"}
"""Name and version of each style, for signatures: raised whenever a token may change."""

# Invisible: soft hyphen, zero-width space and joiners, directional marks, word joiner, byte order mark; and the Arabic tatweel, which only stretches a word.
INVISIBLE = dict.fromkeys([0xAD, 0x200B, 0x200C, 0x200D, 0x200E, 0x200F, 0x2060, 0xFEFF, 0x061C, 0x0640])
HYPHENS = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d", "-"))
APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bc\u0060\u00b4", "'"))
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Scripts written without spaces, as the inside of a regular expression class: Thai, Lao, Myanmar, Khmer, kana, Han."""

ARTICLES = frozenset(["a", "an", "the"])
# Before the letter "a" these name a label ("clause a", "vitamin a"), not an article of speech.
LABELS = """annex annexure appendix article articles category class clause clauses entry form grade group hepatitis influenza item list option
para paragraph part plan schedule section sub-clause sub-clauses subclause sub-paragraph team type vitamin"""
LABELLED = frozenset(LABELS.split())

OTHER_DIGIT = re.compile(r"(?![0-9])\d")
SUPERSCRIPT = re.compile(r"[\u00b2\u00b3\u00b9\u2070-\u207f]+")
FRACTION = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])")
ARABIC_VOWELS = re.compile(r"[\u064b-\u0652\u0670]")
THIN_SPACE_IN_NUMBER = re.compile(r"(?<=\d)[\u2009\u202f](?=\d{3}(?!\d))")
DIGIT_GROUPS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d|,\d)")
WHOLE = re.compile(r"(?<![\d.])(\d+)\.0+(?![\d.]*\d)")
LEADING_POINT = re.compile(r"(?<![\w.)])\.(?=\d)")
LETTERED_NUMBER = re.compile(r"(?<=\d)-(?=[^\W\d_]{1,2}(?![^\W_]))")
SPACED_LETTER = re.compile(
    r"(?<![^\W\d_])((?:[Aa]rticle|[Cc]lause|[Ff]orm|[Pp]aragraph|[Rr]ule|[Ss]chedule|[Ss]ection)s? \d{1,4}) (?=[A-Z](?![\w'.]))"
)
INITIALS = re.compile(r"(?<![\w.])(?:[^\W\d_]\.){2,}[^\W\d_]?(?!\w)")
EMPHASIS = re.compile(r"(?<!\w)(\*{1,3}|__?|~~|`{1,3})(?=[^\s*_`~])(.{1,300}?)(?<=[^\s*_`~])\1(?!\w)")
BULLET = re.compile(r"^[ \t]*(?:[*\u2022-][ \t]+|#{1,6}[ \t]+)", re.MULTILINE)
PER_CENT = re.compile(r"\bper ?cent\b")
AMPERSAND = re.compile(r"(?<=\s)&(?=\s)")
RUPEES = re.compile(r"\b(?:rs\.?|inr)\s*(?=\d)")
FENCE = re.compile(r"^[ \t]*(?:```|~~~)[^\n]*$", re.MULTILINE)
CODE = re.compile(r"\w+|[^\w\s]")


@cache
def combining_marks() -> str:
    """A regular expression class of all combining marks, which `\\w` leaves out."""
    points = [p for p in range(0x300, 0x1F000) if unicodedata.category(chr(p))[0] == "M"]
    ranges: list[list[int]] = []
    for point in points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return "".join(f"{chr(a)}-{chr(b)}" for a, b in ranges)


def fold(text: str) -> str:
    """Compatibility forms, case, digits of every script, dashes, quotation marks and invisible characters folded; nothing else is dropped.

    "x²" becomes "x^2" and "1½" "1 1/2", which NFKC alone would turn into "x2" and "11/2". The Turkish dotted and dotless i are both "i",
    and ß is "ss".
    """
    if text.isascii():
        return text.lower().replace("`", "'") if "`" in text else text.lower()
    text = THIN_SPACE_IN_NUMBER.sub("", text)
    text = SUPERSCRIPT.sub(lambda found: "^" + found[0], FRACTION.sub(" ", text))
    text = unicodedata.normalize("NFKC", text.translate(APOSTROPHES)).translate(HYPHENS).translate(INVISIBLE)
    text = ARABIC_VOWELS.sub("", text.replace("\u2044", "/"))
    text = unicodedata.normalize("NFKC", text.casefold()).replace("i\u0307", "i").replace("\u0131", "i")
    return text if text.isascii() else OTHER_DIGIT.sub(lambda found: str(unicodedata.decimal(found[0])), text)


def _numbers(text: str) -> str:
    """Ways to write one number: digit groups, a decimal part of zeros, "21-A"; and "U.S.A.", here because the dots are still there."""
    if "," in text:
        text = DIGIT_GROUPS.sub(lambda found: found[0].replace(",", ""), text)
    if "." in text:
        text = WHOLE.sub(r"\1", LEADING_POINT.sub("0.", text))
        text = INITIALS.sub(lambda found: found[0].replace(".", ""), text)
    return LETTERED_NUMBER.sub("", text) if "-" in text else text


@cache
def _pattern(ascii_only: bool, labels: bool, runs: bool) -> re.Pattern[str]:
    """The tokens of folded text.

    Args:
        ascii_only: the text is ASCII, for which a far smaller and faster pattern does.
        labels: keep "(1)", "(a)" and "(iii)" as tokens.
        runs: a run of a script without spaces is one token, not a token per character.
    """
    if ascii_only:
        letter, unspaced, other = "[a-z0-9]", "", ""
    else:
        marks = combining_marks()
        letter = rf"(?:(?![{UNSPACED}])[^\W_]|[{marks}])"
        unspaced = rf"|[{UNSPACED}{marks}]+" if runs else rf"|[{UNSPACED}][{marks}]*"
        other = r"|(?![\w\s\x00-\x7f])[^\w\s]"
    label = rf"\(\s*(?:\d{{1,4}}[a-z]{{0,3}}|[ivxlc]{{1,7}}|{letter}{{1,3}})\s*\)|" if labels else ""
    # A minus is a sign where nothing that could be subtracted from, or ranged from, comes before it.
    number = r"(?:(?<![\w)\]])-)?\d+(?:[.:/]\d+)+|(?<![\w)\]])-(?=\d)"
    symbols = r"[!<>=]=|->|=>|&&|\|\||[%$+<=>*/\\|&^~@]"
    return re.compile(
        rf"{label}{number}{letter}*|{letter}+(?:\+\+|\#)(?!\w){unspaced}|{letter}+(?:'{letter}+)*|{symbols}{other}"
    )


@lru_cache(maxsize=1024)  # Several metrics ask for the same two texts one after the other.
def tokens(text: str, style: Style = "plain") -> tuple[str, ...]:
    """The tokens of an answer that count, in order; a text of punctuation only is its own and only token."""
    if style == "code":
        return tuple(CODE.findall(FENCE.sub("", unicodedata.normalize("NFC", text))))
    text = text.strip()
    if "\n" in text or text[:1] in "*-#\u2022":
        text = BULLET.sub("", text)
    folded = _prepared(text, style)
    ascii_only = folded.isascii()
    found = _pattern(ascii_only, style == "legal", False).findall(folded)
    if not ascii_only:
        found = [token for token in found if not _is_punctuation(token)]
    found = _join_signs(found)
    found = [token for i, token in enumerate(found) if token not in ARTICLES or not _is_article(found, i)]
    if style == "legal":
        found = figures(["".join(token.split()) if token[0] == "(" else token for token in found])
    return tuple(found) or tuple([folded.strip()] if folded.strip() else [])


def _prepared(text: str, style: Style) -> str:
    for _ in range(2):  # "**_x_**"
        if "*" in text or "_" in text or "`" in text or "~" in text:
            text = EMPHASIS.sub(r"\2", text)
    folded = _numbers(fold(text))
    if "cent" in folded:
        folded = PER_CENT.sub("%", folded)
    if "&" in folded:
        folded = AMPERSAND.sub("and", folded)
    return RUPEES.sub("\u20b9", folded) if style == "legal" else folded


def _join_signs(found: list[str]) -> list[str]:
    """A sign is matched by itself before a plain number; it belongs to it."""
    if "-" not in found:
        return found
    joined: list[str] = []
    for token in found:
        if joined and joined[-1] == "-":
            joined[-1] = "-" + token
        else:
            joined.append(token)
    return joined


def _is_punctuation(token: str) -> bool:
    return len(token) == 1 and not token.isascii() and unicodedata.category(token)[0] == "P"


def _is_article(found: list[str], i: int) -> bool:
    """Whether token i, one of `ARTICLES`, is an article of speech: a word follows, and it is not the label of the word before it."""
    before = found[i - 1] if i else ""
    labels = found[i] == "a" and (before in LABELLED or before[:1].isdigit())
    return i + 1 < len(found) and not labels


def normalize(text: str, style: Style = "plain") -> str:
    """`tokens` joined by spaces: equal strings are equal answers."""
    return " ".join(tokens(text, style))


def normalize_question(text: str) -> str:
    """What the split compares: every word (articles too), figures and symbols of the folded text; scripts without spaces keep their runs.

    "Article 21 A" is "article 21a". A text of punctuation only stays as it is.
    """
    folded = _numbers(fold(SPACED_LETTER.sub(r"\1", text)))
    found = _join_signs(_pattern(folded.isascii(), False, True).findall(folded.replace("'", " ")))
    if not folded.isascii():
        found = [token for token in found if not _is_punctuation(token)]
    return " ".join(found) or " ".join(folded.split())
