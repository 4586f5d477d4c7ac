"""Text to tokens: plain words for ROUGE, and the normalisation of legal text.

Both know every script: a Devanagari vowel sign or virama is part of its word, and a script that is written without spaces (Han, kana,
Thai, Lao, Khmer, Myanmar) gives one token per character with its marks.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache

WORDS = "unicode-words-1"
"""Name and version of `words`, for signatures."""
LEGAL = "legal-1"
"""Name and version of `legal_tokens`, for signatures."""

# Invisible: soft hyphen, zero-width space and joiners, word joiner, byte order mark.
INVISIBLE = dict.fromkeys([0xAD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF])
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
ASCII_WORD = re.compile(r"[a-z0-9]+")
HYPHENS = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"))
APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bc\u0060\u00b4", "'"))

ARTICLES = frozenset(["a", "an", "the"])
# Before the letter "a" these name a label ("clause a"), not an article of speech.
LABELS = """annex annexure appendix article articles category class clause clauses entry form grade group item list option para paragraph
part schedule section sub-clause sub-clauses subclause sub-paragraph type"""
LABELLED = frozenset(LABELS.split())


@cache
def _marks() -> str:
    """A regular expression class of all combining marks, which `\\w` leaves out."""
    points = [p for p in range(0x300, 0x1F000) if unicodedata.category(chr(p))[0] == "M"]
    ranges: list[list[int]] = []
    for point in points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return "".join(f"{chr(a)}-{chr(b)}" for a, b in ranges)


@cache
def _word_pattern() -> re.Pattern[str]:
    letter = rf"(?:(?![{UNSPACED}])[^\W_]|[{_marks()}])"
    return re.compile(rf"[{UNSPACED}][{_marks()}]*|{letter}+")


@cache
def _legal_pattern() -> re.Pattern[str]:
    marks = _marks()
    letter = rf"(?:(?![{UNSPACED}])[^\W_]|[{marks}])"
    label = rf"\(\s*(?:\d{{1,4}}[a-z]{{0,3}}|[ivxlc]{{1,7}}|[^\W\d_][{marks}]*(?:[^\W\d_][{marks}]*)?)\s*\)"
    number = r"\d+(?:[./]\d+)+"
    word = rf"{letter}+(?:['-]{letter}+)*"
    return re.compile(rf"{label}|{number}|[{UNSPACED}][{marks}]*|{word}|%|(?![\w\s\x00-\x7f])[^\w\s]|[$+<=>]")


def words(text: str) -> list[str]:
    """Lower-case runs of letters, marks and digits. On ASCII text exactly the default tokenizer of `rouge_score`."""
    if text.isascii():
        return ASCII_WORD.findall(text.lower())
    return _word_pattern().findall(unicodedata.normalize("NFC", text.lower()).translate(INVISIBLE))


@lru_cache(maxsize=1024)  # Several metrics ask for the same two texts one after the other.
def legal_tokens(text: str) -> tuple[str, ...]:
    """Tokens that keep apart what the law keeps apart.

    Folded: case, whitespace, quotation marks, punctuation between words, the articles a, an and the, kinds of hyphen, and "21-A" with
    "21A". Kept: every word ("not"), lettered numbers ("21A"), bracketed labels ("(1)", "(a)", "(iii)"), hyphens and apostrophes inside
    words, decimals and fractions, percent, currency and comparison signs. Numbers in words are other words than in figures.
    """
    text = unicodedata.normalize("NFC", text.casefold()).translate(INVISIBLE).translate(HYPHENS).translate(APOSTROPHES)
    text = re.sub(r"(?<=\d)-(?=[a-z]{1,2}\b)", "", text)
    tokens = _legal_pattern().findall(text)
    if not text.isascii():
        tokens = [t for t in tokens if not _is_punctuation(t)]
    return tuple(_closed(t) for i, t in enumerate(tokens) if t not in ARTICLES or not _is_article(tokens, i))


def _closed(token: str) -> str:
    return "".join(token.split()) if token[0] == "(" else token


def _is_punctuation(token: str) -> bool:
    return len(token) == 1 and not token.isascii() and unicodedata.category(token)[0] == "P"


def _is_article(tokens: list[str], i: int) -> bool:
    """Whether token i, one of `ARTICLES`, is an article of speech: a word follows, and it is not the label of what stands before it."""
    before = tokens[i - 1] if i else ""
    labels = tokens[i] == "a" and (before in LABELLED or before[:1].isdigit())
    return i + 1 < len(tokens) and not labels


def normalize_legal(text: str) -> str:
    """`legal_tokens` joined by spaces: equal strings are equal answers."""
    return " ".join(legal_tokens(text))
