"""Intervals, paired tests and verdicts for scores that come in groups (see `harness.analysis.resampling` for the notation)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from harness.analysis import families
from harness.analysis.resampling import (
    MOST_GROUPS,
    Floats,
    Totals,
    bootstrap_means,
    cluster_se,
    jackknife_se,
    satterthwaite_df,
    sign_flip_p,
)
from harness.records import Interval, Verdict

LEVEL = 0.05
"""Two-sided level of every interval and test."""
FEW = 10
"""With fewer groups than this, or with fewer that differ, the bootstrap distribution is too coarse for its 2.5% tails."""
RARE = 20
"""If fewer than min(20, G/2) groups hold a score other than 0 (or than 1), or only one does, the mean is near that end: use Wilson."""
WORST_CASE_WEIGHT = 2.0
"""Prior weight, in groups, of the largest design effect where a mean is near 0 or 1 (see `shrunken_n`)."""
DIFFERENCE_ICC = 0.3
"""Intraclass correlation of wins, and of losses, that is assumed where too few groups differ to estimate it."""


@dataclass(frozen=True)
class Estimate:
    """A mean and how well it is known. Values are None where nothing was scored, the rest where one group is not enough for a variance."""

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
    """Two-sided, by sign flips of whole groups, of this difference alone."""
    p_adjusted: float | None
    """The same, corrected for the family of tests that the difference belongs to."""
    mde: float | None
    """Minimum detectable effect of the verdict, including the correction for the family."""
    wins: int
    losses: int
    ties: int


# ---------------------------------------------------------------------------------------------------------- intervals


def mean_intervals(
    values: ArrayLike, groups: Sequence[Any] | NDArray[Any], *, resamples: int, seed: int
) -> list[Estimate]:
    """The mean of each column of scores in 0..1, with its 95% interval.

    Cluster bootstrap, but Wilson where the mean is at or near 0 or 1 (see `RARE`): resampling underrepresents rare outcomes and cannot produce unseen
    ones. For graded scores Wilson's interval errs on the wide side, since no score in 0..1 varies more than a rate.

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
        rarer = int(min(np.count_nonzero(sums > 0), np.count_nonzero(sums < counts)))
        if estimate.value is None or estimate.ci95 is None:
            continue
        if rarer >= min(RARE, estimate.n_groups / 2) and rarer != 1:
            continue
        measured = effective_n(estimate.value, deviation[k], estimate.n, effective[k])
        size = shrunken_n(measured, effective[k], rarer)
        degrees = max(1.0, effective[k] - 1)
        low, high = wilson(estimate.value, size, degrees=degrees)
        # One right answer more never lowers the upper end, nor does one fewer raise the lower.
        if estimate.value < 0.5:
            high = max(high, wilson(0.0, effective[k], degrees=degrees)[1])
        else:
            low = min(low, wilson(1.0, effective[k], degrees=degrees)[0])
        ci95 = (low, high)
        intervals[k] = Estimate(
            estimate.value, estimate.se, ci95, estimate.n, estimate.n_groups, f"Wilson, effective n {size:.1f}"
        )
    return intervals


