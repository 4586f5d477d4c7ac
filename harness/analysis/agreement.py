"""Agreement of two ways of judging the same answers, beyond chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.records import Interval


def cohens_kappa(
    one: ArrayLike, other: ArrayLike, groups: Sequence[Any] | NDArray[Any], *, resamples: int, seed: int
) -> tuple[float | None, Interval | None]:
    """Cohen's kappa of two yes/no judgements, and its 95% interval by resampling whole groups.

    kappa = (p_o - p_e) / (1 - p_e), p_o the share of equal judgements, p_e that expected of independent judges with the same shares of yes.
    Source: Cohen, Educational and Psychological Measurement 20 (1960) 37-46. Resamples in which kappa is undefined are left out.

    Args:
        one, other: booleans of shape (n,).
        groups: n labels.
        resamples: bootstrap samples.
        seed: of the resampling.

    Returns: (None, None) where both judges gave one and the same verdict throughout, so that kappa is undefined; no interval with fewer than two
    groups.
    """
    a, b = np.asarray(one, dtype=bool), np.asarray(other, dtype=bool)
    labels, index = np.unique(np.asarray(groups), return_inverse=True)
    cells = np.zeros((len(labels), 4))
    np.add.at(cells, (index, 2 * a + b), 1)
    value = _kappa(cells.sum(axis=0)[None])[0] if len(a) else np.nan
    if np.isnan(value):
        return None, None
    if len(labels) < 2:
        return float(value), None
    drawn = np.random.default_rng(seed).multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=resamples)
    found = _kappa(drawn @ cells)
    low, high = np.quantile(found[~np.isnan(found)], [0.025, 0.975])
    return float(value), (float(low), float(high))


def _kappa(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kappa of 2 x 2 tables of counts (both no, only other, only one, both yes), shape (B, 4); NaN where it is undefined."""
    n = counts.sum(axis=1)
    share = counts / np.maximum(n, 1)[:, None]
    same = share[:, 0] + share[:, 3]
    one, other = share[:, 2] + share[:, 3], share[:, 1] + share[:, 3]
    chance = one * other + (1 - one) * (1 - other)
    return np.divide(same - chance, 1 - chance, out=np.full(len(n), np.nan), where=1 - chance > 1e-12)
