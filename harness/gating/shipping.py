"""Ship or not, and which file: the run's own numbers against the limits of the config's `ship` section.

Two differences decide, both by the tests of `harness.gating.noninferiority`:

    gain   a variant minus the base. Its 95% interval must lie wholly above `least_gain`.
    loss   a format minus the 16-bit model. Its 95% interval must exclude a loss of more than is allowed.

Each variant that could be shipped passes, fails or is left unknown. The smallest that passes is shipped. If none passes and some are unknown, the
questions do not decide, and how many more would is computed (`further_questions`). Passing takes every limit, so the intervals need no correction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from harness.analysis.resampling import Floats
from harness.config import Config
from harness.gating.noninferiority import Column, Outcome, outcomes
from harness.records import Comparison, Interval, ShipCandidate, ShipCheck, Shipping, ShipVerdict
from harness.report.headline import find_pair, megabytes, percent, points
from harness.variants import ADAPTER, BASE, MERGED, UNTUNED, is_exported
from harness.variants import label as variant_label
from harness.variants import order as variant_order

POWER = 0.8
"""How often the further questions would decide."""
WORTH_ASKING = 20
"""Above this multiple of the present questions no number is given: the difference is too close to the limit."""
VERDICTS: dict[str, ShipVerdict] = {
    "pass": "pass",
    "improvement": "pass",
    "regression": "fail",
    "inconclusive": "unknown",
}


@dataclass(frozen=True)
class Setting:
    """The inputs that all checks of one decision share."""

    comparison: Comparison
    config: Config
    base: str | None
    reference: str
    least_gain: float

    def allowed(self, variant: str) -> float:
        """The loss that a format may have: that of `ship`, else the gate's, else `compare.margin`."""
        limit = self.config.ship.largest_format_loss
        return limit if limit is not None else self.config.gate.fidelity.get(variant, self.config.compare.margin)


def decide(comparison: Comparison, scores: Mapping[str, Floats], groups: Sequence[Any], config: Config) -> Shipping:
    """The decision on a run.

    Args:
        comparison: variants, breakdowns, alarms and the primary metric.
        scores: variant -> its scores on the primary metric, shape (n,); NaN: unscored.
        groups: n labels.
        config: `ship`; `gate` and `compare` give its defaults.
    """
    names = candidates(list(comparison.variants))
    if not names:
        return Shipping(
            decision="cannot tell",
            title="Cannot tell yet",
            reason="No fine-tuned model answered the questions.",
            next_step="Name one in predict.variants, then run harness predict, score and compare.",
            limits="",
        )
    means = {name: float(np.nanmean(scores[name])) if np.isfinite(scores[name]).any() else -1.0 for name in names}
    reference = MERGED if MERGED in names else max(names, key=lambda name: means[name])
    gain = config.ship.least_gain
    setting = Setting(
        comparison=comparison,
        config=config,
        base=_base(reference, list(comparison.variants)),
        reference=reference,
        least_gain=config.compare.margin if gain is None else gain,
    )
    judged = _judge(setting, names, scores, groups)
    shipped = _smallest([c.variant for c in judged if c.verdict == "pass"], comparison)
    decision: Literal["ship", "do not ship", "cannot tell"] = (
        "ship" if shipped else "cannot tell" if any(c.verdict == "unknown" for c in judged) else "do not ship"
    )
    title = {"ship": f"Ship: yes, as {variant_label(shipped or '')}", "do not ship": "Do not ship"}
    candidate = next(c for c in judged if c.variant == shipped) if shipped else _decisive(judged, reference, comparison)
    further, step = _next_step(setting, judged, candidate)
    return Shipping(
        decision=decision,
        variant=shipped,
        title=title.get(decision, "Cannot tell yet"),
        reason=_reason(candidate),
        next_step=step,
        further_questions=further,
        limits=_limits(setting, names),
        base=setting.base,
        reference=reference,
        candidates=judged,
    )


def candidates(names: list[str]) -> list[str]:
    """What could be shipped: the adapter and the formats made from it; where there are none, every model but the bases."""
    own = [name for name in names if name == ADAPTER or is_exported(name)]
    others = [name for name in names if name not in UNTUNED and not name.endswith(f".{BASE}")]
    return sorted(own or others, key=variant_order)


