"""Few-shot examples: the training questions nearest to each question, by shared words.

Nearness is the cosine of tf-idf vectors of words, with idf = ln((1 + N) / (1 + df)) + 1 over the N training questions (scikit-learn's smoothed
form). The choice depends on the questions alone: ties go to the earlier training row.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix

from harness.errors import ConfigError
from harness.records import Question

WORD = re.compile(r"\w+")
CELLS = 20_000_000
"""Similarities in memory at once: 80 MB."""


def nearest(asked: Sequence[Question], train: Sequence[Question], k: int) -> list[list[tuple[str, str]]]:
    """`k` training questions with their answers for each question asked, the nearest one last, next to the question.

    A training question never gets one of its own group: that would be its own answer, or nearly.

    Raises:
        ConfigError: there are fewer than `k` training questions to choose from.
    """
    if not k:
        return [[] for _ in asked]
    groups = np.array([q.group for q in train])
    known = _vocabulary(train)
    right = _vectors(train, known).T.tocsr()
    step = max(1, CELLS // max(len(train), 1))
    found = []
    for start in range(0, len(asked), step):
        part = asked[start : start + step]
        for question, row in zip(part, (_vectors(part, known) @ right).toarray(), strict=True):
            own = groups == question.group if len(train) else np.zeros(0, dtype=bool)
            row[own] = -1.0
            if len(train) - own.sum() < k:
                raise ConfigError(
                    f"{k} few-shot examples are requested, but question {question.id!r} has only {len(train) - own.sum()} training questions in other groups",
                    "lower prompt.few_shot (predict.few_shot for base_fewshot), or give more training questions (harness evaluate: --trained-on)",
                )
            found.append([(train[i].question, train[i].answer) for i in _largest(row, k)[::-1]])
    return found


def _largest(row: np.ndarray, k: int) -> list[int]:
    """Positions of the `k` largest values, the largest first, ties in their order."""
    least = np.partition(row, -k)[-k]
    chosen = np.flatnonzero(row >= least)
    return chosen[np.argsort(-row[chosen], kind="stable")][:k].tolist()


def _words(question: Question) -> list[str]:
    return WORD.findall(question.question.casefold())


def _vocabulary(train: Sequence[Question]) -> dict[str, tuple[int, float]]:
    """Word -> (column, inverse document frequency)."""
    counts = Counter(word for question in train for word in dict.fromkeys(_words(question)))
    return {word: (i, float(np.log((1 + len(train)) / (1 + n)) + 1)) for i, (word, n) in enumerate(counts.items())}


def _vectors(questions: Sequence[Question], known: dict[str, tuple[int, float]]) -> csr_matrix:
    """L2-normalised tf-idf rows, shape (questions, words); words in no training question are left out."""
    values, columns, ends = [], [], [0]
    for question in questions:
        weights = {known[word][0]: n * known[word][1] for word, n in Counter(_words(question)).items() if word in known}
        length = float(np.sqrt(sum(weight * weight for weight in weights.values()))) or 1.0
        columns += weights
        values += [weight / length for weight in weights.values()]
        ends.append(len(columns))
    return csr_matrix((np.array(values, np.float32), columns, ends), shape=(len(questions), len(known)))
