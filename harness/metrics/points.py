"""Point recall: the share of the required points that a long answer contains."""

from __future__ import annotations

from collections.abc import Sequence

from harness.metrics.base import Metric
from harness.metrics.text import legal_tokens

OR = "|"
"""Separates the accepted wordings of one point."""


class PointRecall(Metric):
    """The share of the question's points that the answer mentions, as whole words in their order.

    Its references are not answers but points, from the column `must_mention` of the QA file: `["Article 21A|21A", "Parliament"]`. Case,
    punctuation and articles of speech are folded; "21" does not match "21A". Additional text in the answer is not penalised, so that a long enough
    list of words would score: use it together with a metric of precision.
    """

    name = "point_recall"
    description = "Share of the points of `must_mention` that the answer mentions, over the questions that list any."
    normaliser = tokenizer = "points-1"

    def score_pair(self, prediction: str, reference: str) -> float | None:
        """1 if a wording of the point is in the answer, else 0; None for a point without words."""
        wordings = [tokens for wording in reference.split(OR) if (tokens := legal_tokens(wording))]
        if not wordings:
            return None
        said = legal_tokens(prediction)
        return float(any(_contains(said, wording) for wording in wordings))

    def score_one(self, prediction: str, references: Sequence[str]) -> float | None:
        """The mean over the points; None if there are none."""
        scores = [score for point in references if (score := self.score_pair(prediction, point)) is not None]
        return sum(scores) / len(scores) if scores else None


def _contains(said: Sequence[str], wording: Sequence[str]) -> bool:
    return any(tuple(said[at : at + len(wording)]) == tuple(wording) for at in range(len(said) - len(wording) + 1))
