"""Non-inferiority of many paired differences at once: the verdict on a change in CI.

A difference (now minus before, question by question, in groups) is judged on its 95% interval from `harness.analysis.statistics`:

    pass          the interval excludes a loss of more than the margin. A real loss within the margin passes: it is tolerated.
    improvement   passes, lies wholly above 0, and p is at most 5%.
    regression    the interval lies wholly below what is tolerated, its centre is beyond the margin, and p is at most 5%.
    inconclusive  anything else: the questions are too few to exclude a loss of the margin, or to be sure of one.

Passing needs every difference to pass, so their intervals need no correction (intersection-union: Berger, Technometrics 24 (1982) 295-300). One
regression is enough to fail, so with many metrics and variants false alarms would add up: `family_p` is corrected for all of them. The correction
uses the largest statistic of the family, not Holm: seven formats of one model are right and wrong together, and Holm, which allows for independent
tests, would be stricter than needed. It is one-sided: only losses fail, so the whole 5% is available for them.

Another training of the same recipe, with another seed or its rows in another order, scores differently, on all questions together: that is not
sampling of the questions, and no interval over them covers it. A baseline records it as the means of further trainings (`SeedBound`). A loss is a
regression only if it lies below the mean of the trainings by more than sqrt(h^2 + margin^2), h the one-sided 95% prediction bound for one more
training; a gain is an improvement only if it lies above by more than h. With more trainings the bound converges to 1.64 standard deviations, whereas
their extremes would keep growing.

Against the baseline the tested hypothesis is no loss (tolerated = 0); a format's loss to 16-bit is expected, and only one that is surely above the
limit is a breach (tolerated = the limit): otherwise a format that loses slightly less than allowed would fail at times. Error rates:
benchmarks/gate_power.py, docs/gate.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from harness.analysis import resampling, statistics
from harness.analysis.resampling import Floats, Totals
from harness.records import GateVerdict, Interval

ROUNDING = 1e-9
"""Sums of scores differ in the last bits; a loss of exactly the margin is within it."""


@dataclass(frozen=True)
class SeedBound:
    """The range in which the mean of one more training of the baseline's recipe lies, relative to the baseline's own mean. Zeros: not known."""

    centre: float = 0.0
    """Mean of all trainings, less the baseline's own."""
    half: float = 0.0
    """Half width of the one-sided 95% prediction bound below or above the centre."""

    @classmethod
    def of(cls, means: Sequence[float]) -> SeedBound:
        """The bound that T means give, the baseline's own first: their mean +- t_{0.95, T-1} s sqrt(1 + 1/T); zeros for one.

        Source: Hahn and Meeker, Statistical Intervals (1991), section 4.8 (normal distribution).
        """
        if len(means) < 2:
            return cls()
        values = np.asarray(means)
        quantile = float(stats.t.ppf(1 - statistics.LEVEL, len(means) - 1))
        half = quantile * float(values.std(ddof=1)) * math.sqrt(1 + 1 / len(means))
        return cls(float(values.mean() - values[0]), half)


NOT_KNOWN = SeedBound()


@dataclass(frozen=True)
class Column:
    """One metric of one variant, before and after.

    Args:
        before, after: scores of shape (n,); NaN: unscored.
        margin: the loss that must be excluded to pass.
        tolerated: the loss (0..margin) that must be exceeded, surely, to be a regression.
        seeds: the range of one more training of the same recipe.
    """

    before: Floats
    after: Floats
    margin: float
    tolerated: float = 0.0
    seeds: SeedBound = NOT_KNOWN


@dataclass(frozen=True)
class Outcome:
    """The outcome of a column; the statistics are None where no question was scored on both sides, or in one group only."""

    verdict: GateVerdict
    before: float | None
    """Mean over the questions scored on both sides; `after` likewise."""
    after: float | None
    delta: float | None
    ci95: Interval | None
    p: float | None
    n: int


