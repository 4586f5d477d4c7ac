"""Intervals, paired tests and verdicts for scores that come in groups (see `harness.analysis.resampling` for the notation)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from harness.analysis.resampling import Totals, bootstrap_means, cluster_se, jackknife_se, sign_flip_p
from harness.records import Interval, Verdict

LEVEL = 0.05
"""Two-sided level of every interval and test."""
POWER = 0.8
FEW = 10
"""With fewer groups than this the bootstrap distribution is too coarse for its 2.5% tails."""
RARE = 20
"""With fewer groups than this (or than half of all) that hold anything else than one end, a score is near that end."""


@dataclass(frozen=True)
class Estimate:
    """A mean and how well it is known. Values are None where nothing was scored, the rest where one group cannot tell."""

    value: float | None
    se: float | None
    """Closed-form cluster-robust standard error."""
    ci95: Interval | None
    n: int
    """Scored questions."""
    n_groups: int
    """Groups with a scored question."""
    method: str
    """Of the interval, in words."""


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean paired difference (left minus right)."""

    p: float | None
    """Two-sided, by sign flips of whole groups."""
    mde: float | None
    """Minimum detectable effect."""
    wins: int
    losses: int
    ties: int


# ---------------------------------------------------------------------------------------------------------- intervals


def mean_intervals(
    values: ArrayLike, groups: Sequence[Any] | NDArray[Any], *, resamples: int, seed: int
) -> list[Estimate]:
    """The mean of each column of scores in 0..1, with its 95% interval.

    Cluster bootstrap, but Wilson where the mean is at or near 0 or 1 (see `RARE`): resampling sees too little of what is rare, and nothing
    of what did not happen. For graded scores Wilson's is too wide rather than too short, since no score in 0..1 varies more than a rate.

    Args:
        values: scores of shape (n, K) or (n,); NaN: unscored.
        groups: n labels.
        resamples: bootstrap samples; 0 takes the t interval instead, for many small tables.
        seed: of the resampling.
    """
    totals = Totals.of(values, groups)
    intervals = _intervals(totals, (0.0, 1.0), resamples=resamples, seed=seed)
    effective = totals.effective_groups
    deviation = jackknife_se(totals)
    for k, estimate in enumerate(intervals):
        sums, counts = totals.sums[:, k], totals.counts[:, k]
        rarer = min(np.count_nonzero(sums > 0), np.count_nonzero(sums < counts))
        if estimate.value is None or rarer >= min(RARE, estimate.n_groups / 2):
            continue
        size = effective_n(estimate.value, deviation[k], estimate.n, effective[k])
        ci95 = wilson(estimate.value, size, degrees=max(1.0, effective[k] - 1))
        intervals[k] = Estimate(
            estimate.value, estimate.se, ci95, estimate.n, estimate.n_groups, f"Wilson, effective n {size:.1f}"
        )
    return intervals


def _intervals(totals: Totals, bounds: Interval, *, resamples: int, seed: int) -> list[Estimate]:
    """Expanded percentile intervals of each column, scaled to the jackknife's standard error.

    A plain percentile interval is too short by sqrt((G-1)/G) and by the normal quantile where Student's t is due: the tails are taken at
    Phi(-sqrt(G/(G-1)) t_{0.975, G-1}) instead of 2.5% (Hesterberg, The American Statistician 69 (2015) 371-386, section 4.3). It is still too short
    where a few groups hold much of the data, by the ratio of CR3 to CR1, so both halves are stretched by `jackknife_se / cluster_se`.
    Simulated coverage is in tests/test_statistics.py. With fewer than `FEW` groups, or resamples=0: m +- t_{0.975, G-1} jackknife_se.
    """
    means, errors, robust = totals.mean, cluster_se(totals), jackknife_se(totals)
    groups, counts = totals.n_groups, totals.counts.sum(axis=0).astype(int)
    distribution = (
        bootstrap_means(totals, resamples=resamples, seed=seed) if resamples and groups.max(initial=0) >= FEW else None
    )
    estimates: list[Estimate] = []
    for k, (value, n_groups) in enumerate(zip(means, groups, strict=True)):
        if n_groups < 2:
            alone = None if n_groups == 0 else float(value)
            estimates.append(Estimate(alone, None, None, int(counts[k]), int(n_groups), "none: fewer than 2 groups"))
            continue
        critical = float(stats.t.ppf(1 - LEVEL / 2, n_groups - 1))
        if distribution is None or n_groups < FEW:
            low, high = value - critical * robust[k], value + critical * robust[k]
            method = f"t over {n_groups} groups"
        else:
            tail = float(stats.norm.cdf(-math.sqrt(n_groups / (n_groups - 1)) * critical))
            stretch = robust[k] / errors[k] if errors[k] > 0 else 1.0
            low, high = value + stretch * (np.quantile(distribution[:, k], [tail, 1 - tail]) - value)
            method = f"cluster bootstrap, {resamples} resamples of {n_groups} groups"
        ci95 = (float(max(low, bounds[0])), float(min(high, bounds[1])))
        estimates.append(Estimate(float(value), float(errors[k]), ci95, int(counts[k]), int(n_groups), method))
    return estimates


