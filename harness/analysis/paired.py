"""Pairs of variants: each metric's difference, tested within its family, and the questions that changed most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness import registry
from harness.analysis import seeds, statistics, trainings
from harness.analysis.contracts import contract_of
from harness.analysis.resampling import Floats
from harness.analysis.scored import Scored
from harness.analysis.statistics import Difference
from harness.config import Config
from harness.records import Example, Pair, PairExamples

EXAMPLES = 10
"""Wins, and losses, of a pair."""


def differences(
    pairs: Sequence[tuple[Scored, Scored]],
    config: Config,
    primary: str,
    *,
    known: trainings.Known | None = None,
) -> list[Pair]:
    """Every metric of every pair, tested; p-values are corrected within two families.

    Confirmatory: the primary metric on the pairs that the headline and the list of formats use, so that the tests that decide are not corrected for
    those that only inform. Secondary: all other tests. A pair of an exported format and the adapter is secondary where `merged_16bit` answered too.

    The pairs must have passed `refuse_incomparable`.

    Args:
        known: for pairs of two runs, each trained with its own seeds: the known spread between seeds.
    """
    if not pairs:
        return []
    metrics = pairs[0][0].metrics
    merged = any("merged_16bit" in (a.name, b.name) for a, b in pairs)
    confirmatory = [metric == primary and not (merged and b.name == "adapter") for _, b in pairs for metric in metrics]
    left, right = (np.hstack([pair[side].values for pair in pairs]) for side in (0, 1))
    settings = config.compare
    found = statistics.paired_differences(
        left,
        right,
        pairs[0][0].groups,
        resamples=settings.resamples,
        seed=settings.seed,
        family=[int(not main) for main in confirmatory],
    )
    tested = [(a, b, metric) for a, b in pairs for metric in metrics]
    of_seeds = [
        trainings.within(a, b, k) if known is None else trainings.between(a, b, k, known)
        for a, b in pairs
        for k in range(len(metrics))
    ]
    found = [seeds.widened(d, variance) for d, (variance, _, _) in zip(found, of_seeds, strict=True)]
    return [
        pair(
            a.name,
            b.name,
            metric,
            d,
            settings.margin,
            identical=a.texts_sha256 == b.texts_sha256 != "",
            family="confirmatory" if main else "secondary",
            contract=contract_of(a, b),
            noise_floor=max(a.flip_rate, b.flip_rate),
            trainings=counts,
            seed_note=note,
        )
        for (a, b, metric), d, main, (_, counts, note) in zip(tested, found, confirmatory, of_seeds, strict=True)
    ]


def pair(
    left: str,
    right: str,
    metric: str,
    difference: Difference,
    margin: float,
    *,
    identical: bool = False,
    **further: Any,
) -> Pair:
    """The record of one tested difference, with its verdict.

    Args:
        identical: both gave the same text to every question.
        further: other fields of `Pair`.
    """
    d = difference
    return Pair(
        left=left,
        right=right,
        metric=metric,
        delta=d.value,
        ci95=d.ci95,
        p=d.p,
        p_adjusted=d.p_adjusted,
        verdict=statistics.verdict(d.value, d.ci95, d.p_adjusted, margin, identical=identical),
        n=d.n,
        margin=margin,
        mde=d.mde,
        p_mcnemar=statistics.mcnemar_exact(d.wins, d.losses) if registry.METRICS[metric].binary and d.n else None,
        wins=d.wins,
        losses=d.losses,
        ties=d.ties,
        **further,
    )


def examples(left: Scored, right: Scored) -> PairExamples | None:
    """The questions on which left gains and loses most against right, `EXAMPLES` of each; among equals the first in the file. None if there are none."""
    metric = next((name for name in registry.graded_metrics() if name in left.metrics), left.metrics[0])
    a, b = (side.values[:, side.metrics.index(metric)] for side in (left, right))
    deltas = np.nan_to_num(a - b)

    def largest(gains: Floats) -> list[Example]:
        rows = [int(row) for row in np.argsort(-gains, kind="stable")[:EXAMPLES] if gains[row] > 0]
        return [
            Example(id=left.ids[row], left=float(a[row]), right=float(b[row]), delta=float(deltas[row])) for row in rows
        ]

    wins, losses = largest(deltas), largest(-deltas)
    return (
        PairExamples(left=left.name, right=right.name, metric=metric, wins=wins, losses=losses)
        if wins or losses
        else None
    )
