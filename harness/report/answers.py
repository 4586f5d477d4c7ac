"""The report's views that go question by question: the answers, the largest losses, and several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness import registry
from harness.records import Pair
from harness.registry import metric_label
from harness.report.headline import (
    find_pair,
    interval,
    percent,
    points,
    primary_metric,
    reference_variant,
    tuned_variant,
)
from harness.report.sections import NONE, Inputs, metrics_of
from harness.variants import ADAPTER, UNTUNED
from harness.variants import label as variant_label


def answers(inputs: Inputs) -> dict[str, Any]:
    """The answers, column by column, for the page's script: `questions` and, for each variant, texts, finish reasons and scores."""
    comparison, metrics = inputs.comparison, metrics_of(inputs.comparison)
    position = {question.id: at for at, question in enumerate(inputs.questions)}
    variants = []
    for variant in comparison.variants:
        column: dict[str, Any] = {
            "name": variant,
            "label": variant_label(variant),
            "text": [None] * len(position),
            "finish": [None] * len(position),
            "note": {},
            "scores": [[None] * len(metrics) for _ in position],
        }
        for prediction in inputs.predictions.get(variant, []):
            at = position.get(prediction.id)
            if at is not None:
                column["text"][at], column["finish"][at] = prediction.text, prediction.finish_reason
                notes = [prediction.error or "", "the prompt was cut" if prediction.prompt_cut else ""]
                if any(notes):
                    column["note"][at] = "; ".join(filter(None, notes))
        for score in inputs.scores.get(variant, []):
            at = position.get(score.id)
            if at is not None:
                column["scores"][at] = [
                    None if (value := score.scores.get(m)) is None else round(value, 4) for m in metrics
                ]
                if score.unscored:
                    column["note"].setdefault(at, f"unscored: {score.unscored}")
        variants.append(column)
    fields = ("id", "question", "answer", "references", "kind", "part", "article", "group", "row", "nearest_train")
    shipping = comparison.shipping
    tuned = (shipping.variant if shipping else None) or tuned_variant(comparison)
    reference = (shipping.reference if shipping else None) or reference_variant(comparison)
    names = list(comparison.variants)
    against = (shipping.base if shipping else None) or ("base" if "base" in names else reference)
    formats = [c.variant for c in shipping.candidates] if shipping else []
    return {
        "metrics": [metric_label(metric) for metric in metrics],
        "variants": variants,
        "questions": {name: [getattr(question, name) for question in inputs.questions] for name in fields},
        "left": names.index(tuned) if tuned in names else 0,
        "right": names.index(against) if against in names else 0,
        "reference": names.index(reference) if reference in names else None,
        "formats": [names.index(v) for v in formats if v in names and v not in (reference, ADAPTER)],
        "graded": next((metrics.index(m) for m in registry.graded_metrics() if m in metrics), 0),
        "run": comparison.run,
        "split": comparison.split_id,
    }


def regressions(inputs: Inputs, left: str, right: str, limit: int = 10) -> list[dict[str, Any]]:
    """The questions on which `left` loses most to `right`: by the primary metric, then by token F1, then in the file's order."""
    metric = primary_metric(inputs.comparison)
    if metric is None:
        return []
    mine, other = ({score.id: score.scores for score in inputs.scores.get(variant, [])} for variant in (left, right))
    texts = {variant: {p.id: p.text for p in inputs.predictions.get(variant, [])} for variant in (left, right)}
    found = []
    for question in inputs.questions:
        a, b = mine.get(question.id, {}), other.get(question.id, {})
        one, two = a.get(metric), b.get(metric)
        if one is not None and two is not None and one < two:
            fine = (a.get("token_f1") or 0.0) - (b.get("token_f1") or 0.0)
            found.append((one - two, fine, question))
    found.sort(key=lambda item: item[:2])
    return [
        {
            "id": question.id,
            "question": question.question,
            "reference": question.answer,
            "left": texts[left].get(question.id, ""),
            "right": texts[right].get(question.id, ""),
            "delta": points(delta),
        }
        for delta, _, question in found[:limit]
    ]


def regression_lists(inputs: Inputs, limit: int = 10) -> list[dict[str, Any]]:
    """The losses to show: fine-tuned against base, and each format not tied with the reference."""
    comparison = inputs.comparison
    metric, tuned, reference = primary_metric(comparison), tuned_variant(comparison), reference_variant(comparison)
    wanted = [(tuned, "base")] if tuned and "base" in comparison.variants else []
    for variant in comparison.variants:
        if variant not in (*UNTUNED, reference) and metric and reference:
            pair = find_pair(comparison.pairs, variant, reference, metric)
            if pair is not None and pair.verdict in ("worse", "undecided"):
                wanted.append((variant, reference))
    lists = [
        {"left": variant_label(a), "right": variant_label(b), "rows": regressions(inputs, a, b, limit)}
        for a, b in wanted
    ]
    return [entry for entry in lists if entry["rows"]]


