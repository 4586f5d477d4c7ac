"""A comparison in words: the headline, its evidence, the formats, and display names.

Only a pair that was tested is called better, worse or tied; everything else is reported as numbers and `undecided`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness import registry, variants
from harness.records import Comparison, MetricValue, Pair, Verdict
from harness.variants import ADAPTER, BASE, UNTUNED
from harness.variants import label as variant_label

GATE_WORDS = {
    "pass": "Passed",
    "improvement": "Improved",
    "inconclusive": "Inconclusive",
    "regression": "Regression",
    "incomparable": "Incomparable",
}
FLIPPED: dict[Verdict, Verdict] = {
    "better": "worse",
    "worse": "better",
    "tied": "tied",
    "identical": "identical",
    "undecided": "undecided",
}


@dataclass(frozen=True)
class Statement:
    """One sentence of the verdict."""

    text: str
    verdict: Verdict | None = None
    """Of the tested pair behind it; None: a plain fact."""


def variant_order(comparison: Comparison) -> list[str]:
    """The variants in the order of the pipeline: base, as trained, merged, GGUF from the largest to the smallest, then all others by name."""
    return sorted(comparison.variants, key=variants.order)


def percent(value: float | None) -> str:
    """A fraction as a percentage: one decimal below 10, none above, and never a rounded 0 or 100."""
    if value is None:
        return "unscored"
    scaled = 100 * value
    if 0 < scaled < 0.05:
        return "<0.1%"
    digits = 0 if (10 <= scaled < 99.5 or scaled in (0, 100)) else 1
    return f"{_trim(scaled, digits)}%"


def points(delta: float, *, sign: bool = True) -> str:
    """A difference of two fractions in percentage points, without the unit: `+59`, `-2.9`; the minus is U+2212."""
    scaled = 100 * delta
    text = _trim(abs(scaled), 0 if abs(scaled) >= 10 else 1)
    mark = "" if text == "0" else "\u2212" if scaled < 0 else "+" if sign else ""
    return f"{mark}{text}"


def megabytes(size: float) -> str:
    """Bytes as MB or GB (powers of ten)."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB" if size < 1e8 else f"{size / 1e6:.0f} MB"


def interval(pair: Pair) -> str:
    """A pair's 95% interval in points; two variants that gave the same text everywhere have none."""
    if pair.verdict == "identical":
        return f"the same text on all {pair.n:,}"
    return _range(pair.ci95) if pair.ci95 else "\u2013"


def p_value(p: float | None) -> str:
    """A p-value to two significant digits, with its relation sign."""
    return "not tested" if p is None else "p < 0.0001" if p < 1e-4 else "p = 1" if p >= 0.995 else f"p = {p:.2g}"


def primary_metric(comparison: Comparison) -> str | None:
    """The metric that decides, as compare chose it; in files of earlier versions the first of `registry.headline_metrics`; None without any metric."""
    measured = [metric for result in comparison.variants.values() for metric in result.metrics]
    if comparison.primary in measured:
        return comparison.primary
    return next(
        (metric for metric in registry.headline_metrics() if metric in measured), measured[0] if measured else None
    )


def tuned_variant(comparison: Comparison) -> str | None:
    """The variant that represents fine-tuning: as trained where it answered, else the format with the least loss of precision."""
    return variants.tuned(list(comparison.variants))


def reference_variant(comparison: Comparison) -> str | None:
    """The variant that formats are measured against."""
    return variants.MERGED if variants.MERGED in comparison.variants else tuned_variant(comparison)


def find_pair(pairs: Sequence[Pair], left: str, right: str, metric: str) -> Pair | None:
    """The pair left minus right, reversed if it is stored the other way."""
    for pair in pairs:
        if pair.metric == metric and (pair.left, pair.right) == (left, right):
            return pair
        if pair.metric == metric and (pair.left, pair.right) == (right, left):
            return pair.model_copy(
                update={
                    "left": left,
                    "right": right,
                    "delta": None if pair.delta is None else -pair.delta,
                    "ci95": None if pair.ci95 is None else (-pair.ci95[1], -pair.ci95[0]),
                    "verdict": FLIPPED[pair.verdict],
                    "wins": pair.losses,
                    "losses": pair.wins,
                    "trainings": pair.trainings and (pair.trainings[1], pair.trainings[0]),
                }
            )
    return None


def headline(comparison: Comparison) -> Statement:
    """What fine-tuning did, in one sentence."""
    metric, tuned = primary_metric(comparison), tuned_variant(comparison)
    if metric is None or tuned is None:
        return Statement("Nothing to compare: no fine-tuned variant answered the questions.")
    after, before = _value(comparison, tuned, metric), _value(comparison, BASE, metric)
    name = registry.metric_inline(metric)
    if after is None:
        return Statement(f"{variant_label(tuned)} has no scored answer, so there is no result.")
    if before is None:
        return Statement(
            f"{variant_label(tuned)} reaches {percent(after)} {name}; there is no base model to compare it with."
        )
    pair = find_pair(comparison.pairs, tuned, BASE, metric)
    span = f"from {percent(before)} to {percent(after)}"
    if pair is None:
        return Statement(f"{name[0].upper()}{name[1:]} went {span}, a difference that was not tested.")
    words = {
        "better": f"Fine-tuning raised {name} {span}.",
        "worse": f"Fine-tuning lowered {name} {span}.",
        "identical": f"Fine-tuning changed no answer: {name} is {percent(after)} before and after.",
        "tied": f"Fine-tuning made no difference to {name}: {percent(before)} before, {percent(after)} after.",
        "undecided": f"It is undecided whether fine-tuning changed {name}: {percent(before)} before, {percent(after)} after.",
    }
    return Statement(words[pair.verdict], pair.verdict)