def _intervals(totals: Totals, bounds: Interval, *, resamples: int, seed: int) -> list[Estimate]:
    """Expanded percentile intervals of each column, scaled to the jackknife's standard error.

    A plain percentile interval is too short by sqrt((G-1)/G) and by the normal quantile where Student's t is due: the tails are taken at
    Phi(-sqrt(G/(G-1)) t_{0.975, G-1}) instead of 2.5% (Hesterberg, The American Statistician 69 (2015) 371-386, section 4.3). It is still too short
    where a few groups hold much of the data, by the ratio of CR3 to CR1, so both halves are stretched by `jackknife_se / cluster_se`.
    Simulated coverage is in tests/test_statistics.py. With resamples=0: m +- t_{0.975, G-1} jackknife_se; with fewer than `FEW` groups the same
    with Satterthwaite's degrees of freedom.
    """
    means, errors, robust = totals.mean, cluster_se(totals), jackknife_se(totals)
    groups, counts = totals.n_groups, totals.counts.sum(axis=0).astype(int)
    distribution = (
        bootstrap_means(totals, resamples=resamples, seed=seed) if resamples and groups.max(initial=0) >= FEW else None
    )
    degrees = satterthwaite_df(totals) if groups.min(initial=FEW) < FEW else groups - 1.0
    estimates: list[Estimate] = []
    for k, (value, n_groups) in enumerate(zip(means, groups, strict=True)):
        if n_groups < 2:
            alone = None if n_groups == 0 else float(value)
            estimates.append(Estimate(alone, None, None, int(counts[k]), int(n_groups), "none: fewer than 2 groups"))
            continue
        critical = float(stats.t.ppf(1 - LEVEL / 2, n_groups - 1))
        if n_groups < FEW:
            critical = float(stats.t.ppf(1 - LEVEL / 2, degrees[k]))
        if distribution is None or n_groups < FEW:
            low, high = value - critical * robust[k], value + critical * robust[k]
            method = f"t over {n_groups} groups" + (f", {degrees[k]:.1f} degrees of freedom" if n_groups < FEW else "")
        else:
            tail = float(stats.norm.cdf(-math.sqrt(n_groups / (n_groups - 1)) * critical))
            stretch = robust[k] / errors[k] if errors[k] > 0 else 1.0
            low, high = value + stretch * (np.quantile(distribution[:, k], [tail, 1 - tail]) - value)
            method = f"cluster bootstrap, {resamples} resamples of {n_groups} groups"
            method += f" pooled into {MOST_GROUPS}" if n_groups > MOST_GROUPS else ""
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
    """Effective number of independent questions: rate (1 - rate) / se^2, between 1 and n.

    At 0 or 1 there is no spread from which clustering could be measured, so the worst case is assumed, each group counting as one question: Kish's
    effective number of groups. Source: Kish, Survey Sampling (1965), section 8.2.
    """
    if not (0 < rate < 1 and se > 0):
        return float(effective_groups)
    return float(min(max(rate * (1 - rate) / se**2, 1.0), n))


def shrunken_n(measured: float, effective_groups: float, rarer: int) -> float:
    """The effective number of questions of a mean near 0 or 1, between the measured one and the worst case.

    1/n = (r / n_measured + c / G_eff) / (r + c), with r the groups that hold the rarer outcome and c = `WORST_CASE_WEIGHT`. One or two groups cannot
    show the correlation within groups: without this, one right answer instead of none would make the interval five times shorter. Simulated coverage:
    tests/test_statistics.py.
    """
    return (rarer + WORST_CASE_WEIGHT) / (rarer / measured + WORST_CASE_WEIGHT / effective_groups)


# -------------------------------------------------------------------------------------------------------------- pairs


def paired_differences(
    left: ArrayLike,
    right: ArrayLike,
    groups: Sequence[Any] | NDArray[Any],
    *,
    resamples: int,
    seed: int,
    family: Sequence[int] | None = None,
    unseen: bool = True,
) -> list[Difference]:
    """Left minus right, question by question, over the questions that both scored.

    Args:
        left, right: scores in 0..1 of shape (n, K) or (n,); column k of one is paired with column k of the other.
        groups: n labels.
        resamples: bootstrap samples, and sign flips.
        seed: of both.
        family: the family of tests that each column belongs to, K labels; None: each is alone.
        unseen: widen the interval where fewer than `FEW` groups differ, to allow for losses in groups that were not sampled.
    """
    differences = np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)
    differences = differences[:, None] if differences.ndim == 1 else differences
    totals = Totals.of(differences, groups)
    estimates = _intervals(totals, (-1.0, 1.0), resamples=resamples, seed=seed)
    for k, ci95 in _few_differ(differences, groups).items() if unseen else ():
        estimates[k] = _united(estimates[k], ci95)
    flips = max(1, resamples)
    p_values = sign_flip_p(totals, flips=flips, seed=seed + 1)
    # Alone, a test needs no correction, and its critical value is Student's, as a flipped statistic.
    quantile = stats.t.ppf(1 - LEVEL / 2, np.maximum(totals.n_groups - 1, 1))
    adjusted, critical = p_values, quantile * np.sqrt(totals.n_groups / (totals.n_groups - 1 + quantile**2))
    if family is not None:
        adjusted = np.empty(len(estimates))
        for label in dict.fromkeys(family):
            members = np.asarray(family) == label
            sums, counts = totals.sums[:, members], totals.counts[:, members]
            found = families.adjust(Totals(sums, counts), flips=flips, seed=seed + 1)
            adjusted[members], critical[members] = found.p, found.critical
    return [
        Difference(
            **vars(estimate),
            p=None if estimate.n == 0 else float(p_values[k]),
            p_adjusted=None if estimate.n == 0 else float(adjusted[k]),
            mde=families.detectable(estimate.se, estimate.n_groups, float(critical[k])),
            wins=int((differences[:, k] > 0).sum()),
            losses=int((differences[:, k] < 0).sum()),
            ties=int((differences[:, k] == 0).sum()),
        )
        for k, estimate in enumerate(estimates)
    ]