def runs_table(
    inputs: Inputs, others: Sequence[Inputs], tested: Sequence[Pair] = (), refused: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    """Several runs side by side on the primary metric; a number of other questions or another signature is named, not compared.

    Args:
        inputs: this run.
        others: the further runs.
        tested: pairs named `run/variant`, where the runs were compared; without them a difference is given and called untested.
        refused: run -> why it is not compared with this one; listed below the table as `notes`.
    """
    mine, refused = inputs.comparison, refused or {}
    metric = primary_metric(mine)
    if not others or metric is None:
        return None
    columns = [
        "Variant",
        "Run",
        metric_label(metric),
        "95% CI",
        f"Against {mine.run}",
        "95% CI of that",
        "Verdict",
        "Better / worse / same",
    ]
    rows = []
    runs = (inputs, *others)
    for variant in dict.fromkeys(variant for run in runs for variant in run.comparison.variants):
        for run in runs:
            measured = result.metrics.get(metric) if (result := run.comparison.variants.get(variant)) else None
            if measured is not None:
                ci = f"{percent(measured.ci95[0])} to {percent(measured.ci95[1])}" if measured.ci95 else NONE
                against = (
                    ["this run", NONE, NONE, NONE]
                    if run is inputs
                    else _against(inputs, run, variant, metric, tested, refused)
                )
                rows.append([variant_label(variant), run.comparison.run, percent(measured.value), ci, *against])
    notes = [f"{run} is not compared: {reason}." for run, reason in refused.items()]
    return {
        "columns": columns,
        "numeric": [False, False, True, True, True, True, False, True],
        "rows": rows,
        "notes": notes,
    }


def trainings_table(runs: Sequence[Inputs]) -> dict[str, Any]:
    """How each run was trained, and its final loss."""
    rows = []
    for run in runs:
        if (t := run.train) is not None:
            losses = [NONE if loss is None else f"{loss:.3f}" for loss in (t.final_loss, t.final_dev_loss)]
            rows.append(
                [run.comparison.run, f"{t.steps:,}", f"{t.epochs:.2f}", f"{t.rows:,}", *losses, f"{t.seconds:,.0f}"]
            )
    columns = ["Run", "Steps", "Epochs", "Rows", "Train loss at the end", "Dev loss at the end", "Seconds"]
    return {"columns": columns, "numeric": [False, *[True] * 6], "rows": rows}


def _against(
    inputs: Inputs, other: Inputs, variant: str, metric: str, tested: Sequence[Pair], refused: Mapping[str, str]
) -> list[str]:
    """Difference, interval, verdict and record of one variant of another run against the same variant of this one."""
    mine, theirs = inputs.comparison, other.comparison
    ours = mine.variants[variant].metrics.get(metric) if variant in mine.variants else None
    measured = theirs.variants[variant].metrics[metric]
    if theirs.run in refused:
        return [NONE, NONE, "not compared", NONE]
    if theirs.split_id != mine.split_id:
        return [NONE, NONE, "not comparable: other questions", NONE]
    if ours is None:
        return [NONE, NONE, "not in this run", NONE]
    if ours.signature != measured.signature:
        return [NONE, NONE, "not comparable: other signature", NONE]
    if ours.value is None or measured.value is None:
        return [NONE, NONE, "unscored", NONE]
    pair = find_pair(tested, f"{theirs.run}/{variant}", f"{mine.run}/{variant}", metric)
    if pair is None or pair.delta is None:
        return [points(measured.value - ours.value), NONE, "not tested", _record(other, inputs, variant, metric)]
    return [points(pair.delta), interval(pair), pair.verdict, f"{pair.wins} / {pair.losses} / {pair.ties}"]


def _record(left: Inputs, right: Inputs, variant: str, metric: str) -> str:
    mine = {score.id: score.scores.get(metric) for score in right.scores.get(variant, [])}
    both = [
        (a, b)
        for score in left.scores.get(variant, [])
        if (a := score.scores.get(metric)) is not None and (b := mine.get(score.id)) is not None
    ]
    return f"{sum(a > b for a, b in both)} / {sum(a < b for a, b in both)} / {sum(a == b for a, b in both)}"
