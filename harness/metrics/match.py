"""Exact match and token F1."""

from __future__ import annotations

from harness.metrics.base import Metric, multiset_f1
from harness.metrics.text import LEGAL, legal_tokens, normalize_legal


class ExactMatch(Metric):
    """The answer is the reference, character by character, but for whitespace around it."""

    name = "exact_match"
    description = "Share of answers identical to a reference, but for whitespace around them."
    normaliser = "strip"

    def score_pair(self, prediction: str, reference: str) -> float:
        """1 or 0."""
        return float(prediction.strip() == reference.strip())


class ExactMatchNormalized(Metric):
    """The answer is the reference after the normalisation of legal text (`harness.metrics.text.legal_tokens`)."""

    name = "exact_match_normalized"
    description = (
        "Share of answers identical to a reference once case, punctuation, quotes and articles of speech are folded."
    )
    normaliser = LEGAL
    tokenizer = LEGAL

    def score_pair(self, prediction: str, reference: str) -> float:
        """1 or 0."""
        return float(normalize_legal(prediction) == normalize_legal(reference))


class TokenF1(Metric):
    """F1 of the answer's tokens against the reference's, as multisets: a token repeated is not a token more found."""

    name = "token_f1"
    description = "F1 of the normalised tokens, each counted as often as it occurs."
    normaliser = LEGAL
    tokenizer = LEGAL

    def score_pair(self, prediction: str, reference: str) -> float:
        """F1 in 0..1; two answers without tokens agree."""
        return multiset_f1(legal_tokens(prediction), legal_tokens(reference))
