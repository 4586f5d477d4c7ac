"""The gate's paired checks: which columns are compared, in which families, and the message of each.

Four questions, each a separate family of tests where it could raise a false alarm:

    baseline, best, fidelity   is a metric lower than in the baseline (by the margin), lower than it ever was (by twice the margin), or a format lower
                               than 16-bit (by its limit)? One family at 2%.
    kind                       is it lower on the questions of one kind, which may be too few to show in the mean? A family at 1%: both together stay
    within the 5% of the whole gate. A kind has too few questions to exclude a loss of the margin, so whatever is not a regression passes.
    must_improve               is each variant surely better than `base`? Only on request; a control that the gate can fail at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.analysis import statistics
from harness.analysis.resampling import Floats
from harness.config import Config
from harness.errors import ConfigError, IncomparableError
from harness.gating import baseline
from harness.gating.likeness import differs
from harness.gating.noninferiority import Column, Outcome, kind_p, outcomes
from harness.records import Baseline, GateCheck, GateKind
from harness.report.headline import percent, points
from harness.variants import BASE, MERGED, UNTUNED

LEVEL = 0.02
"""Family-wise level of the checks on all questions."""
KIND_LEVEL = 0.01
"""Family-wise level of the checks by kind of question."""
PERMUTATIONS = 2_000
"""Of kinds over groups, at most."""
BEST_MARGINS = 2
"""Number of margins below the best mean ever at which a drift fails."""


@dataclass(frozen=True)
class Spec:
    """One check: its columns, and how it is named."""

    kind: GateKind
    variant: str
    metric: str
    column: Column
    against: str
    """In words, what the run is compared with."""
    question_kind: str | None = None


def against_baseline(
    old: Baseline, new: Baseline, gated: Sequence[str], config: Config, *, fidelity: bool = True
) -> list[GateCheck]:
    """Each metric of each gated variant against the baseline and the best means ever, each format with a limit against 16-bit, and each kind of question."""
    specs = [
        spec
        for variant in gated
        for metric in config.gate.metrics
        for spec in _whole(old, new, variant, metric, config.gate.margins.get(metric, config.gate.margin))
    ]
    if fidelity and MERGED in new.variants:
        specs += [
            Spec(
                "fidelity",
                variant,
                metric,
                Column(_column(new, MERGED, metric), _column(new, variant, metric), limit, limit),
                MERGED,
            )
            for variant, limit in config.gate.fidelity.items()
            if variant in new.variants and variant != MERGED
            for metric in config.gate.metrics
        ]
    return _judged(specs, new, config, level=LEVEL) + _by_kind(old, new, gated, config)


def against_base(new: Baseline, gated: Sequence[str], primary: str, config: Config) -> list[GateCheck]:
    """Whether each gated variant is surely better than `base` in the same run, on the metric that decides; otherwise the check fails.

    Args:
        primary: the comparison's primary metric; the gate's first metric where it is not gated.

    Raises:
        ConfigError: the run has no base.
    """
    if BASE not in new.variants:
        raise ConfigError(
            "must_improve: the run has no variant base", "add base to predict.variants, or leave --must-improve out"
        )
    metric = primary if primary in new.metrics else config.gate.metrics[0]
    specs = [
        Spec(
            "must_improve",
            variant,
            metric,
            Column(_column(new, BASE, metric), _column(new, variant, metric), 0.0),
            BASE,
        )
        for variant in gated
        if variant not in UNTUNED
    ]
    return [
        check.model_copy(
            update={
                "verdict": "pass" if check.verdict == "improvement" else "regression",
                "message": check.message + ("" if check.verdict == "improvement" else "; not surely better than base"),
            }
        )
        for check in _judged(specs, new, config, level=statistics.LEVEL)
    ]


def difference(old: Baseline, new: Baseline, config: Config) -> list[GateCheck]:
    """Every metric of every variant that both have, new minus old, judged as in the gate.

    Raises:
        IncomparableError: they have no variant in common, or were not asked and scored in the same way.
    """
    variants = [variant for variant in old.variants if variant in new.variants]
    unlike = list(differs(old, new, variants, config.gate.metrics))
    if unlike or not variants:
        raise IncomparableError(
            "; ".join(unlike) or "no variant in common", "run harness baseline save to renew the baseline"
        )
    return against_baseline(old, new, variants, config, fidelity=False)


# ------------------------------------------------------------------------------------------------------------- columns


def _column(side: Baseline, variant: str, metric: str) -> np.ndarray:
    return baseline.column(side, variant, metric)


def _whole(old: Baseline, new: Baseline, variant: str, metric: str, margin: float) -> list[Spec]:
    before, after = _column(old, variant, metric), _column(new, variant, metric)
    seeds = baseline.seed_bound(old, variant, metric)
    specs = [Spec("baseline", variant, metric, Column(before, after, margin, seeds=seeds), "the baseline")]
    now, best = baseline.centre(old, variant, metric), baseline.best(old, variant, metric)
    own = old.variants[variant].means[metric]
    # Where this baseline is the best so far, the check above is the stricter one.
    if now is not None and best is not None and own is not None and best > now + baseline.NOTICEABLE:
        # The loss up to this baseline is known; the run's paired difference to it is added.
        column = Column(before + (best - own), after, BEST_MARGINS * margin, seeds=baseline.SeedBound(0.0, seeds.half))
        specs.append(Spec("best", variant, metric, column, "the best mean ever"))
    return specs


def _by_kind(old: Baseline, new: Baseline, gated: Sequence[str], config: Config) -> list[GateCheck]:
    found = baseline.kinds(new, config.gate.kind_questions) if config.gate.kind_questions else {}
    if not found or not gated:
        return []
    kinds: dict[str, NDArray[np.bool_]] = {}
    for kind, rows in found.items():
        kinds[kind] = np.zeros(len(new.questions), dtype=bool)
        kinds[kind][rows] = True
    tested = [(variant, metric) for variant in gated for metric in config.gate.metrics]
    before, after = ([_column(side, *which) for which in tested] for side in (old, new))
    changes = np.column_stack(after) - np.column_stack(before)
    p_values = kind_p(
        changes,
        [question.group for question in new.questions],
        list(kinds.values()),
        permutations=min(config.compare.resamples, PERMUTATIONS),
        seed=config.compare.seed + 2,
    )
    specs = [
        Spec(
            "kind",
            variant,
            metric,
            Column(
                np.where(rows, before[at], np.nan),
                np.where(rows, after[at], np.nan),
                config.gate.margins.get(metric, config.gate.margin),
                seeds=baseline.seed_bound(old, variant, metric, kind),
            ),
            "the baseline",
            kind,
        )
        for kind, rows in kinds.items()
        for at, (variant, metric) in enumerate(tested)
    ]
    checks = _judged(specs, new, config, level=KIND_LEVEL, p_values=p_values.ravel())
    # A metric that reads no answer of this kind has nothing to lose.
    return [c for c, spec in zip(checks, specs, strict=True) if not np.isnan(spec.column.before).all()]


# ------------------------------------------------------------------------------------------------------------- verdicts


def _judged(
    specs: Sequence[Spec], new: Baseline, config: Config, *, level: float, p_values: Floats | None = None
) -> list[GateCheck]:
    """One family of checks."""
    groups = [question.group for question in new.questions]
    found = outcomes(
        [spec.column for spec in specs],
        groups,
        resamples=config.compare.resamples,
        seed=config.compare.seed,
        level=level,
        p_values=p_values,
    )
    return [_check(spec, outcome) for spec, outcome in zip(specs, found, strict=True)]


def _check(spec: Spec, outcome: Outcome) -> GateCheck:
    verdict = outcome.verdict
    below = outcome.delta is not None and outcome.delta < -spec.column.margin
    if verdict == "improvement" and spec.kind not in ("baseline", "must_improve"):
        verdict = "pass"
    # Few questions, or a constant treated as exact, cannot exclude a loss; these checks only detect one.
    if verdict == "inconclusive" and (spec.kind == "kind" or (spec.kind == "best" and not below)):
        verdict = "pass"
    parts = [spec.kind, spec.variant, spec.metric, *([spec.question_kind] if spec.question_kind is not None else [])]
    return GateCheck(
        kind=spec.kind,
        name="/".join(parts),
        variant=spec.variant,
        metric=spec.metric,
        question_kind=spec.question_kind,
        verdict=verdict,
        message=_message(spec, outcome),
        limit=spec.column.margin,
        value=outcome.after,
        against=outcome.before,
        delta=outcome.delta,
        ci95=outcome.ci95,
        p=outcome.p,
        n=outcome.n,
    )


def _message(spec: Spec, outcome: Outcome) -> str:
    if outcome.delta is None:
        return f"no question was scored both here and in {spec.against}"
    interval = (
        f"95% CI {signed(outcome.ci95[0])} to {signed(outcome.ci95[1])}"
        if outcome.ci95
        else "no interval: one group of questions"
    )
    seeds = spec.column.seeds
    low, high = seeds.centre - seeds.half, seeds.centre + seeds.half
    return (
        f"{percent(outcome.before)} -> {percent(outcome.after)}, {signed(outcome.delta)} points against {spec.against} ({interval}),"
        f" tolerated {points(spec.column.margin, sign=False)}, n = {outcome.n}"
        + (f", another seed {signed(low)} to {signed(high)}" if seeds.half else "")
    )


def signed(delta: float) -> str:
    """Percentage points with the minus of ASCII: messages are read by machines too."""
    return points(delta).replace("\u2212", "-")
