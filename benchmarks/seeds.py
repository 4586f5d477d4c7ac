"""How often two equal recipes differ "outside the interval", by simulation: each side trained with one seed, or with several.

python benchmarks/seeds.py          the table of docs/statistics.md, under a minute
python benchmarks/seeds.py 1000     1,000 simulated pairs a row instead of 400
"""

from __future__ import annotations

import sys

import numpy as np

from harness.analysis import seeds as trainings
from harness.analysis import statistics
from harness.analysis.resampling import Floats

PAIRS = 400
GROUPS = 60
SPREAD = 0.015
"""Standard deviation, between trainings, of the share of answers that the seed makes right or wrong: as measured on the embedded default."""
CHURN = 0.15
"""Share of the groups that two trainings answer independently."""


def simulated(seed: int, n_seeds: int, *, loss: float = 0.0) -> tuple[list[Floats], list[Floats], Floats]:
    """Scores (n,) of `n_seeds` trainings on each of two sides, and the groups (n,); the right side's recipe is worse by `loss`."""
    rng = np.random.default_rng([seed, n_seeds])
    sizes = np.minimum(rng.geometric(1 / 4, GROUPS), 15)
    groups = np.repeat(np.arange(GROUPS), sizes)
    level = rng.beta(1.2, 0.8, GROUPS)[groups]
    usual = rng.random(len(groups)) < level

    def training(worse: float) -> Floats:
        redrawn = (rng.random(GROUPS) < 1 - (1 - CHURN) ** 0.5)[groups]
        right = np.where(redrawn, rng.random(len(groups)) < level, usual)
        shift = rng.normal(-worse, SPREAD)
        share = right.mean()
        changed = rng.random(len(groups)) < abs(shift) / max(share if shift < 0 else 1 - share, 0.01)
        return np.where(changed, shift > 0, right).astype(np.float64)

    left, right = ([training(worse) for _ in range(n_seeds)] for worse in (0.0, loss))
    return left, right, groups.astype(np.float64)


def share_outside(n_seeds: int, *, with_seeds: bool = True, loss: float = 0.0, pairs: int = PAIRS) -> float:
    """The share of simulated pairs whose 95% interval excludes 0.

    Args:
        with_seeds: the interval allows for the seeds; False: for the questions only.
    """
    outside = 0
    for seed in range(pairs):
        left, right, groups = simulated(seed, n_seeds, loss=loss)
        found = statistics.paired_differences(
            trainings.average(left), trainings.average(right), groups, resamples=0, seed=0
        )[0]
        if with_seeds and n_seeds > 1:
            of_left, of_right = (trainings.of_trainings(side, groups) for side in (left, right))
            found = trainings.widened(found, of_left.plus(of_right) if of_left and of_right else None)
        outside += found.ci95 is not None and not found.ci95[0] <= 0 <= found.ci95[1]
    return outside / pairs


def main(pairs: int) -> None:
    print(f"| two recipes, of {pairs} simulated pairs | interval over questions only | over questions and seeds |")
    print("| --- | ---: | ---: |")
    for loss in (0.0, 0.05):
        for n_seeds in (1, 2, 3, 5, 10):
            alone = share_outside(n_seeds, with_seeds=False, loss=loss, pairs=pairs)
            joint = f"{share_outside(n_seeds, loss=loss, pairs=pairs):.1%}" if n_seeds > 1 else "cannot tell"
            what = "equal" if not loss else f"{100 * loss:g} points apart"
            print(f"| {what}, {n_seeds} seed{'s' * (n_seeds > 1)} a side | {alone:.1%} | {joint} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS)