def outcomes(
    columns: Sequence[Column],
    groups: Sequence[Any] | NDArray[Any],
    *,
    resamples: int,
    seed: int,
    level: float = statistics.LEVEL,
    p_values: Floats | None = None,
) -> list[Outcome]:
    """Judges all columns as one family.

    Args:
        groups: n labels.
        resamples: bootstrap samples, and sign flips.
        seed: of both.
        level: of the family: how often a harmless change may be found a loss.
        p_values: of the family, shape (K,), found elsewhere (`kind_p`): intervals are t intervals then, for many columns of few questions.
    """
    if not columns:
        return []
    before, after = (np.column_stack([getattr(column, side) for column in columns]) for side in ("before", "after"))
    before, after = np.where(np.isnan(after), np.nan, before), np.where(np.isnan(before), np.nan, after)
    # A commit that changes no answer passes: the gate is about these questions, `tied` about all questions like them.
    found = statistics.paired_differences(
        after, before, groups, resamples=resamples if p_values is None else 0, seed=seed, unseen=False
    )
    tolerated = np.array([column.tolerated for column in columns])
    given = p_values is not None
    if p_values is None:
        p_values = family_p(Totals.of(after - before + tolerated, groups), flips=resamples, seed=seed + 1)
    means = [Totals.of(side, groups).mean for side in (before, after)]
    return [
        Outcome(
            verdict=judge(d.value, d.ci95, p, column.margin, column.tolerated, column.seeds, level, by_p=given),
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
    seeds: SeedBound = NOT_KNOWN,
    level: float = statistics.LEVEL,
    by_p: bool = False,
) -> GateVerdict:
    """The verdict on one difference, as defined at the head of this module. With nothing scored on both sides it is a regression, never a pass.

    Args:
        by_p: p alone decides on a loss, without the interval: for kinds with so few groups that their own interval is useless.
    """
    if delta is None:
        return "regression"
    if ci95 is None:
        return "inconclusive"
    sure = p <= level
    from_centre = delta - seeds.centre
    if ci95[0] >= -margin - ROUNDING:
        return (
            "improvement" if ci95[0] > ROUNDING and sure and min(delta, from_centre - seeds.half) > ROUNDING else "pass"
        )
    lost = sure and (by_p or ci95[1] < -tolerated - ROUNDING) and delta < -margin - ROUNDING
    if lost and from_centre < -math.hypot(margin, seeds.half) - ROUNDING:
        return "regression"
    return "inconclusive"


def family_p(totals: Totals, *, flips: int, seed: int) -> Floats:
    """One-sided p-values of K mean differences being 0, in the direction of each difference, corrected for all K, shape (K,).

    Signs of whole groups are flipped for all columns together, and each column's sum S_g / sqrt(sum S_g^2), whose denominator no flip changes, is
    compared with the largest of the flipped family, so that the correction reflects the correlation of the columns. p is exactly 1 for a column of
    zeros. Sources: Westfall and Young, Resampling-Based Multiple Testing (1993), section 2.3 (single step); by sign flips: Winkler et al., NeuroImage
    92 (2014) 381-397.
    """
    totals = totals.pooled()
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
        # Signs are symmetric: the largest statistic of a flip serves for gains, and the smallest, mirrored, for losses.
        reached += ((signs @ scaled).max(axis=1)[:, None] >= threshold).sum(axis=0)
    return np.where(scale > 0, (1 + reached) / (1 + flips), 1.0)


def kind_p(
    changes: Floats,
    groups: Sequence[Any] | NDArray[Any],
    kinds: Sequence[NDArray[np.bool_]],
    *,
    permutations: int,
    seed: int,
) -> Floats:
    """Whether a kind of question lost more than the same number of groups drawn from all kinds: corrected p-values, shape (kinds, K).

    Kinds are shuffled over the groups. A kind's mean change times the root of its number of questions, standardised by its mean and standard
    deviation over the shuffles, is compared with the lowest of the whole family in each shuffle. Sign flips cannot do this: a kind of 19 questions in
    6 groups has only 64 of them. An equal loss on all kinds is not found here, but in the mean over all questions. Source: Westfall and Young,
    Resampling-Based Multiple Testing (1993), section 2.3 (single step), with permutations.

    Args:
        changes: after minus before, shape (n, K); NaN: unscored.
        groups: n labels. A group of several kinds counts as one of each.
        kinds: for each kind its questions, as n booleans; no question is of two.
    """
    label = np.full(len(changes), -1)
    for k, rows in enumerate(kinds):
        label[rows] = k
    cells, first = np.unique([f"{group}\0{k}" for group, k in zip(groups, label, strict=True)], return_inverse=True)
    totals = Totals.of(changes, first)
    of_cell = np.empty(len(cells), dtype=np.int64)
    of_cell[first] = label
    both = np.hstack([totals.sums, totals.counts])
    columns = changes.shape[1]

    def rooted_means(labels: NDArray[np.int64]) -> Floats:
        sums = np.stack([(labels == k) @ both for k in range(len(kinds))], axis=-2)
        root = np.sqrt(sums[..., columns:])
        # The root keeps a shuffle that gives a kind few questions from counting as a large change.
        return np.divide(sums[..., :columns], root, out=np.zeros_like(root), where=root > 0)

    generator = np.random.default_rng(seed)
    shuffled = rooted_means(generator.permuted(np.tile(of_cell, (permutations, 1)), axis=1))
    centre, spread = shuffled.mean(axis=0), shuffled.std(axis=0)
    moved = spread > ROUNDING

    def scaled(values: Floats) -> Floats:
        return np.divide(values - centre, spread, out=np.zeros_like(values), where=np.broadcast_to(moved, values.shape))

    lowest, seen = scaled(shuffled).min(axis=(1, 2)), scaled(rooted_means(of_cell))
    reached = (lowest[:, None, None] <= seen + ROUNDING).sum(axis=0)
    return np.where(moved, (1 + reached) / (1 + permutations), 1.0)
