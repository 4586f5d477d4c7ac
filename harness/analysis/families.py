"""Many paired differences at once: p-values corrected for a family of tests, and the difference that the family can detect.

The correction is the step-down max-T of Westfall and Young (Resampling-Based Multiple Testing, 1993, section 2.6), flipping the signs of whole groups
for all columns together, as in `harness.analysis.resampling.sign_flip_p`. It takes the correlation of the tests into account: copies of one test cost
nothing, and the smallest p is 1 / (flips + 1) whatever the size of the family. Sign flips for max-T: Winkler et al., NeuroImage 92 (2014) 381-397.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from harness.analysis.resampling import Floats, Totals, flipped_statistics

LEVEL = 0.05
"""Two-sided family-wise level."""
POWER = 0.8
ROUNDING = 1e-9
"""Sums taken in another order differ in the last bits; a flip that gives the same statistic must count."""


@dataclass(frozen=True)
class Family:
    """K tests that share one family-wise error rate."""

    p: Floats
    """Adjusted p-values, shape (K,): the family-wise level at which each would be found; 1 where all differences are 0."""
    critical: float
    """95% quantile of the largest flipped statistic over the tests that were not found: what one more would have to exceed."""


def adjust(totals: Totals, *, flips: int, seed: int) -> Family:
    """Step-down max-T over the columns of `totals`.

    The statistic of a column is T = |sum_g S_g| / sqrt(sum_g S_g^2), whose denominator no flip changes. With T_(1) >= T_(2) >= ..., p_(j) is the share
    of flips in which the largest of T*_(j), T*_(j+1), ... reaches T_(j), made monotone in j.
    """
    seen, flipped = flipped_statistics(totals, flips=flips, seed=seed)
    order = np.argsort(-seen, kind="stable")
    # Column j: the largest flipped statistic among the tests from rank j on.
    largest = np.maximum.accumulate(flipped[:, order][:, ::-1], axis=1)[:, ::-1]
    reached = (1 + (largest >= seen[order] - ROUNDING).sum(axis=0)) / (1 + flips)
    adjusted = np.empty(len(seen))
    adjusted[order] = np.maximum.accumulate(reached)
    adjusted[seen == 0] = 1.0
    not_found: NDArray[np.bool_] = adjusted > LEVEL
    remaining = flipped[:, not_found] if not_found.any() else flipped[:, order[-1:]]
    return Family(adjusted, float(np.quantile(remaining.max(axis=1), 1 - LEVEL)))


def detectable(se: float | None, n_groups: int, critical: float) -> float | None:
    """The smallest true difference that the family's verdict finds with 80% power, in the unit of `se`; None without a standard error.

    A flipped statistic of c corresponds to a t of c sqrt((G - 1) / (G - c^2)) on G - 1 degrees of freedom, and the difference is (t + t_{0.8}) se.
    Infinite (None) where c^2 >= G: so few groups cannot show any difference. Source: Bloom, Evaluation Review 19 (1995) 547-556, with the family's
    critical value instead of t_{0.975}.
    """
    if not se or n_groups < 2 or critical**2 >= n_groups:
        return None
    t = critical * math.sqrt((n_groups - 1) / (n_groups - critical**2))
    return float((t + stats.t.ppf(POWER, n_groups - 1)) * se)
