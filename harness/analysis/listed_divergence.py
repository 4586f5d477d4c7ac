"""Divergence from a server that lists the most probable tokens only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
LEAST_SHARE = 1e-9
"""Least probability of all unlisted tokens together; a smaller one is rounding."""


def listed_kl(ours: Floats, listed: Mapping[int, float]) -> float:
    """KL(P || Q) in nats over the listed tokens and all others merged into one, P ours and Q the server's.

    Merging outcomes never increases a divergence (data processing inequality; Cover and Thomas, Elements of Information Theory, 2.8), so this is a
    lower bound of the divergence over the whole vocabulary.

    Args:
        ours: natural log-probabilities of the whole vocabulary, shape (vocabulary,).
        listed: token id -> the server's natural log-probability.
    Raises:
        ValueError: nothing is listed, or a token outside the vocabulary.
    """
    ids = list(listed)
    if not ids or not 0 <= min(ids) <= max(ids) < len(ours):
        raise ValueError("no token of this vocabulary is listed")
    all_ours = np.exp(ours.astype(np.float64))
    p = all_ours[ids] / all_ours.sum()
    q = np.exp(np.array([listed[i] for i in ids], dtype=np.float64))
    rest_p, rest_q = max(1.0 - p.sum(), LEAST_SHARE), max(1.0 - q.sum(), LEAST_SHARE)
    shares, others = np.append(p, rest_p), np.append(np.maximum(q, 1e-35), rest_q)
    shares, others = shares / shares.sum(), others / others.sum()
    terms = np.where(shares > 0, shares * (np.log(np.maximum(shares, 1e-300)) - np.log(others)), 0.0)
    return max(float(terms.sum()), 0.0)