def wilson(rate: float, n: float, *, degrees: float = math.inf) -> Interval:
    """Wilson's 95% score interval of a rate seen on n (effective) questions; never of width 0.

    Source: Wilson, J. Am. Statist. Assoc. 22 (1927) 209-212. For clustered data n is the effective size and the quantile Student's t, after Korn and
    Graubard, Survey Methodology 24 (1998) 193-201, who do the same to the exact interval.
    """
    z2 = (
        float(stats.t.ppf(1 - LEVEL / 2, degrees)) ** 2
        if math.isfinite(degrees)
        else float(stats.norm.ppf(1 - LEVEL / 2)) ** 2
    )
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # At 0 and 1 the end is exact; rounding must not move it inside.
    return (0.0 if rate == 0 else max(0.0, centre - half), 1.0 if rate == 1 else min(1.0, centre + half))


def effective_n(rate: float, se: float, n: int, effective_groups: float) -> float:
    """How many independent questions would know the rate as well: rate (1 - rate) / se^2, between 1 and n.

    At 0 or 1 there is no spread to measure the clustering by, and the worst is taken: each group one question, Kish's effective number of
    groups. Source: Kish, Survey Sampling (1965), section 8.2.
    """
    if not (0 < rate < 1 and se > 0):
        return float(effective_groups)
    return float(min(max(rate * (1 - rate) / se**2, 1.0), n))


# -------------------------------------------------------------------------------------------------------------- pairs


def paired_differences(
    left: ArrayLike, right: ArrayLike, groups: Sequence[Any] | NDArray[Any], *, resamples: int, seed: int
) -> list[Difference]:
    """Left minus right, question by question, over the questions that both scored.

    Args:
        left, right: scores of shape (n, K) or (n,); column k of one is paired with column k of the other.
        groups: n labels.
        resamples: bootstrap samples, and sign flips (at least 40 for each column, so that Holm's correction can be passed).
        seed: of both.
    """
    differences = np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)
    differences = differences[:, None] if differences.ndim == 1 else differences
    totals = Totals.of(differences, groups)
    estimates = _intervals(totals, (-1.0, 1.0), resamples=resamples, seed=seed)
    p_values = sign_flip_p(totals, flips=max(resamples, 40 * differences.shape[1]), seed=seed + 1)
    results: list[Difference] = []
    for k, estimate in enumerate(estimates):
        column = differences[:, k]
        results.append(
            Difference(
                **vars(estimate),
                p=None if estimate.n == 0 else float(p_values[k]),
                mde=minimum_detectable_effect(estimate.se, estimate.n_groups),
                wins=int((column > 0).sum()),
                losses=int((column < 0).sum()),
                ties=int((column == 0).sum()),
            )
        )
    return results


def minimum_detectable_effect(se: float | None, n_groups: int) -> float | None:
    """The smallest true difference found at the 5% level with 80% power: (t_{0.975} + t_{0.8}) se on G - 1 degrees of freedom.

    None without a standard error, and where it is 0: sameness on every question says nothing about what could be seen. Source: Bloom,
    Evaluation Review 19 (1995) 547-556.
    """
    if not se or n_groups < 2:
        return None
    return float((stats.t.ppf(1 - LEVEL / 2, n_groups - 1) + stats.t.ppf(POWER, n_groups - 1)) * se)


def mcnemar_exact(wins: int, losses: int) -> float:
    """Exact two-sided McNemar test of two 0/1 scores: whether wins among the discordant questions are Binomial(1/2).

    It takes questions for independent; beside clustered questions it is the optimistic figure. Source: McNemar, Psychometrika 12 (1947) 153-157.
    """
    return 1.0 if wins + losses == 0 else float(stats.binomtest(wins, wins + losses, 0.5).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment over a family; None (not tested) is outside it. Source: Holm, Scand. J. Statist. 6 (1979) 65-70."""
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = highest
    return adjusted


def verdict(
    delta: float | None, ci95: Interval | None, p_holm: float | None, margin: float, floor: float = 0.0
) -> Verdict:
    """What may be said of a difference.

    tied       the 95% interval lies wholly within plus or minus the margin, so that the reader sees it in the interval shown: two one-sided
               tests at 2.5% each, stricter than the customary 5%. Source: Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987) 657-680.
    better     the interval is above 0, Holm's p is at most 5%, and the difference is larger than the noise floor; worse: below 0.
    undecided  anything else: the data do not tell.

    A difference that is real and within the margin is tied: it does not matter.
    """
    if delta is None or ci95 is None:
        return "undecided"
    if -margin <= ci95[0] and ci95[1] <= margin:
        return "tied"
    if p_holm is not None and p_holm <= LEVEL and abs(delta) > floor:
        if ci95[0] > 0:
            return "better"
        if ci95[1] < 0:
            return "worse"
    return "undecided"
