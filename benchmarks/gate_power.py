"""The gate's error rates, by simulation: harmless changes that fail, true losses that are caught.

python benchmarks/gate_power.py            the table of docs/gate.md, some two minutes
python benchmarks/gate_power.py 1000       1,000 simulated changes a row instead of 200
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from harness.analysis.resampling import Floats
from harness.gating.differences import BEST_MARGINS, KIND_LEVEL, LEVEL
from harness.gating.noninferiority import Column, SeedBound, kind_p, outcomes

QUESTIONS = 280
RUNS = 200
RESAMPLES = 400
RIGHT = 0.65
"""Mean share of right answers."""
MARGIN = 0.02
KINDS = (0.35, 0.25, 0.2, 0.2)
"""Share of the groups in each of the large kinds of question; one more kind has about 20 questions."""
SMALL_KIND = 19
LEAST = 15
"""Fewest questions of a kind for the gate to check it."""
MEASURED_SPREAD = 0.0125
"""`seed_spread` at which the standard deviation of exact match between trainings is 1.7 to 1.9 points; of the committed baseline's five it is 1.5 to 2.1."""
FLIPS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.04)
"""Variant -> the share of answers that the format changes at random."""
PARTIAL = (0.35, 0.4)
"""Graded metric -> the most that a wrong answer scores."""


def simulated(
    seed: int,
    loss: float = 0.0,
    *,
    n: int = QUESTIONS,
    churn: float = 0.15,
    only: int | None = None,
    lost_kind: int | None = None,
    trainings: int = 1,
    seed_spread: float = 0.0,
) -> tuple[list[Column], list[Column], list[NDArray[np.bool_]], NDArray[np.int64]]:
    """Simulated scores of six variants before and after a change: exact match and two graded metrics.

    Groups have 1 to 12 questions (mean 3) and their own chance of a right answer. A loss forgets some groups more than others.

    Args:
        loss: true loss of exact match, 0..1.
        churn: share of the groups that two trainings answer independently of each other.
        only: the one variant that loses; None: all.
        lost_kind: index in `KINDS` of a kind whose answers are all lost as well; `len(KINDS)` is the small kind.
        trainings: number of trainings in the baseline, its own included.
        seed_spread: standard deviation, between trainings, of the share of answers that the seed makes right or wrong, 0..1.

    Returns:
        The columns over all questions, the columns by kind, a mask (n,) of the questions of each kind, and the group of each question (n,).
    """
    rng = np.random.default_rng([seed, trainings])
    sizes: list[int] = []
    while sum(sizes) < n:
        sizes.append(min(int(rng.geometric(1 / 3)), 12, n - sum(sizes)))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    kind_of = rng.choice(len(KINDS), len(sizes), p=KINDS)
    drawn = rng.permutation(len(sizes))
    kind_of[drawn[: 1 + int(np.searchsorted(np.cumsum(np.take(sizes, drawn)), SMALL_KIND))]] = len(KINDS)
    kinds = kind_of[groups]
    level = rng.beta(2 * RIGHT, 2 * (1 - RIGHT), len(sizes))[groups]
    usual = rng.random(n) < level
    runs = []
    for _ in range(trainings + 1):
        redrawn = (rng.random(len(sizes)) < 1 - (1 - churn) ** 0.5)[groups]
        right = np.where(redrawn, rng.random(n) < level, usual)
        shift = rng.normal(0, seed_spread)
        changed = rng.random(n) < abs(shift) / (RIGHT if shift < 0 else 1 - RIGHT)
        runs.append(np.where(changed, shift > 0, right))
    share = loss / RIGHT
    forgotten = rng.random(n) < (rng.beta(1.5 * share, 1.5 * (1 - share), len(sizes))[groups] if loss else 0)
    scores: list[list[Floats]] = []
    for variant, flips in enumerate(FLIPS):
        answers = [np.where(rng.random(n) < flips, rng.random(n) < RIGHT, right) for right in runs]
        if only in (None, variant):
            answers[-1] = answers[-1] & ~forgotten & (kinds != (-1 if lost_kind is None else lost_kind))
        scores.append([a.astype(np.float64) for a in answers])
        scores += [[np.where(a, 1.0, most * rng.random(n)) for a in answers] for most in PARTIAL]
    many = [kinds == kind for kind in range(len(KINDS) + 1) if (kinds == kind).sum() >= LEAST]
    by_kind = [_judged([np.where(rows, s, np.nan) for s in column]) for rows in many for column in scores]
    return [_judged(column) for column in scores], by_kind, many, groups


def _judged(scores: list[Floats]) -> Column:
    before, *_, after = scores
    return Column(before, after, MARGIN, seeds=SeedBound.of([float(np.nanmean(training)) for training in scores[:-1]]))


