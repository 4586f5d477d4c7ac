"""Exact match and token F1."""

from __future__ import annotations

from harness.metrics import normalize
from harness.metrics.base import Metric, multiset_f1
from harness.metrics.normalize import Style


class ExactMatch(Metric):
    """The answer is the reference, character by character, but for whitespace around it."""

    name = "exact_match"
    description = "Share of answers identical to a reference, but for whitespace around them."
    normaliser = "strip"

    def score_pair(self, prediction: str, reference: str) -> float:
        """1 or 0."""
        return float(prediction.strip() == reference.strip())


class ExactMatchNormalized(Metric):
    """The answer is the reference after normalisation (`harness.metrics.normalize`).

    Args:
        normalizer: the style of normalisation, `plain`, `legal` or `code`; part of the signature.
    """

    name = "exact_match_normalized"
    description = (
        "Share of answers identical to a reference once case, punctuation, quotes and articles of speech are folded."
    )

    def __init__(self, normalizer: Style = "plain"):
        self.style: Style = normalizer
        self.normaliser = self.tokenizer = normalize.VERSIONS[normalizer]

    def score_pair(self, prediction: str, reference: str) -> float:
        """1 or 0."""
        return float(normalize.tokens(prediction, self.style) == normalize.tokens(reference, self.style))


class TokenF1(Metric):
    """F1 of the answer's tokens against the reference's, as multisets: repeating a token gains nothing.

    Args:
        normalizer: the style of normalisation, `plain`, `legal` or `code`; part of the signature.
    """

    name = "token_f1"
    description = "F1 of the normalised tokens, each counted as often as it occurs."

    def __init__(self, normalizer: Style = "plain"):
        self.style: Style = normalizer
        self.normaliser = self.tokenizer = normalize.VERSIONS[normalizer]

    def score_pair(self, prediction: str, reference: str) -> float:
        """F1 in 0..1; two answers without tokens agree."""
        return multiset_f1(normalize.tokens(prediction, self.style), normalize.tokens(reference, self.style))
