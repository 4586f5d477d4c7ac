"""Non-inferiority of many paired differences at once: what a change in CI may be said to have done.

A difference (now minus before, question by question, in groups) is judged on its 95% interval from `harness.analysis.statistics`:

    pass          the interval excludes a loss of more than the margin. A real loss within the margin passes: it is tolerated.
    improvement   passes, lies wholly above 0, and p is at most 5%.
    regression    the interval lies wholly below what is tolerated, its centre is beyond the margin, and p is at most 5%.
    inconclusive  anything else: the questions are too few to exclude a loss of the margin, or to be sure of one.

Passing needs every difference to pass, so their intervals need no correction (intersection-union: Berger, Technometrics 24 (1982) 295-300).
One regression is enough to fail, so that is where many metrics and variants would cry wolf: `family_p` is corrected for all of them. By the
largest statistic of the family, not by Holm: seven formats of one model are right and wrong together, and Holm, which must allow for their being
independent, would ask more of each than one that is alone. And to one side: only losses fail, so the whole 5% may be spent on them.

Another training of the same recipe, with another seed or its rows in another order, scores otherwise, and all questions together: that is no chance of the
questions, and no interval over them covers it. A baseline knows of it by the means of further trainings (`seed_spread`). A loss is a regression only if it is beyond
the margin below the lowest of them, a gain an improvement only above the highest: of R + 1 trainings that differ in nothing but their seed, each is as likely
the lowest, so that a harmless change is below all R in one case of R + 1 at most, whatever the distribution (the distribution-free prediction bound: Hahn
and Meeker, Statistical Intervals (1991), chapter 5), and the margin and the paired test leave less.

Against the baseline any loss is against the hypothesis (tolerated = 0); a format's loss to 16-bit is expected, and only one that is surely above the limit is a
breach (tolerated = the limit): otherwise a format that loses a little less than it may would fail now and then.

How often all this errs: benchmarks/gate_power.py, docs/gate.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.analysis import resampling, statistics
from harness.analysis.resampling import Floats, Totals
from harness.records import GateVerdict, Interval

ROUNDING = 1e-9
"""Sums of scores differ in the last bits; a loss of exactly the margin is within it."""


@dataclass(frozen=True)
class Column:
    """One metric of one variant, before and after.

    Args:
        before, after: scores of shape (n,); NaN: unscored.
        margin: the loss that must be excluded to pass.
        tolerated: the loss (0..margin) that must be exceeded, surely, to be a regression.
        seed_spread: how far below (<= 0) and above (>= 0) the mean before other trainings of the same recipe came out.
    """

    before: Floats
    after: Floats
    margin: float
    tolerated: float = 0.0
    seed_spread: Interval = (0.0, 0.0)


@dataclass(frozen=True)
class Outcome:
    """What may be said of a column; None where no question was scored on both sides, or by one group alone."""

    verdict: GateVerdict
    before: float | None
    """Mean over the questions scored on both sides; `after` likewise."""
    after: float | None
    delta: float | None
    ci95: Interval | None
    p: float | None
    n: int


def outcomes(
    columns: Sequence[Column], groups: Sequence[Any] | NDArray[Any], *, resamples: int, seed: int
) -> list[Outcome]:
    """Judges all columns as one family.

    Args:
        groups: n labels.
        resamples: bootstrap samples, and sign flips.
        seed: of both.
    """
    if not columns:
        return []
    before, after = (np.column_stack([getattr(column, side) for column in columns]) for side in ("before", "after"))
    before, after = np.where(np.isnan(after), np.nan, before), np.where(np.isnan(before), np.nan, after)
    # A commit that changes no answer passes: the gate speaks of these questions, `tied` of all questions like them.
    found = statistics.paired_differences(after, before, groups, resamples=resamples, seed=seed, unseen=False)
    tolerated = np.array([column.tolerated for column in columns])
    p_values = family_p(Totals.of(after - before + tolerated, groups), flips=resamples, seed=seed + 1)
    means = [Totals.of(side, groups).mean for side in (before, after)]
    return [
        Outcome(
            verdict=judge(d.value, d.ci95, p, column.margin, column.tolerated, column.seed_spread),
            before=float(means[0][k]) if d.n else None,
            after=float(means[1][k]) if d.n else None,
            delta=d.value,
            ci95=d.ci95,
            p=p if d.n else None,
            n=d.n,
        )
        for k, (column, d, p) in enumerate(zip(columns, found, p_values.tolist(), strict=True))
    ]


def judge(
    delta: float | None,
    ci95: Interval | None,
    p: float,
    margin: float,
    tolerated: float = 0.0,
    seed_spread: Interval = (0.0, 0.0),
) -> GateVerdict:
    """The verdict on one difference, as the head of this module says; nothing scored on both sides is a regression, never a pass."""
    if delta is None:
        return "regression"
    if ci95 is None:
        return "inconclusive"
    sure = p <= statistics.LEVEL
    if ci95[0] >= -margin - ROUNDING:
        return "improvement" if ci95[0] > ROUNDING and sure and delta > seed_spread[1] + ROUNDING else "pass"
    if sure and ci95[1] < -tolerated - ROUNDING and delta < seed_spread[0] - margin - ROUNDING:
        return "regression"
    return "inconclusive"


def family_p(totals: Totals, *, flips: int, seed: int) -> Floats:
    """One-sided p-values of K mean differences being 0, to the side on which each lies, corrected for there being K, shape (K,).

    Signs of whole groups are flipped for all columns together, and each column's sum S_g / sqrt(sum S_g^2), which no flip gives another
    denominator, is held against the largest of the flipped family: the correction allows for how alike the columns are. p is exactly 1 for a column of zeros.
    Sources: Westfall and Young, Resampling-Based Multiple Testing (1993), section 2.3 (single step); by sign flips: Winkler et al., NeuroImage 92 (2014) 381-397.
    """
    n_groups, columns = totals.sums.shape
    scale = np.sqrt((totals.sums**2).sum(axis=0))
    scaled = np.divide(totals.sums, scale, out=np.zeros_like(totals.sums), where=scale > 0)
    threshold = np.abs(scaled.sum(axis=0)) - ROUNDING
    reached = np.zeros(columns, dtype=np.int64)
    generator = np.random.default_rng(seed)
    step = max(1, resampling.CHUNK // n_groups)
    for start in range(0, flips, step):
        signs = (
            generator.integers(0, 2, size=(min(step, flips - start), n_groups), dtype=np.int8).astype(np.float64) * 2
            - 1
        )
        # Signs are symmetric: the largest of a flip is as good a draw for gains as the smallest, mirrored, is for losses.
        reached += ((signs @ scaled).max(axis=1)[:, None] >= threshold).sum(axis=0)
    return np.where(scale > 0, (1 + reached) / (1 + flips), 1.0)
