"""Several runs: the comparison of a later one with the first in words, and the folder of their report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.records import Pair, Verdict
from harness.registry import metric_inline, metric_label
from harness.report.headline import find_pair, interval, percent, points, primary_metric, tuned_variant
from harness.report.sections import NONE, Inputs
from harness.variants import label as variant_label


@dataclass(frozen=True)
class Versus:
    """One run against the first."""

    title: str
    reason: str
    verdict: Verdict | None
    """None: they must not be compared, or were not tested."""

    @property
    def decision(self) -> str:
        """The class of the banner: better is green, worse is not."""
        return {"better": "ship", "worse": "do-not-ship"}.get(self.verdict or "", "cannot-tell")


def versus(first: Inputs, others: Sequence[Inputs], tested: Sequence[Pair], refused: Mapping[str, str]) -> list[Versus]:
    """Each further run against the first, on the first's primary metric and the variant that represents fine-tuning."""
    return [_versus(first, other, tested, refused) for other in others]


def _versus(first: Inputs, other: Inputs, tested: Sequence[Pair], refused: Mapping[str, str]) -> Versus:
    a, b = first.comparison, other.comparison
    title = f"{b.run} against {a.run}"
    if b.run in refused:
        return Versus(f"{title}: not comparable", f"{refused[b.run][:1].upper()}{refused[b.run][1:]}.", None)
    metric, variant = primary_metric(a), tuned_variant(a)
    if variant not in b.variants:
        variant = next((name for name in a.variants if name in b.variants), variant)
    pair = find_pair(tested, f"{b.run}/{variant}", f"{a.run}/{variant}", metric or "") if metric and variant else None
    if pair is None or pair.delta is None:
        return Versus(f"{title}: not tested", "They have no variant in common that both scored.", None)
    sides = [run.variants[variant or ""].metrics.get(metric or "") for run in (a, b)]
    means = [percent(side.value) if side else NONE for side in sides]
    span = f"{variant_label(variant or '')}: {metric_inline(metric or '')} {means[0]} in {a.run}, {means[1]} in {b.run}"
    return Versus(f"{title}: {in_words(pair)}", f"{span}; {evidence(pair)}.", pair.verdict)


def in_words(pair: Pair) -> str:
    """`better by 3.2 points`, `no difference that matters`, ..., of left against right."""
    size = points(abs(pair.delta or 0.0), sign=False)
    return {
        "better": f"better by {size} points",
        "worse": f"worse by {size} points",
        "tied": "no difference that matters",
        "identical": "the same answers",
        "undecided": f"undecided ({points(pair.delta or 0.0)} points)",
    }[pair.verdict]


def evidence(pair: Pair) -> str:
    """Interval, questions, the detectable difference, and whether the interval covers other seeds."""
    parts = [f"difference {points(pair.delta or 0.0)} points"]
    if pair.verdict == "identical":
        parts = [f"difference 0, {interval(pair)} questions"]
    else:
        parts += [*([f"95% interval {interval(pair)}"] if pair.ci95 else []), f"{pair.n:,} questions"]
    text = ", ".join(parts)
    if pair.verdict == "undecided" and pair.mde is not None:
        text += (
            f"; with so many, a difference of {points(pair.mde, sign=False)} points would be found four times in five"
        )
    return text + (f"; {pair.seed_note}" if pair.seed_note else "")


# ----------------------------------------------------------------------------------------------- harness compare A B


def main_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """Those on the metric that decides."""
    confirmatory = {pair.metric for pair in pairs if pair.family == "confirmatory"}
    return [pair for pair in pairs if pair.metric in confirmatory] or list(pairs)


def summary(pairs: Sequence[Pair], left: str, right: str) -> str:
    """One sentence on left against right: of the variant that represents fine-tuning, on the metric that decides."""
    found = main_pairs(pairs)
    names = [pair.left.partition("/")[2] for pair in found]
    pair = next(
        (p for name in ("adapter", "merged_16bit") for p, n in zip(found, names, strict=True) if n == name), None
    )
    pair = pair or next((p for p, n in zip(found, names, strict=True) if n != "base"), found[0])
    what = f"{variant_label(pair.left.partition('/')[2])}, {metric_inline(pair.metric)}"
    return f"{left} against {right}: {in_words(pair)} ({what}; {evidence(pair)})."


def as_json(pairs: Sequence[Pair], left: str, right: str) -> str:
    """The summary and every pair, as `comparison.json` has them."""
    value = {"summary": summary(pairs, left, right), "pairs": [pair.model_dump(mode="json") for pair in pairs]}
    return json.dumps(value, indent=2, ensure_ascii=False)


def as_markdown(pairs: Sequence[Pair], left: str, right: str, plain: Any) -> str:
    """The summary and a table; `plain` escapes what could be markup."""
    heads = ["Variant", "Metric", "Points", "95% interval", "Verdict", "Better / worse / same"]
    rows = [
        [
            variant_label(pair.left.partition("/")[2]),
            metric_label(pair.metric),
            NONE if pair.delta is None else points(pair.delta),
            interval(pair),
            pair.verdict,
            f"{pair.wins} / {pair.losses} / {pair.ties}",
        ]
        for pair in pairs
    ]
    lines = [f"| {' | '.join(map(plain, row))} |" for row in (heads, *rows)]
    lines.insert(1, "| :-- | :-- | --: | --: | :-- | --: |")
    return "\n".join([f"**{plain(summary(pairs, left, right))}**", "", *lines])
