"""Features of a row that identify what it asks: words as numbers, keys, and the answer.

Everything is in matrices (rows x words, entries 0 or 1), because a file made from templates has hundreds of look-alikes for each of its rows.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain, pairwise
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
ROMAN_END = re.compile(r"[IVXLC]\b")
"""A text without it has no word that is a Roman numeral."""
DIGIT = re.compile(r"[0-9]")
BRACKETED = re.compile(r"\(\s*([^\W\d_]{1,4})\s*\)")
ORDINAL_HAN = re.compile(r"第[〇零一二三四五六七八九十百千]+")
WORD = re.compile(r"[^\W\d_]\w*")
TITLE_CASE = 0.6
"""Share of capitalised words above which capitals are ignored: a heading, or a text all in capitals."""
MAX_TOKENS = 400
"""Number of words of a text that are compared."""
REMEMBERED = 32
"""Characters of the longest word whose parts are kept: a clause in a script without spaces is one word, and hardly occurs twice."""


def words(text: str) -> list[str]:
    """Words of normalised text, without English endings; pairs of characters in scripts without spaces between words."""
    return list(chain.from_iterable(map(_parts, text.split()[:MAX_TOKENS])))


def _parts(word: str) -> list[str]:
    """What `words` makes of one word."""
    if word.isascii():
        return [_stem(word)]
    if _unspaced().match(word):
        characters = _characters().findall(word)[:MAX_TOKENS]
        return [a + b for a, b in pairwise(characters)] or characters
    return [word]


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


@cache
def _unspaced() -> re.Pattern[str]:
    return re.compile(f"[{UNSPACED}]")


@cache
def _characters() -> re.Pattern[str]:
    return re.compile(rf".[{combining_marks()}]*")


def _is_function_word(word: str) -> bool:
    # Hiragana writes endings and particles; what is asked about is in Han characters, katakana or digits.
    return word in STOP_WORDS or all("\u3041" <= c <= "\u309f" for c in word)


def _is_number(word: str) -> bool:
    return not word.isalpha() and any(c.isdigit() for c in word)


def keys(text: str, normalised: str) -> set[str]:
    """What certainly distinguishes two questions: numbers, letters and numerals in brackets, Roman and Chinese numerals."""
    found: set[str] = set()
    if not normalised.isascii() or DIGIT.search(normalised):
        found.update(word for word in normalised.split() if _is_number(word))
    if "(" in text:
        found.update(f"({match.casefold()})" for match in BRACKETED.findall(text))
    if "第" in text:
        found.update(ORDINAL_HAN.findall(text))
    if ROMAN_END.search(text):
        capitals = [word for word in WORD.findall(text) if ROMAN.fullmatch(word)]
        found.update(word.casefold() for word in capitals if len(word) > 1 or word not in "IC" or not text.isupper())
    return found


def names(text: str) -> set[str]:
    """Capitalised words, except at the beginning of a sentence or in a heading; empty in scripts without capitals."""
    if text.islower():
        return set()
    found = WORD.findall(text)
    capital = [word for word in found if word[0].isupper()]
    if len(found) < 2 or (len(capital) >= TITLE_CASE * len(found) and len(capital) > 2):
        return set()
    if text.isascii() and "_" not in text:
        # Normalising such a word only makes it lower-case, so each different word is worked out once.
        return {name for word in capital[:MAX_TOKENS] if (name := _name(word))}
    return set(filter(_is_name, words(normalised(" ".join(capital)))))


def _is_name(word: str) -> bool:
    return not _is_function_word(word) and len(word) > 1


@lru_cache(maxsize=100_000)
def _name(word: str) -> str:
    """The name that a capitalised ASCII word is; empty if it is none."""
    name = _stem(word.lower())
    return name if _is_name(name) else ""


class _Vocabulary(dict[str, int]):
    """Words -> their numbers, in the order in which they are first looked up."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


class _Numbers(dict[str, tuple[int, ...]]):
    """Words of normalised texts -> the numbers of their parts (`words`): a word is cut once, however often it occurs."""

    def __init__(self, vocabulary: _Vocabulary):
        super().__init__()
        self.vocabulary = vocabulary

    def __missing__(self, word: str) -> tuple[int, ...]:
        numbers = tuple(map(self.vocabulary.__getitem__, _parts(word)))
        if len(word) <= REMEMBERED:
            self[word] = numbers
        return numbers

    def of(self, text: str) -> list[int]:
        """The numbers of `words(text)`."""
        return list(chain.from_iterable(map(self.__getitem__, text.split()[:MAX_TOKENS])))


class _Column:
    """A list of word numbers for each row, in two flat arrays."""

    def __init__(self) -> None:
        self.numbers, self.counts = array("i"), array("i")

    def append(self, numbers: Sequence[int]) -> None:
        """The next row's."""
        self.numbers.extend(numbers)
        self.counts.append(len(numbers))

    def matrix(self, columns: int) -> Matrix:
        """Rows x words, 1 where a row has the word."""
        counts = np.frombuffer(self.counts, dtype=np.int32) if self.counts else np.zeros(0, dtype=np.int32)
        numbers = np.frombuffer(self.numbers, dtype=np.int32) if self.numbers else np.zeros(0, dtype=np.int32)
        keyed = np.repeat(np.arange(len(counts), dtype=np.int64) << 32, counts) | numbers
        keyed.sort()
        keyed = keyed[np.flatnonzero(np.diff(keyed, prepend=-1))]
        indices = (keyed & 0xFFFFFFFF).astype(np.int32)
        starts = np.concatenate([[0], np.cumsum(np.bincount(keyed >> 32, minlength=len(counts)))])
        ones = np.ones(len(indices), dtype=np.float32)
        return sparse.csr_matrix((ones, indices, starts), shape=(len(counts), columns))


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
        vocabulary = _Vocabulary()
        numbers = _Numbers(vocabulary)
        sequences: list[list[int]] = []
        columns = {name: _Column() for name in ("question", "keys", "names", "answer", "answer_numbers")}

        def add(name: str, found: set[str]) -> None:
            columns[name].append([vocabulary[word] for word in sorted(found)])

        answers: dict[str, int] = {}
        answer_id: list[int] = []
        for row in rows:
            asked, said = normalised(row.question), normalised(row.answer)
            sequences.append(numbers.of(asked))
            columns["question"].append(sequences[-1])
            add("keys", keys(row.question, asked))
            add("names", names(row.question))
            columns["answer"].append(numbers.of(said))
            add("answer_numbers", keys(row.answer, said))
            answer_id.append(answers.setdefault(said, len(answers)))
        count = len(vocabulary)
        function = np.fromiter(map(_is_function_word, vocabulary), dtype=bool, count=count)
        matrices = {name: column.matrix(count) for name, column in columns.items()}
        question = matrices["question"]
        known = question.maximum(matrices["keys"]).tocsr()
        identity = np.asarray(answer_id)
        return cls(
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
