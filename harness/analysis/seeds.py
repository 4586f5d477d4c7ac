"""Trainings of one recipe with several seeds, taken as one variant.

The questions are a sample, and so are the seeds. Per question the scores of R trainings are averaged; over the questions that average has the usual
cluster-robust variance V_q. A new draw of seeds would move the mean of all questions together, which no resampling of questions shows. The variance
s^2 of the trainings' means contains that and V_e, the contribution of single questions that differ between trainings, which V_q already includes: V_s
= max(0, s^2 - V_e). With V_e by the same cluster-robust formula from each training's departure from the average, se^2 = V_q + V_s / R, on
Satterthwaite's degrees of freedom

    se^4 / (V_q^2 / (G - 1) + (V_s / R)^2 / (R - 1))

over the G groups. Between two recipes with their own seeds both sides' V_s / R are added. Sources: Bouthillier et al., MLSys 2021 (arXiv:2103.03098) on
seeds as a source of variance; Satterthwaite, Biometrics Bulletin 2 (1946) 110-114. Simulated size: benchmarks/seeds.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from harness.analysis.resampling import Floats, Totals, cluster_se
from harness.analysis.statistics import LEVEL, Difference, Estimate
from harness.records import Interval


@dataclass(frozen=True)
class SeedVariance:
    """The variance that other seeds would add to a mean or a difference, and how well it is known."""

    variance: float
    spread: float
    """(V_s / R)^2 / (R - 1), its term in the denominator of Satterthwaite's degrees of freedom."""

    def plus(self, other: SeedVariance) -> SeedVariance:
        """Of the difference of two independent means."""
        return SeedVariance(self.variance + other.variance, self.spread + other.spread)


def of_trainings(scores: Sequence[Floats], groups: Sequence[Any] | NDArray[Any]) -> SeedVariance | None:
    """Of the mean of R trainings, from their scores, each of shape (n,); NaN: unscored. None for fewer than two.

    Args:
        groups: n labels.
    """
    count = len(scores)
    if count < 2:
        return None
    table = np.column_stack(scores)
    table = table[~np.isnan(table).any(axis=1)]
    if not len(table):
        return None
    kept = np.asarray(groups)[~np.isnan(np.column_stack(scores)).any(axis=1)]
    departure = table - table.mean(axis=1, keepdims=True)
    errors = np.nan_to_num(cluster_se(Totals.of(departure, kept))) ** 2
    total = float(table.mean(axis=0).var(ddof=1))
    of_questions = float(errors.mean()) * count / (count - 1)
    variance = max(0.0, total - of_questions) / count
    return SeedVariance(variance, variance**2 / (count - 1))


def of_known_spread(deviation: float, trainings: int) -> SeedVariance:
    """Of the mean of one training, from the standard deviation `deviation` (s) of `trainings` trainings of its recipe."""
    return SeedVariance(deviation**2, deviation**4 / (trainings - 1))


def average(trainings: Sequence[Floats]) -> Floats:
    """Scores per question, averaged over trainings that each have shape (n, K); NaN where any of them is unscored."""
    return np.mean(np.stack(trainings), axis=0)


def widened_mean(estimate: Estimate, seeds: SeedVariance | None, n_seeds: int) -> Estimate:
    """A mean over trainings with the interval of questions and seeds together, within 0..1."""
    if seeds is None or estimate.value is None or estimate.ci95 is None or estimate.se is None:
        return estimate
    low, high = _stretched(estimate, seeds)
    method = f"{estimate.method}, and {n_seeds} trainings"
    return replace(estimate, ci95=(max(0.0, low), min(1.0, high)), method=method)


def widened(difference: Difference, seeds: SeedVariance | None) -> Difference:
    """A difference with the interval of questions and seeds together; its p-values are no smaller than that of the same standard error."""
    if seeds is None or difference.value is None or difference.ci95 is None or difference.se is None:
        return difference
    se, degrees = _joint(difference, seeds)
    low, high = _stretched(difference, seeds)
    p = 1.0 if difference.value == 0 else float(2 * stats.t.sf(abs(difference.value) / se, degrees)) if se else 0.0
    return replace(
        difference,
        ci95=(max(-1.0, low), min(1.0, high)),
        p=max(p, difference.p or 0.0),
        p_adjusted=max(p, difference.p_adjusted or 0.0),
        mde=difference.mde and difference.mde * se / difference.se if difference.se else None,
        method=f"{difference.method}, and the variance between trainings",
    )


def _joint(estimate: Estimate, seeds: SeedVariance) -> tuple[float, float]:
    """(standard error, degrees of freedom) of questions and seeds together."""
    questions = (estimate.se or 0.0) ** 2
    total = questions + seeds.variance
    if total == 0:
        return 0.0, max(estimate.n_groups - 1.0, 1.0)
    return math.sqrt(total), total**2 / (questions**2 / max(estimate.n_groups - 1, 1) + seeds.spread)


def _stretched(estimate: Estimate, seeds: SeedVariance) -> Interval:
    """The interval over questions, each half scaled by the growth of the standard error and of its quantile; never shorter than before."""
    se, degrees = _joint(estimate, seeds)
    value, (low, high) = estimate.value or 0.0, estimate.ci95 or (0.0, 0.0)
    half = float(stats.t.ppf(1 - LEVEL / 2, degrees)) * se
    if not estimate.se:
        return value - max(half, value - low), value + max(half, high - value)
    alone = float(stats.t.ppf(1 - LEVEL / 2, max(estimate.n_groups - 1, 1))) * estimate.se
    factor = max(1.0, half / alone)
    return value - factor * (value - low), value + factor * (high - value)