def evidence(comparison: Comparison) -> list[Statement]:
    """The evidence for the headline: the interval, the test, the questions, and the no-model baselines."""
    metric, tuned = primary_metric(comparison), tuned_variant(comparison)
    found = []
    pair = find_pair(comparison.pairs, tuned, BASE, metric) if tuned and metric else None
    if pair is not None and pair.delta is not None:
        detail = [f"{points(pair.delta)} points"]
        if pair.verdict == "identical":
            detail = [f"0 points ({interval(pair)})"]
        elif pair.ci95:
            detail.append(f"95% CI {interval(pair)}")
        if pair.verdict != "identical":
            detail.append(p_value(pair.p_adjusted if pair.p_adjusted is not None else pair.p))
        text = f"{', '.join(detail)}; n = {pair.n:,} questions in {comparison.n_groups:,} groups."
        if pair.verdict == "undecided" and pair.mde is not None:
            text += f" With so many questions a difference of {points(pair.mde, sign=False)} points would be found four times in five."
        found.append(Statement(text, pair.verdict))
    else:
        found.append(Statement(f"n = {comparison.n:,} questions in {comparison.n_groups:,} groups."))
    known = (
        {name: values[metric] for name, values in comparison.baselines.items() if metric in values} if metric else {}
    )
    if known and metric:
        best = max(known.values())
        after = _value(comparison, tuned, metric) if tuned else None
        listed = "; ".join(
            f"{registry.BASELINE_LABELS.get(name, name).lower()} {percent(value)}"
            for name, value in sorted(known.items(), reverse=True)
        )
        note = f"Without any model: {listed}."
        if after is not None and after <= best:
            note = f"{note[:-1]}. The fine-tuned model does not beat that."
        found.append(Statement(note))
    return found


def formats(comparison: Comparison) -> list[Statement]:
    """The loss in quality of each exported format, and the smallest format without one."""
    metric, reference = primary_metric(comparison), reference_variant(comparison)
    if metric is None or reference is None:
        return []
    found: list[Statement] = []
    tied: list[str] = []
    same: list[str] = []
    margin = 0.0
    for variant in comparison.variants:
        pair = None if variant in (*UNTUNED, reference) else find_pair(comparison.pairs, variant, reference, metric)
        if pair is None or pair.delta is None:
            continue
        name, against = variant_label(variant), variant_label(reference)
        span = f"95% CI {_range(pair.ci95)}" if pair.ci95 else "no interval"
        if pair.verdict == "identical":
            same.append(variant)
        elif pair.verdict == "tied":
            tied.append(variant)
            margin = max(margin, pair.margin)
        elif pair.verdict == "undecided":
            found.append(
                Statement(f"{name}: {points(pair.delta)} points against {against}, undecided ({span}).", "undecided")
            )
        else:
            verb = "gains" if pair.verdict == "better" else "loses"
            found.append(
                Statement(
                    f"{name} {verb} {points(abs(pair.delta), sign=False)} points against {against} ({span}).",
                    pair.verdict,
                )
            )
    if tied:
        verb = "is" if len(tied) == 1 else "are"
        text = (
            f"{_listed(tied)} {verb} tied with {variant_label(reference)}, within {points(margin, sign=False)} points."
        )
        found.insert(0, Statement(text, "tied"))
    if same:
        verb = "gives" if len(same) == 1 else "give"
        text = f"{_listed(same)} {verb} the same text as {variant_label(reference)} on all {comparison.n:,} questions."
        found.insert(0, Statement(text, "identical"))
    if tied := [*same, *tied]:
        # The adapter is small on disk, but needs its base beside it.
        sizes = {v: comparison.variants[v].cost.size_bytes for v in tied if v != ADAPTER}
        smallest = min(sizes, key=lambda v: sizes[v], default=None)
        whole = comparison.variants[reference].cost.size_bytes
        if smallest and whole and sizes[smallest] < whole:
            saved = percent(1 - sizes[smallest] / whole)
            text = f"Smallest format that is as good: {variant_label(smallest)}, {megabytes(sizes[smallest])}, {saved} smaller than {variant_label(reference)}."
            found.append(Statement(text))
    return found


def best_and_ties(comparison: Comparison, metric: str) -> tuple[str | None, set[str]]:
    """The variant with the highest mean, and those tested and found tied with it."""
    values = {
        v: m.value for v, r in comparison.variants.items() if (m := r.metrics.get(metric)) and m.value is not None
    }
    if len(values) < 2:
        return None, set()
    best = max(values, key=lambda variant: values[variant] or 0.0)
    pairs = {v: find_pair(comparison.pairs, v, best, metric) for v in values if v != best}
    return best, {
        v
        for v, pair in pairs.items()
        if values[v] == values[best] or (pair is not None and pair.verdict in ("tied", "identical"))
    }


def _listed(variants: Sequence[str]) -> str:
    names = [variant_label(variant) for variant in variants]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _value(comparison: Comparison, variant: str, metric: str) -> float | None:
    result = comparison.variants.get(variant)
    found: MetricValue | None = result.metrics.get(metric) if result else None
    return found.value if found else None


def _range(interval: tuple[float, float]) -> str:
    return f"{points(interval[0])} to {points(interval[1])}"


def _trim(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
