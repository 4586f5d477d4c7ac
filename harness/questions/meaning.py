"""Features of a row that identify what it asks: words as numbers, keys, and the answer.

Everything is in matrices (rows x words, entries 0 or 1), because a file made from templates has hundreds of look-alikes for each of its rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import sparse

from harness.metrics.normalize import UNSPACED, combining_marks
from harness.questions.dataset import Row
from harness.questions.normalised import normalised

Matrix = Any
"""A `scipy.sparse.csr_matrix`, whose types are incomplete."""

FUNCTION_WORDS = """
    a according an and any are as at be been being by can could did do does false for from give had has have how i if in into is it its may me might
    must name not of on or please shall should so such tell than that the their then there these this those to true under us was we were what when
    where which who whom whose why will with would yes you
"""
"""English words that are common in any file. In a large file the counts would show it too; in a file of twenty rows they cannot."""
STOP_WORDS = frozenset(FUNCTION_WORDS.split())
SUFFIXES = (
    ("ments", 4), ("ment", 4), ("ings", 3), ("ing", 3), ("ions", 5), ("ion", 5), ("ers", 4), ("er", 4), ("ed", 3), ("es", 4),
    ("s", 3), ("e", 3),
)  # fmt: skip
"""English endings that do not change the word, each with the minimum letters before it."""
ROMAN = re.compile(r"[IVXLC]+")
BRACKETED = re.compile(r"\(\s*([^\W\d_]{1,4})\s*\)")
ORDINAL_HAN = re.compile(r"第[〇零一二三四五六七八九十百千]+")
WORD = re.compile(r"[^\W\d_]\w*")
TITLE_CASE = 0.6
"""Share of capitalised words above which capitals are ignored: a heading, or a text all in capitals."""
MAX_TOKENS = 400
"""Number of words of a text that are compared."""


def words(text: str) -> list[str]:
    """Words of normalised text, without English endings; pairs of characters in scripts without spaces between words."""
    found: list[str] = []
    for word in text.split()[:MAX_TOKENS]:
        if word.isascii():
            found.append(_stem(word))
        elif _unspaced().match(word):
            characters = _characters().findall(word)[:MAX_TOKENS]
            found += [a + b for a, b in pairwise(characters)] or characters
        else:
            found.append(word)
    return found


@lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    if len(word) < 5 or not word.isalpha():
        return word
    word = word.removesuffix("ies") + "y" if word.endswith("ies") else word
    for suffix, left in SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= left and not word.endswith("ss"):
            word = word[: -len(suffix)]
            break
    word = word.removesuffix("e") if len(word) > 4 else word
    return word[:-1] if len(word) > 4 and word[-1] == word[-2] else word


_compiled: dict[str, re.Pattern[str]] = {}


def _unspaced() -> re.Pattern[str]:
    return _compiled.setdefault("unspaced", re.compile(f"[{UNSPACED}]"))


def _characters() -> re.Pattern[str]:
    if "characters" not in _compiled:
        _compiled["characters"] = re.compile(rf".[{combining_marks()}]*")
    return _compiled["characters"]


def _is_function_word(word: str) -> bool:
    # Hiragana writes endings and particles; what is asked about is in Han characters, katakana or digits.
    return word in STOP_WORDS or all("\u3041" <= c <= "\u309f" for c in word)


def _is_number(word: str) -> bool:
    return not word.isalpha() and any(c.isdigit() for c in word)


def keys(text: str, normalised: Sequence[str]) -> set[str]:
    """What certainly distinguishes two questions: numbers, letters and numerals in brackets, Roman and Chinese numerals."""
    found = {word for word in normalised if _is_number(word)}
    found |= {f"({match.casefold()})" for match in BRACKETED.findall(text)}
    if ORDINAL_HAN.search(text):
        found |= set(ORDINAL_HAN.findall(text))
    capitals = [word for word in WORD.findall(text) if ROMAN.fullmatch(word)]
    return found | {word.casefold() for word in capitals if len(word) > 1 or word not in "IC" or not text.isupper()}


def names(text: str) -> set[str]:
    """Capitalised words, except at the beginning of a sentence or in a heading; empty in scripts without capitals."""
    found = WORD.findall(text)
    capital = [word for word in found if word[0].isupper()]
    if len(found) < 2 or (len(capital) >= TITLE_CASE * len(found) and len(capital) > 2):
        return set()
    return {word for word in words(normalised(" ".join(capital))) if not _is_function_word(word) and len(word) > 1}


@dataclass(frozen=True)
class Meanings:
    """All rows of a file. Matrices are csr, rows x words, of one vocabulary."""

    question: Matrix
    content: Matrix
    """Of the question, without function words."""
    keys: Matrix
    names: Matrix
    known: Matrix
    """All words and keys of the question."""
    answer: Matrix
    answer_content: Matrix
    """Of the answer, without function words."""
    answer_numbers: Matrix
    answer_id: np.ndarray
    """Equal numbers, equal normalised answers; shape (rows,)."""
    answer_count: np.ndarray
    """How many rows have the answer; shape (rows,)."""
    vocabulary: list[str]
    is_function: np.ndarray
    """For each word of the vocabulary."""
    sequences: list[list[int]]
    """For each question its words in order."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Meanings:
        """Reads the rows."""
        vocabulary: dict[str, int] = {}

        def numbers_of(found: Iterable[str]) -> list[int]:
            return [vocabulary.setdefault(word, len(vocabulary)) for word in found]

        sequences: list[list[int]] = []
        columns: dict[str, list[list[int]]] = {name: [] for name in ("keys", "names", "answer", "answer_numbers")}
        answers: dict[str, int] = {}
        answer_id: list[int] = []
        for row in rows:
            asked, said = normalised(row.question), normalised(row.answer)
            asked_words, said_words = words(asked), words(said)
            sequences.append(numbers_of(asked_words))
            columns["keys"].append(numbers_of(sorted(keys(row.question, asked.split()))))
            columns["names"].append(numbers_of(sorted(names(row.question))))
            columns["answer"].append(numbers_of(said_words))
            columns["answer_numbers"].append(numbers_of(sorted(keys(row.answer, said.split()))))
            answer_id.append(answers.setdefault(said, len(answers)))
        function = np.fromiter(map(_is_function_word, vocabulary), dtype=bool, count=len(vocabulary))
        count = len(vocabulary)
        question = _matrix(sequences, count)
        matrices = {name: _matrix(column, count) for name, column in columns.items()}
        known = question.maximum(matrices["keys"]).tocsr()
        identity = np.asarray(answer_id)
        return cls(
            question=question,
            content=_without(question, function),
            answer_content=_without(matrices["answer"], function),
            known=known,
            answer_id=identity,
            answer_count=np.bincount(identity)[identity],
            vocabulary=list(vocabulary),
            is_function=function,
            sequences=sequences,
            **matrices,
        )


def _without(words: Matrix, function: np.ndarray) -> Matrix:
    content = words.copy()
    content.data[function[content.indices]] = 0
    content.eliminate_zeros()
    return content


def _matrix(rows: Sequence[Sequence[int]], columns: int) -> Matrix:
    unique = [sorted(set(row)) for row in rows]
    starts = np.cumsum([0, *map(len, unique)])
    indices = np.fromiter((word for row in unique for word in row), dtype=np.int32, count=int(starts[-1]))
    return sparse.csr_matrix((np.ones(len(indices), dtype=np.float32), indices, starts), shape=(len(rows), columns))