def further_questions(n: int, value: float, ci95: Interval, limit: float) -> int | None:
    """About how many more questions would show on which side of `limit` a mean lies, four times in five, if the mean stays `value`.

    An interval's half width shrinks with the square root of the questions (and of the groups, which are taken to be of the size they are). It must
    become |value - limit| 1.96 / (1.96 + 0.84), so that sampling error leaves the limit outside in 80% of repetitions: Cohen, Statistical Power
    Analysis (1988), section 2.4, from the measured interval in place of an assumed variance.

    Args:
        n: questions so far.
        value, ci95, limit: in the same unit. Returns: Two significant digits, rounded up; None if it would be more than `WORTH_ASKING` times n, or if
        the spread is unknown.
    """
    half = value - ci95[0] if value > limit else ci95[1] - value
    distance = abs(value - limit)
    if half <= 0 or distance <= 0:
        return None
    z = float(stats.norm.ppf(0.975))
    ratio = half * (z + float(stats.norm.ppf(POWER))) / (z * distance)
    further = n * (ratio * ratio - 1)
    if further > WORTH_ASKING * n:
        return None
    return _rounded_up(max(further, 1))


def _rounded_up(value: float) -> int:
    step = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return math.ceil(value / step) * step


# -------------------------------------------------------------------------------------------------------------- checks


def _judge(
    setting: Setting, names: list[str], scores: Mapping[str, Floats], groups: Sequence[Any]
) -> list[ShipCandidate]:
    columns: dict[tuple[str, str], Column] = {}
    for name in names:
        if setting.base:
            columns["gain", name] = Column(scores[setting.base] + setting.least_gain, scores[name], 0.0)
        if name != setting.reference:
            allowed = setting.allowed(name)
            columns["loss", name] = Column(scores[setting.reference], scores[name], allowed, allowed)
    settings = setting.config.compare
    found = outcomes(list(columns.values()), groups, resamples=settings.resamples, seed=settings.seed)
    by_name = dict(zip(columns, found, strict=True))
    return [_candidate(setting, name, by_name.get(("gain", name)), by_name.get(("loss", name))) for name in names]


def _candidate(setting: Setting, name: str, gain: Outcome | None, loss: Outcome | None) -> ShipCandidate:
    checks = [_gain(setting, name, gain)]
    if loss is not None:
        checks.append(_loss(setting, name, loss))
    checks += [*_costs(setting, name), *_kinds(setting, name), *_alarms(setting, name)]
    verdicts = {check.verdict for check in checks}
    least = setting.least_gain
    known = gain is not None and gain.delta is not None
    return ShipCandidate(
        variant=name,
        verdict="fail" if "fail" in verdicts else "unknown" if "unknown" in verdicts else "pass",
        gain=gain.delta + least if gain and gain.delta is not None else None,
        gain_ci95=(gain.ci95[0] + least, gain.ci95[1] + least) if known and gain and gain.ci95 else None,
        loss_at_most=0.0 if _identical(setting, name) else max(0.0, -loss.ci95[0]) if loss and loss.ci95 else None,
        allowed_loss=None if loss is None else setting.allowed(name),
        checks=checks,
    )


def _gain(setting: Setting, name: str, found: Outcome | None) -> ShipCheck:
    if found is None or setting.base is None:
        return ShipCheck(
            kind="gain", verdict="unknown", message="was not compared with a base model, so its gain is unknown"
        )
    against, wanted = variant_label(setting.base), f"{_points(setting.least_gain)} or more are wanted"
    if found.delta is None or found.ci95 is None:
        return ShipCheck(kind="gain", verdict="unknown", message=f"has no interval of its gain over {against}")
    value = found.delta + setting.least_gain
    low, high = (end + setting.least_gain for end in found.ci95)
    span = f"{points(low)} to {points(high)} points"
    verdict = VERDICTS[found.verdict]
    words = {
        "pass": f"gains {points(value, sign=False)} points over {against} (95% interval {span})",
        "fail": f"does not gain enough over {against} ({span}; {wanted})",
        "unknown": f"may gain too little over {against} ({span}; {wanted})",
    }
    further = further_questions(found.n, found.delta, found.ci95, 0.0) if verdict == "unknown" else None
    return ShipCheck(kind="gain", verdict=verdict, message=words[verdict], further_questions=further)