def _fails(
    columns: list[Column],
    by_kind: list[Column],
    kinds: list[NDArray[np.bool_]],
    groups: NDArray[np.int64],
    seed: int,
) -> bool:
    """Whether any check of the gate is a regression: the two families that `harness.gating.differences` makes."""
    found = outcomes(columns, groups, resamples=RESAMPLES, seed=seed, level=LEVEL)
    changes = np.column_stack([column.after - column.before for column in columns])
    p_values = kind_p(changes, groups, kinds, permutations=RESAMPLES, seed=seed + 2).ravel()
    found += outcomes(by_kind, groups, resamples=RESAMPLES, seed=seed, level=KIND_LEVEL, p_values=p_values)
    return any(outcome.verdict == "regression" for outcome in found)


def share_failed(runs: int, loss: float = 0.0, **setting: float | None) -> float:
    """The share of simulated changes in which any check of the gate is a regression."""
    failed = 0
    for seed in range(runs):
        failed += _fails(*simulated(seed, loss, **setting), seed)  # pyright: ignore[reportArgumentType]
    return failed / runs


MEASURED = {"seed_spread": MEASURED_SPREAD}
WIDE = {"seed_spread": 0.02}
TABLE: list[tuple[str, float, dict[str, float]]] = [
    ("harmless", 0.0, {}),
    ("harmless, 40% of the groups answered independently", 0.0, {"churn": 0.4}),
    ("1 point lost by all variants", 0.01, {}),
    ("2 points (the margin) lost by all", 0.02, {}),
    ("5 points lost by all", 0.05, {}),
    ("10 points lost by all", 0.10, {}),
    ("10 points lost by all, 40% answered independently", 0.10, {"churn": 0.4}),
    ("10 points lost by the steadiest variant alone", 0.10, {"only": 0}),
    ("10 points lost by the noisiest variant alone", 0.10, {"only": 5}),
    ("one kind of some 20 questions lost wholly, nothing else", 0.0, {"lost_kind": 4}),
    ("one kind of some 20 questions lost wholly by one variant", 0.0, {"lost_kind": 4, "only": 0}),
    ("harmless, another seed, baseline of 1 training", 0.0, MEASURED),
    ("harmless, another seed, baseline of 3", 0.0, {**MEASURED, "trainings": 3}),
    ("harmless, another seed, baseline of 5", 0.0, {**MEASURED, "trainings": 5}),
    ("harmless, another seed, baseline of 20", 0.0, {**MEASURED, "trainings": 20}),
    ("harmless, another seed of a wider spread (2.4 points), baseline of 5", 0.0, {**WIDE, "trainings": 5}),
    ("10 points lost by all, another seed, baseline of 3", 0.10, {**MEASURED, "trainings": 3}),
    ("10 points lost by all, another seed, baseline of 5", 0.10, {**MEASURED, "trainings": 5}),
    ("10 points lost by all, another seed, baseline of 20", 0.10, {**MEASURED, "trainings": 20}),
    ("10 points lost by all, another seed of a wider spread, baseline of 5", 0.10, {**WIDE, "trainings": 5}),
    ("20 points lost by all, another seed, baseline of 3", 0.20, {**MEASURED, "trainings": 3}),
]


def share_of_drifts_stopped(runs: int, loss: float = 0.015, releases: int = 6, *, remembered: bool = True) -> float:
    """The share of release chains that fail before their end; each release loses `loss`, and the baseline is renewed after it.

    Args:
        remembered: the gate also compares each release with the best mean ever.
    """
    stopped = 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        sizes = np.minimum(rng.geometric(1 / 3, QUESTIONS), 12)
        groups = np.repeat(np.arange(len(sizes)), sizes)[:QUESTIONS]
        level = rng.beta(2 * RIGHT, 2 * (1 - RIGHT), len(sizes))[groups]
        before, best = (rng.random(QUESTIONS) < level).astype(np.float64), 0.0
        for _ in range(releases):
            best = max(best, float(before.mean()))
            after = np.where(rng.random(QUESTIONS) < loss / RIGHT, 0.0, before)
            columns = [Column(before, after, MARGIN)]
            if remembered and best > before.mean():
                columns.append(Column(before + best - before.mean(), after, BEST_MARGINS * MARGIN))
            if any(
                o.verdict == "regression"
                for o in outcomes(columns, groups, resamples=RESAMPLES, seed=seed, level=LEVEL)
            ):
                stopped += 1
                break
            before = after
    return stopped / runs


def main(runs: int) -> None:
    print(
        f"| simulated change ({QUESTIONS} questions, {len(FLIPS)} variants, 3 metrics) | fails, of {runs} |\n| --- | ---: |"
    )
    for name, loss, setting in TABLE:
        print(f"| {name} | {share_failed(runs, loss, **setting):.1%} |", flush=True)
    for name, remembered in (("", True), (", without the best means", False)):
        share = share_of_drifts_stopped(runs, remembered=remembered)
        print(
            f"| 1.5 points lost at each of 6 releases, the baseline renewed after each{name} | {share:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else RUNS)
