"""What a split lets somebody score who has no model.

A split that leaves paraphrases or shared answers on both sides is measured here: the better these two do, the less a score on it means.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from harness.metrics import configured
from harness.questions.dataset import Row
from harness.registry import default_metrics

MAX_QUESTIONS = 2_000
"""Held-out rows to measure on, at most: ROUGE and a search for the nearest take their time."""


def measure(
    rows: Sequence[Row], train: Sequence[int], nearest: Mapping[int, int], normalizer: str = "plain"
) -> dict[str, dict[str, float]]:
    """Scores both baselines on one split.

    Args:
        rows: all rows; the other arguments are positions in it.
        train: the training side.
        nearest: held-out row -> the row of its nearest training question, the first of equals.
        normalizer: `score.normalizer`, so that these scores may be held against a model's.

    Returns:
        `nearest_train_copy` (the answer of the nearest training question) and
        `constant_answer` (the commonest training answer, the first of equals) -> metric -> mean over the held-out rows (0..1).
    """
    asked = [rows[at] for at in nearest]
    # Counter.most_common keeps the order of first occurrence among equals.
    constant = Counter(rows[at].answer for at in train).most_common(1)[0][0]
    return {
        "nearest_train_copy": _score([rows[at].answer for at in nearest.values()], asked, normalizer),
        "constant_answer": _score([constant] * len(asked), asked, normalizer),
    }


def random_heldout(rows: Sequence[Row], count: int, seed: int) -> list[int]:
    """Positions of a plain random held-out side of `count` rows, with no regard to groups: what `measure` is compared on."""
    return sorted(
        sorted(range(len(rows)), key=lambda at: hashlib.sha256(f"{seed}\0random\0{rows[at].id}".encode()).digest())[
            :count
        ]
    )


def sample(heldout: Sequence[int]) -> list[int]:
    """The held-out rows to measure on: all, or `MAX_QUESTIONS` evenly spaced."""
    if len(heldout) <= MAX_QUESTIONS:
        return list(heldout)
    return [heldout[i * len(heldout) // MAX_QUESTIONS] for i in range(MAX_QUESTIONS)]


def _score(predictions: Sequence[str], asked: Sequence[Row], normalizer: str) -> dict[str, float]:
    means = {}
    for name in default_metrics(normalizer):
        metric = configured(name, normalizer)
        scores = [
            metric.score_one(prediction, [row.answer, *row.references])
            for prediction, row in zip(predictions, asked, strict=True)
        ]
        scored = [score for score in scores if score is not None]
        # A metric that can score none of the answers is left out: a mean over nothing is no number.
        if scored:
            means[name] = sum(scored) / len(scored)
    return means
