"""Figures of one run checked against fixed limits, without rounding: floors, costs, divergences and alarms."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from harness.config import Gate
from harness.records import Comparison, GateCheck, GateKind, GateVerdict, VariantResult
from harness.variants import BASE, MERGED

COUNTED = {"runaway": "length", "unscored": "error"}
"""Alarms for which compare has a separate limit; here the finish reasons are counted instead."""
WHAT = {
    "size": "size relative to base",
    "speed": "tokens per second relative to base",
    "divergence": f"mean divergence from {MERGED}",
}
UNITS = {"divergence": (1, " nats"), "size": (1, ""), "speed": (1, "")}
"""Kind -> (factor, unit) for messages; all others are shares."""


def checks(comparison: Comparison, gated: Collection[str], gate: Gate) -> Iterator[GateCheck]:
    """Every limit of the config on the variants that answered; floors and alarms on the gated variants only."""
    variants = comparison.variants
    for variant in gated:
        for metric, floor in gate.floors.items():
            yield check(
                "floor",
                variant,
                metric,
                variants[variant].metrics[metric].value,
                floor,
                at_least=True,
                unknown="regression",
            )
    base = variants.get(BASE)
    for variant, limit in gate.size_ratio.items():
        if variant in variants:
            yield check("size", variant, None, ratio(variants[variant], base, "size_bytes"), limit)
    for variant, limit in gate.speed_ratio.items():
        if variant in variants:
            yield check(
                "speed", variant, None, ratio(variants[variant], base, "tokens_per_second"), limit, at_least=True
            )
    for variant, limit in gate.divergence.items():
        if (value := divergence(comparison, variant)) is not None:
            yield check("divergence", variant, None, value, limit)
    raised = {(alarm.variant, alarm.code): alarm.value for alarm in comparison.alarms}
    for variant in gated:
        finish = variants[variant].finish
        answers = sum(finish.values())
        for code, limit in gate.alarms.items():
            share = raised.get((variant, code), 0.0)
            if code in COUNTED:
                share = finish.get(COUNTED[code], 0) / answers if answers else None
            yield check("alarm", variant, code, share, limit, unknown="regression")


def divergence(comparison: Comparison, variant: str) -> float | None:
    """Mean divergence between a format and the 16-bit model, in nats, whichever of the two was made first; None if it was not measured."""
    rows = [row for row in comparison.fidelity if {row["left"], row["right"]} == {variant, MERGED}]
    return rows[0].get("mean_kl") if rows else None


def check(
    kind: GateKind,
    variant: str,
    what: str | None,
    value: float | None,
    limit: float,
    *,
    at_least: bool = False,
    unknown: GateVerdict = "inconclusive",
) -> GateCheck:
    """One figure against its limit.

    Args:
        what: metric or alarm; None where the kind is enough. value: None: not known; `unknown` is then the message. at_least: the limit is a minimum,
        not a maximum.
    """
    kept = value is not None and (value >= limit if at_least else value <= limit)
    factor, unit = UNITS.get(kind, (100, "%"))
    shown = "unknown"
    if value is not None:
        # As many digits as it takes to see the limit broken: 94.996% is not 95%.
        digits = next((d for d in range(4, 17) if f"{value:.{d}g}" != f"{limit:.{d}g}"), 4)
        shown = f"{factor * value:.{digits}g}{unit}"
    return GateCheck(
        kind=kind,
        name="/".join(filter(None, (kind, variant, what))),
        variant=variant,
        metric=what if kind == "floor" else None,
        verdict="pass" if kept else unknown if value is None else "regression",
        message=f"{WHAT.get(kind, what or kind)} {shown}, {'at least' if at_least else 'at most'} {factor * limit:.6g}{unit} wanted",
        limit=limit,
        value=value,
    )


def ratio(variant: VariantResult, base: VariantResult | None, cost: str) -> float | None:
    """A cost as a multiple of the base's; None where either was not measured, or the base's is 0."""
    value, whole = getattr(variant.cost, cost), getattr(base.cost, cost) if base else None
    return value / whole if value is not None and whole else None
