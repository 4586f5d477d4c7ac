"""How often the gate errs, by simulation: harmless changes that fail, true losses that are caught.

python benchmarks/gate_power.py            the table of docs/gate.md, some two minutes
python benchmarks/gate_power.py 1000       1,000 simulated changes a row instead of 200
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from harness.analysis.resampling import Floats
from harness.gating.noninferiority import Column, outcomes

QUESTIONS = 280
RUNS = 200
RESAMPLES = 400
RIGHT = 0.65
"""Mean share of right answers."""
MARGIN = 0.02
FLIPS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.04)
"""Variant -> the share of answers that its format changes by itself."""
PARTIAL = (0.35, 0.4)
"""Graded metric -> the most that a wrong answer scores."""


def simulated(
    seed: int,
    loss: float = 0.0,
    *,
    n: int = QUESTIONS,
    churn: float = 0.15,
    only: int | None = None,
    trainings: int = 1,
    seed_spread: float = 0.0,
) -> tuple[list[Column], NDArray[np.int64]]:
    """Scores before and after of six variants on exact match and two graded metrics, and the groups of the n questions.

    Groups have 1 to 12 questions (mean 3) and their own chance of a right answer. A loss forgets some groups more than others.

    Args:
        loss: true loss of exact match, 0..1.
        churn: share of the groups that two trainings answer independently of each other.
        only: the one variant that loses; None: all.
        trainings: that the baseline knows, its own included.
        seed_spread: standard deviation of the share of answers that a training gets right or wrong everywhere, 0..1.
    """
    rng = np.random.default_rng([seed, trainings])
    sizes: list[int] = []
    while sum(sizes) < n:
        sizes.append(min(int(rng.geometric(1 / 3)), 12, n - sum(sizes)))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    level = rng.beta(2 * RIGHT, 2 * (1 - RIGHT), len(sizes))[groups]
    usual = rng.random(n) < level
    runs = []
    for _ in range(trainings + 1):
        anew = (rng.random(len(sizes)) < 1 - (1 - churn) ** 0.5)[groups]
        right = np.where(anew, rng.random(n) < level, usual)
        shift = rng.normal(0, seed_spread)
        changed = rng.random(n) < abs(shift) / (RIGHT if shift < 0 else 1 - RIGHT)
        runs.append(np.where(changed, shift > 0, right))
    share = loss / RIGHT
    forgotten = rng.random(n) < (rng.beta(1.5 * share, 1.5 * (1 - share), len(sizes))[groups] if loss else 0)
    columns = []
    for variant, flips in enumerate(FLIPS):
        answers = [np.where(rng.random(n) < flips, rng.random(n) < RIGHT, right) for right in runs]
        if only in (None, variant):
            answers[-1] = answers[-1] & ~forgotten
        columns.append(_column([a.astype(np.float64) for a in answers]))
        columns += [_column([np.where(a, 1.0, most * rng.random(n)) for a in answers]) for most in PARTIAL]
    return columns, groups


def _column(scores: list[Floats]) -> Column:
    before, *further, after = scores
    apart = [0.0, *(float(other.mean() - before.mean()) for other in further)]
    return Column(before, after, MARGIN, seed_spread=(min(apart), max(apart)))


def share_failed(runs: int, loss: float = 0.0, **setting: float | None) -> float:
    """The share of simulated changes in which any check of the gate is a regression."""
    failed = 0
    for seed in range(runs):
        columns, groups = simulated(seed, loss, **setting)  # pyright: ignore[reportArgumentType]
        failed += any(o.verdict == "regression" for o in outcomes(columns, groups, resamples=RESAMPLES, seed=seed))
    return failed / runs


TABLE: list[tuple[str, float, dict[str, float]]] = [
    ("harmless", 0.0, {}),
    ("harmless, 40% of the groups answered anew", 0.0, {"churn": 0.4}),
    ("1 point lost by all variants", 0.01, {}),
    ("2 points (the margin) lost by all", 0.02, {}),
    ("5 points lost by all", 0.05, {}),
    ("10 points lost by all", 0.10, {}),
    ("10 points lost by all, 40% answered anew", 0.10, {"churn": 0.4}),
    ("10 points lost by the steadiest variant alone", 0.10, {"only": 0}),
    ("10 points lost by the noisiest variant alone", 0.10, {"only": 5}),
    (
        "harmless, another seed (standard deviation between seeds of 2 points), baseline of 1 training",
        0.0,
        {"seed_spread": 0.02},
    ),
    (
        "harmless, another seed (standard deviation between seeds of 2 points), baseline of 3",
        0.0,
        {"seed_spread": 0.02, "trainings": 3},
    ),
    (
        "harmless, another seed (standard deviation between seeds of 2 points), baseline of 5",
        0.0,
        {"seed_spread": 0.02, "trainings": 5},
    ),
    ("10 points lost by all, another seed, baseline of 3", 0.10, {"seed_spread": 0.02, "trainings": 3}),
    ("10 points lost by all, another seed, baseline of 5", 0.10, {"seed_spread": 0.02, "trainings": 5}),
    ("10 points lost by all, no seed variance, baseline of 3", 0.10, {"trainings": 3}),
    ("20 points lost by all, another seed, baseline of 3", 0.20, {"seed_spread": 0.02, "trainings": 3}),
]


def main(runs: int) -> None:
    print(
        f"| simulated change ({QUESTIONS} questions, {len(FLIPS)} variants, 3 metrics) | fails, of {runs} |\n| --- | ---: |"
    )
    for name, loss, setting in TABLE:
        print(f"| {name} | {share_failed(runs, loss, **setting):.1%} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else RUNS)
