"""Answers to "name the ...": which of the expected items an answer names, in any order.

Exact match calls "Sikkim and Goa" wrong where the reference is "Goa, Sikkim", and token F1 gives a half to one name of two words that shares a
word with another. Here an answer is a set of items:

    "Goa, Sikkim and Assam", "Assam; Goa; Sikkim", "1. Goa\\n2. Sikkim\\n3. Assam", "गोवा, सिक्किम और असम"
"""

from __future__ import annotations

import re
from functools import lru_cache

from harness.metrics import normalize
from harness.metrics.base import Metric
from harness.metrics.normalize import Style

LONGEST_ITEM = 6
"""Tokens of an item at most: a text with a longer one is a sentence, not a list."""
INTRODUCTION = re.compile(r"\A[^:\n]*:(?=\s)\s*")
MARK = re.compile(r"(?m)^[ \t]*(?:[-*\u2022\u25e6\u2013]|\(?(?:\d{1,3}|[a-z]|[ivx]{1,5})[.)])[ \t]+", re.IGNORECASE)
# "1,000" is one number, "R&D" one word; Python's \b falls between a Devanagari consonant and its vowel sign, so words are bounded by white space.
SEPARATOR = re.compile(
    r"\s*(?:[;\n\u3001\u060c\uff0c\uff1b]|,(?!\d{2,3}\b)|(?<!\S)(?:and|or|as well as|along with|&|और|तथा|एवं|या|و|和|及|与)(?!\S))\s*",
    re.IGNORECASE,
)


@lru_cache(maxsize=1024)
def items(text: str, style: Style = "plain") -> frozenset[tuple[str, ...]]:
    """The items of a list, each as its tokens; a text that is not a list is a single item.

    Both sides are split at every comma and "and", so that a name that contains one ("law and order") still agrees with itself.
    """
    listed = MARK.sub("", INTRODUCTION.sub("", text.strip()))
    found = (normalize.tokens(item.strip(" .\t"), style) for item in SEPARATOR.split(listed))
    return frozenset(item for item in found if item)


class ListF1(Metric):
    """F1 of the items that the answer names against those of the reference, as sets.

    Unscored (None) is every question whose references are not lists: a list has two items or more, none longer than `LONGEST_ITEM` tokens.

    Args:
        normalizer: what makes two items equal, `plain`, `legal` or `code`; part of the signature.
    """

    name = "list_f1"
    description = "F1 of the items of a list, in any order, over the questions whose reference is a list."

    def __init__(self, normalizer: Style = "plain"):
        self.style: Style = normalizer
        self.normaliser = normalize.VERSIONS[normalizer]
        self.tokenizer = "list-items-1"

    def score_pair(self, prediction: str, reference: str) -> float | None:
        """F1 in 0..1; None if the reference is not a list."""
        expected = items(reference, self.style)
        if len(expected) < 2 or any(len(item) > LONGEST_ITEM for item in expected):
            return None
        named = items(prediction, self.style)
        return 2 * len(named & expected) / (len(named) + len(expected))
