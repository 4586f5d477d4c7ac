"""What a metric is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from harness.registry import METRICS


class Metric(ABC):
    """Scores an answer against its references.

    A subclass states its name, what it does to the text, and the score of one prediction against one reference.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Raised whenever any score may change."""
    description: ClassVar[str]
    normaliser: str = "none"
    tokenizer: str = "none"
    stemmer: str = "none"
    library: str = "harness"

    @property
    def binary(self) -> bool:
        """Every score is 0 or 1: the mean is a rate (`harness.registry` has the facts about a metric)."""
        return METRICS[self.name].binary

    @property
    def signature(self) -> str:
        """Everything that affects the score; only scores of equal signature may be compared."""
        return f"{self.name}|v:{self.version}|norm:{self.normaliser}|tok:{self.tokenizer}|stem:{self.stemmer}|lib:{self.library}"

    @abstractmethod
    def score_pair(self, prediction: str, reference: str) -> float | None:
        """Score in 0..1 against one reference; None where this reference cannot be scored, whatever the prediction."""

    def score_one(self, prediction: str, references: Sequence[str]) -> float | None:
        """Best score over the references; None if none of them can be scored."""
        scores = [score for reference in references if (score := self.score_pair(prediction, reference)) is not None]
        return max(scores, default=None)

    def score_all(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float | None]:
        """`score_one` of each pair; ValueError if the two differ in length."""
        return [self.score_one(p, r) for p, r in zip(predictions, references, strict=True)]

    def compute(self, *, predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, Any]:
        """Mean over the pairs that can be scored.

        Args:
            predictions: n answers.
            references: for each answer its reference, or several.

        Returns:
            The mean under the metric's name (None if nothing was scored), `n`, `n_unscored` and `signature`.

        Raises:
            ValueError: the two differ in length.
        """
        scores = self.score_all(predictions, [[r] if isinstance(r, str) else r for r in references])
        scored = [s for s in scores if s is not None]
        mean = sum(scored) / len(scored) if scored else None
        return {self.name: mean, "n": len(scored), "n_unscored": len(scores) - len(scored), "signature": self.signature}


def multiset_f1(predicted: Iterable[Any], expected: Iterable[Any]) -> float:
    """Harmonic mean of precision and recall, each item counted as often as it occurs; two empty lists agree.

    Source: the SQuAD evaluation script, `f1_score` (Rajpurkar et al. 2016, section 6.1).
    """
    left, right = Counter(predicted), Counter(expected)
    if not left or not right:
        return float(not left and not right)
    return 2 * (left & right).total() / (left.total() + right.total())
