"""Text to tokens: plain words for ROUGE, and the shorthands for legal text.

Words are those of every script: a Devanagari vowel sign or virama is part of its word, and a script that is written without spaces (Han, kana,
Thai, Lao, Khmer, Myanmar) gives one token per character with its marks.
"""

from __future__ import annotations

import re
from functools import cache

from harness.metrics.normalize import UNSPACED, combining_marks, fold, tokens

WORDS = "unicode-words-2"
"""Name and version of `words`, for signatures."""
ASCII_WORD = re.compile(r"[a-z0-9]+")


@cache
def _word_pattern() -> re.Pattern[str]:
    letter = rf"(?:(?![{UNSPACED}])[^\W_]|[{combining_marks()}])"
    return re.compile(rf"[{UNSPACED}][{combining_marks()}]*|{letter}+")


def words(text: str) -> list[str]:
    """Lower-case runs of letters, marks and digits, folded. On ASCII text exactly the default tokenizer of `rouge_score`."""
    if text.isascii():
        return ASCII_WORD.findall(text.lower())
    return _word_pattern().findall(fold(text))


def legal_tokens(text: str) -> tuple[str, ...]:
    """The tokens of the legal normaliser."""
    return tokens(text, "legal")