def _few_differ(differences: Floats, groups: Sequence[Any] | NDArray[Any]) -> dict[int, Interval]:
    """Column -> interval of the difference, for the columns of which fewer than `FEW` groups differ.

    With G groups of which none or few differ, resampling gives an interval of width 0 or nearly so, although the sample may have missed losses in
    whole groups. The difference is the win rate less the loss rate; each has Wilson's interval on N / (1 + (sum n_g^2 / N - 1) icc) questions, with
    `DIFFERENCE_ICC`, and the two are combined by MOVER: Newcombe, Statistics in Medicine 17 (1998) 873-890; Zou and Donner, ibid. 27 (2008) 1693-1702.
    """
    gains, losses = np.fmax(differences, 0.0), np.fmax(-differences, 0.0)
    gains[np.isnan(differences)] = losses[np.isnan(differences)] = np.nan
    won, lost = Totals.of(gains, groups), Totals.of(losses, groups)
    found: dict[int, Interval] = {}
    for k in range(differences.shape[1]):
        counts = won.counts[:, k]
        n = counts.sum()
        if np.count_nonzero((won.sums[:, k] > 0) | (lost.sums[:, k] > 0)) >= FEW or np.count_nonzero(counts) < 2:
            continue
        size = n / (1 + max(0.0, (counts**2).sum() / n - 1) * DIFFERENCE_ICC)
        win, loss = won.sums[:, k].sum() / n, lost.sums[:, k].sum() / n
        (win_low, win_high), (loss_low, loss_high) = wilson(win, size), wilson(loss, size)
        found[k] = (
            float(win - loss - math.hypot(win - win_low, loss_high - loss)),
            float(win - loss + math.hypot(win_high - win, loss - loss_low)),
        )
    return found


def _united(estimate: Estimate, ci95: Interval) -> Estimate:
    if estimate.ci95 is None:
        return estimate
    low, high = min(estimate.ci95[0], ci95[0]), max(estimate.ci95[1], ci95[1])
    method = f"{estimate.method}, and MOVER of the win and loss rates (fewer than {FEW} groups differ)"
    return replace(estimate, ci95=(max(-1.0, low), min(1.0, high)), method=method)


def mcnemar_exact(wins: int, losses: int) -> float:
    """Exact two-sided McNemar test of two 0/1 scores: whether wins among the discordant questions are Binomial(1/2).

    It assumes independent questions, and is optimistic for clustered ones. Source: McNemar, Psychometrika 12 (1947) 153-157.
    """
    return 1.0 if wins + losses == 0 else float(stats.binomtest(wins, wins + losses, 0.5).pvalue)


def verdict(
    delta: float | None, ci95: Interval | None, p_adjusted: float | None, margin: float, *, identical: bool = False
) -> Verdict:
    """What may be said of a difference.

    identical  both gave the same text on all n questions: a fact about these questions, not an inference about others.
    tied       the 95% interval lies wholly within plus or minus the margin, so that the reader sees it in the interval shown: two one-sided
               tests at 2.5% each, stricter than the customary 5%. Source: Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987) 657-680.
    better     the interval is above 0, and p, corrected for the family of tests, is at most 5%; worse: below 0.
    undecided  anything else: the data do not decide. A real difference within the margin is tied: it is too small to matter.
    """
    if delta is None or ci95 is None:
        return "undecided"
    if identical:
        return "identical"
    if -margin <= ci95[0] and ci95[1] <= margin:
        return "tied"
    if p_adjusted is not None and p_adjusted <= LEVEL:
        if ci95[0] > 0:
            return "better"
        if ci95[1] < 0:
            return "worse"
    return "undecided"