def _loss(setting: Setting, name: str, found: Outcome) -> ShipCheck:
    against, limit = variant_label(setting.reference), setting.allowed(name)
    allowed = f"{_points(limit)} allowed"
    if found.delta is None or found.ci95 is None:
        return ShipCheck(kind="loss", verdict="unknown", message=f"has no interval of its loss against {against}")
    low, high = found.ci95
    if _identical(setting, name):
        message = f"gives the same text as {against} on all {found.n:,} questions"
        return ShipCheck(kind="loss", verdict="pass", message=message)
    if low == high == 0:
        return ShipCheck(kind="loss", verdict="pass", message=f"scores as {against} on every question")
    verdict = VERDICTS[found.verdict]
    most = "nothing" if -low < 0.0005 else f"at most {_points(-low)}"
    words = {
        "pass": f"loses {most} against {against} on these questions ({allowed})",
        "fail": f"loses too much against {against} ({points(low)} to {points(high)} points; {allowed})",
        "unknown": f"may lose too much against {against} ({points(low)} to {points(high)} points; {allowed})",
    }
    # An allowed loss that may still exceed the margin: how many questions would exclude that too.
    margin = setting.config.compare.margin
    asked = limit if verdict == "unknown" else margin if low < -margin < found.delta else None
    further = (
        None if asked is None or verdict == "fail" else further_questions(found.n, found.delta, found.ci95, -asked)
    )
    return ShipCheck(kind="loss", verdict=verdict, message=words[verdict], further_questions=further)


def _identical(setting: Setting, name: str) -> bool:
    """Whether a variant gave the reference's text on every question: there is nothing that it could have lost."""
    pair = find_pair(setting.comparison.pairs, name, setting.reference, setting.comparison.primary)
    return pair is not None and pair.verdict == "identical"


def _costs(setting: Setting, name: str) -> Iterator[ShipCheck]:
    cost, limits = setting.comparison.variants[name].cost, setting.config.ship
    if limits.max_size_gb is not None:
        size, most = cost.size_bytes, limits.max_size_gb * 1e9
        verdict: ShipVerdict = "unknown" if not size else "pass" if size <= most else "fail"
        shown = megabytes(size) if size else "of unknown size"
        yield ShipCheck(kind="size", verdict=verdict, message=f"is {shown} ({megabytes(most)} allowed)")
    if limits.min_tokens_per_second is not None:
        speed, least = cost.tokens_per_second, limits.min_tokens_per_second
        verdict = "unknown" if speed is None else "pass" if speed >= least else "fail"
        shown = "an unknown number of" if speed is None else f"{speed:,.4g}"
        yield ShipCheck(kind="speed", verdict=verdict, message=f"answers at {shown} tokens/s ({least:,.4g} wanted)")


def _kinds(setting: Setting, name: str) -> Iterator[ShipCheck]:
    """Each kind of question with a limit, by the interval of its breakdown."""
    for kind, least in setting.config.ship.kinds.items():
        found = [
            b
            for b in setting.comparison.breakdowns
            if (b.by, b.bucket, b.variant, b.metric) == ("kind", kind, name, setting.comparison.primary)
        ]
        if not found or found[0].value is None or found[0].ci95 is None:
            message = f"was asked too few questions of kind {kind} to decide ({percent(least)} required)"
            yield ShipCheck(kind="kind", verdict="unknown", message=message)
            continue
        (low, high), value, n = found[0].ci95, found[0].value, found[0].n
        verdict: ShipVerdict = "pass" if low >= least else "fail" if high < least else "unknown"
        message = f"reaches {percent(value)} of {n} {kind} questions ({percent(low)} to {percent(high)}; {percent(least)} wanted)"
        further = further_questions(n, value, (low, high), least) if verdict == "unknown" else None
        yield ShipCheck(kind="kind", verdict=verdict, message=message, further_questions=further)


def _alarms(setting: Setting, name: str) -> Iterator[ShipCheck]:
    """Alarms on the variant itself beyond what the gate tolerates: its numbers are doubtful, so that it cannot pass."""
    for alarm in setting.comparison.alarms:
        tolerated = next((limit for code, limit in setting.config.gate.alarms.items() if code == alarm.code), 0.0)
        if alarm.variant == name and (alarm.value is None or alarm.value > tolerated):
            yield ShipCheck(
                kind="alarm", verdict="unknown", message=f"raised an alarm ({alarm.code.replace('_', ' ')})"
            )


# ------------------------------------------------------------------------------------------------------------ in words


def _decisive(judged: list[ShipCandidate], reference: str, comparison: Comparison) -> ShipCandidate:
    """The candidate whose failure is reported where nothing can be shipped: the one closest to passing."""
    unknown = [c for c in judged if c.verdict == "unknown"] or judged
    own = [c for c in unknown if c.variant == reference]
    smallest = _smallest([c.variant for c in unknown], comparison)
    return own[0] if own else next(c for c in unknown if c.variant == smallest)


def _reason(candidate: ShipCandidate) -> str:
    worst = [
        check.message
        for check in candidate.checks
        if check.verdict == ("fail" if candidate.verdict == "fail" else "unknown")
    ]
    found = (
        worst[:1]
        if candidate.verdict != "pass"
        else [c.message for c in candidate.checks if c.kind in ("gain", "loss")]
    )
    return f"{variant_label(candidate.variant)} {', and '.join(found)}."


def _next_step(setting: Setting, judged: list[ShipCandidate], candidate: ShipCandidate) -> tuple[int | None, str]:
    if candidate.verdict == "pass":
        return _after_shipping(setting, judged, candidate)
    check = next(c for c in candidate.checks if c.verdict == candidate.verdict)
    if candidate.verdict == "unknown" and check.further_questions is not None:
        what = f"{check.further_questions:,} more questions"
        return check.further_questions, f"Hold out about {what}: they would decide it four times in five."
    if candidate.verdict == "unknown" and check.kind in ("gain", "loss") and setting.base:
        return None, "Hold out many more questions, or change the limit: what was measured lies next to it."
    steps = {
        (
            "unknown",
            "gain",
        ): "Let the base model answer too: add it to predict.variants, or name it to harness evaluate.",
        ("unknown", "alarm"): "Look into the alarm first: until then its numbers are doubtful.",
        ("unknown", "kind"): "Hold out more questions of that kind.",
        ("fail", "gain"): "Read the questions that it still gets wrong, then train on more or better rows.",
        ("fail", "loss"): "Export a format of more bits, or raise ship.largest_format_loss.",
        ("fail", "size"): "Export a smaller format, or raise ship.max_size_gb.",
        ("fail", "speed"): "Export a smaller format, or lower ship.min_tokens_per_second.",
        ("fail", "kind"): "Add training questions of that kind.",
    }
    return None, steps.get((candidate.verdict, check.kind), "Measure what is missing, then run harness compare again.")


def _after_shipping(setting: Setting, judged: list[ShipCandidate], decided: ShipCandidate) -> tuple[int | None, str]:
    size = {name: result.cost.size_bytes for name, result in setting.comparison.variants.items()}
    for candidate in sorted(judged, key=lambda c: size[c.variant]):
        asked = [c.further_questions for c in candidate.checks if c.verdict == "unknown"]
        smaller = 0 < size[candidate.variant] < size[decided.variant]
        if candidate.verdict == "unknown" and smaller and asked[0] is not None:
            name = f"{variant_label(candidate.variant)} ({megabytes(size[candidate.variant])})"
            return asked[0], f"About {asked[0]:,} more held-out questions would show whether {name} is as good."
    keep = f"Keep it this good: harness baseline save --run {setting.comparison.run}, then harness gate."
    more = next((c.further_questions for c in decided.checks if c.kind == "loss" and c.further_questions), None)
    if more is not None:
        margin = _points(setting.config.compare.margin)
        keep += f" Whether it loses less than {margin} would take about {more:,} more held-out questions to decide."
    return more, keep


def _limits(setting: Setting, names: list[str]) -> str:
    parts = [f"at least {_points(setting.least_gain)} better than the base"]
    losses: dict[float, list[str]] = {}
    for name in names:
        if name != setting.reference:
            losses.setdefault(setting.allowed(name), []).append(variant_label(name))
    if losses:
        words = "; ".join(f"{_points(limit)} ({', '.join(of)})" for limit, of in sorted(losses.items()))
        parts.append(f"a format may lose {words}")
    ship = setting.config.ship
    if ship.max_size_gb is not None:
        parts.append(f"at most {megabytes(ship.max_size_gb * 1e9)}")
    if ship.min_tokens_per_second is not None:
        parts.append(f"at least {ship.min_tokens_per_second:,.4g} tokens/s")
    parts += [f"{kind} questions at least {percent(least)}" for kind, least in ship.kinds.items()]
    default = ship == type(ship)()
    note = " Nothing is set under ship: in the config, so these are the defaults." if default else ""
    return f"Limits: {', '.join(parts)}.{note}"


def _points(value: float) -> str:
    text = points(value, sign=False)
    return f"{text} point{'' if text == '1' else 's'}"


def _base(candidate: str, names: list[str]) -> str | None:
    return next((name for name in (BASE, f"{candidate}.{BASE}") if name in names), None)


def _smallest(names: list[str], comparison: Comparison) -> str | None:
    """The smallest file; an adapter, which also needs its base, or a variant without a size only if there is nothing else."""

    def size(name: str) -> tuple[bool, float]:
        found = comparison.variants[name].cost.size_bytes
        return name == ADAPTER, found or math.inf

    return min(names, key=size, default=None)
