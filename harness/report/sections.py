"""What the report shows, as plain values: each function turns records into one section's rows, ready to be printed.

Markup is in the templates, the wording of the verdict in `harness.report.headline`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness import variants
from harness.records import (
    Comparison,
    ExportManifest,
    GateResult,
    HistoryPoint,
    JudgeResult,
    MarksResult,
    Prediction,
    PromptForm,
    Question,
    ReportTitle,
    Score,
    SplitManifest,
    TrainManifest,
)
from harness.registry import BASELINE_LABELS, metric_label, metric_order
from harness.report.headline import (
    interval,
    p_value,
    percent,
    points,
    primary_metric,
    tuned_variant,
)
from harness.variants import BASE, BASE_FEW_SHOT, UNTUNED
from harness.variants import label as variant_label

BREAKDOWNS = {
    "kind": "Kind of question",
    "part": "Part of the Constitution",
    "answer_length": "Length of the reference",
    "similarity": "Similarity to train",
}
WORDS = {
    "left": "Format",
    "right": "Against",
    "variant": "Variant",
    "how": "What was changed",
    "n": "Answers",
    "flip_rate": "Of them changed",
    "identical": "Same text",
    "token_agreement": "Token agreement",
    "positions": "Positions",
    "top1_agreement": "Top-1 agreement",
    "mean_kl": "Mean KL",
    "median_kl": "Median KL",
    "p99_kl": "99% KL",
    "p999_kl": "99.9% KL",
    "max_kl": "Largest KL",
    "rms_dp": "RMS of the difference in probability",
    "reading": "Reading",
}
"""Keys of the rows of fidelity and noise -> the headings of their columns, in order."""
NONE = "\u2013"
ENOUGH_POSITIONS = 2000
"""Next-token distributions from which a rare large divergence shows."""


@dataclass(frozen=True)
class Inputs:
    """Everything of one run that the report reads. Absent parts are None or empty, and the report says so."""

    comparison: Comparison
    questions: list[Question] = field(default_factory=list)
    predictions: dict[str, list[Prediction]] = field(default_factory=dict)
    scores: dict[str, list[Score]] = field(default_factory=dict)
    history: list[HistoryPoint] = field(default_factory=list)
    split: SplitManifest | None = None
    train: TrainManifest | None = None
    export: ExportManifest | None = None
    gate: GateResult | None = None
    gate_is_old: bool = False
    """It is the verdict on another comparison."""
    marks: MarksResult | None = None
    """None: there are no marks, or those of another split."""
    judge: JudgeResult | None = None
    """Likewise of a judge model."""
    title: ReportTitle = field(default_factory=ReportTitle)
    prompts: dict[str, PromptForm] = field(default_factory=dict)
    """Variant -> how it was asked, where its manifest says so."""


# ------------------------------------------------------------------------------------------------------- number line


def metrics_of(comparison: Comparison) -> list[str]:
    """Every metric that any variant was scored with: the primary one first, then in the order of the labels."""
    found = {metric for result in comparison.variants.values() for metric in result.metrics}
    primary = primary_metric(comparison)
    return sorted(found, key=lambda metric: (metric != primary, metric_order(metric)))


def number_line(comparison: Comparison) -> list[dict[str, Any]]:
    """The small chart of the verdict: fine-tuned, base and the baselines on the primary metric."""
    metric, tuned = primary_metric(comparison), tuned_variant(comparison)
    rows = []
    for variant, label in ((tuned, "Fine-tuned"), (BASE_FEW_SHOT, "Base, few-shot"), (BASE, "Base model")):
        result = comparison.variants.get(variant or "")
        measured = result.metrics.get(metric or "") if result else None
        if measured is not None and measured.value is not None:
            low, high = measured.ci95 or (measured.value, measured.value)
            rows.append(
                {
                    "label": label,
                    "value": measured.value,
                    "low": low,
                    "high": high,
                    "text": percent(measured.value),
                    "model": variant not in UNTUNED,
                }
            )
    for name, values in sorted(comparison.baselines.items(), reverse=True):
        if metric in values:
            rows.append(
                {
                    "label": BASELINE_LABELS.get(name, name),
                    "value": values[metric],
                    "low": None,
                    "text": percent(values[metric]),
                    "model": False,
                }
            )
    return rows


# -------------------------------------------------------------------------------------------------------- differences


def pair_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Every tested pair with all its numbers, as text."""
    return [
        {
            "metric": metric_label(pair.metric),
            "left": variant_label(pair.left),
            "right": variant_label(pair.right),
            "delta": NONE if pair.delta is None else points(pair.delta),
            "ci": interval(pair),
            "p": p_value(pair.p),
            "p_adjusted": p_value(pair.p_adjusted),
            "family": pair.family,
            "p_mcnemar": NONE if pair.p_mcnemar is None else p_value(pair.p_mcnemar),
            "mde": NONE if pair.mde is None else points(pair.mde, sign=False),
            "record": f"{pair.wins} / {pair.losses} / {pair.ties}",
            "n": pair.n,
            "verdict": pair.verdict,
            "contract": pair.contract,
        }
        for pair in comparison.pairs
    ]


def contract_note(comparison: Comparison) -> str:
    """The contract of each pair, in a sentence or two; empty without pairs."""
    found = dict.fromkeys((pair.left, pair.right, pair.contract) for pair in comparison.pairs)
    loose = [
        f"{variant_label(a)} against {variant_label(b)}" for a, b, contract in found if contract == "same question"
    ]
    if not found:
        return ""
    if not loose:
        return "Every pair was compared under the contract “same ids”: one tokenizer, and prompts equal token by token."
    others = "" if len(loose) == len(found) else " All other pairs: “same ids”, prompts equal token by token."
    return f"Compared under the contract “same question”, each model asked by its own tokenizer and prompt: {', '.join(loose)}.{others}"


def noise_floor(comparison: Comparison) -> float | None:
    """The largest flip rate of any variant, which a meaningful difference must exceed. None: not measured."""
    return max((noise["flip_rate"] for noise in comparison.noise.values() if "flip_rate" in noise), default=None)


# ------------------------------------------------------------------------------------------- fidelity and breakdowns


def table(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of one kind as `columns` and `rows` of text: every key that any row has, those of WORDS first and in its order."""
    rows, known = list(rows), list(WORDS)
    keys = list(dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, Mapping)))
    keys.sort(key=lambda key: known.index(key) if key in known else len(known))
    return {
        "columns": [WORDS.get(key, key.replace("_", " ").capitalize()) for key in keys],
        "numeric": [all(isinstance(row.get(key), int | float | None) for row in rows) for key in keys],
        "rows": [[_cell(key, row.get(key)) + _bounds(key, row.get("intervals")) for key in keys] for row in rows],
    }


def _bounds(key: str, intervals: object) -> str:
    """The 95% interval of a value in brackets, if the row has one."""
    found = intervals.get(key) if isinstance(intervals, Mapping) else None
    if not isinstance(found, list | tuple) or not all(isinstance(bound, int | float) for bound in found):
        return ""
    return f" ({' to '.join(_cell(key, float(bound)) for bound in found)})"


def _cell(key: str, value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, str):
        return variant_label(value)
    if isinstance(value, float) and "kl" not in key.lower().split("_") and 0 <= value <= 1:
        return f"{100 * value:.1f}%"
    if isinstance(value, float):
        return f"{value:.2g}"
    return str(value)


def fidelity_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The conversion steps, each with a reading: how its divergence compares with the gate's limit of the format."""
    config = comparison.provenance.get("config")
    gate = config.get("gate") if isinstance(config, Mapping) else None
    limits = gate.get("divergence") if isinstance(gate, Mapping) else None
    limits = limits if isinstance(limits, Mapping) else variants.limits("max_divergence")
    rows = []
    for row in comparison.fidelity:
        sides = [str(row.get(side)) for side in ("left", "right")]
        limit = next((limits[name] for name in sides if name in limits), None)
        measured = row.get("mean_kl")
        reading = None
        if isinstance(measured, int | float) and isinstance(limit, int | float):
            reading = f"{'ok' if measured <= limit else 'watch'}, limit {limit:g}"
        rows.append({**row, "reading": reading})
    return rows


def fidelity_note(comparison: Comparison) -> str:
    """At how many positions the divergences were measured, and how to measure ENOUGH_POSITIONS; empty if they were or none was."""
    counted = [n for row in comparison.fidelity if isinstance(n := row.get("positions"), int) and n > 0]
    config = comparison.provenance.get("config")
    predict = config.get("predict") if isinstance(config, Mapping) else None
    asked = predict.get("fidelity_questions") if isinstance(predict, Mapping) else None
    if not counted or min(counted) >= ENOUGH_POSITIONS:
        return ""
    note = f"Measured at {min(counted)} positions"
    answers = max((n for row in comparison.fidelity if isinstance(n := row.get("n"), int)), default=0)
    if not isinstance(asked, int) or not 0 < asked < answers:
        return f"{note}."
    needed = -(-asked * ENOUGH_POSITIONS // min(counted))
    more = f"about {needed} questions give" if needed <= answers else f"all {answers} questions do not give"
    return f"{note}; {more} {ENOUGH_POSITIONS:,} (predict.fidelity_questions)."


def noise_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The noise measurements, one row each."""
    return [{"variant": key, **value} for key, value in comparison.noise.items()]


def breakdowns(comparison: Comparison) -> list[dict[str, Any]]:
    """One table for each way of dividing the questions: buckets x variants on the primary metric."""
    primary = primary_metric(comparison)
    metrics = {entry.metric for entry in comparison.breakdowns}
    metric = primary if primary in metrics else min(metrics, default=None)
    entries = [entry for entry in comparison.breakdowns if entry.metric == metric]
    found = []
    for by in dict.fromkeys(entry.by for entry in entries):
        cells = {(entry.bucket, entry.variant): entry for entry in entries if entry.by == by}
        variants = [v for v in comparison.variants if any(key[1] == v for key in cells)]
        rows = []
        for bucket in dict.fromkeys(key[0] for key in cells):
            line = [cells.get((bucket, variant)) for variant in variants]
            rows.append(
                {
                    "bucket": bucket,
                    "n": max((entry.n for entry in line if entry), default=0),
                    "cells": [
                        {
                            "text": NONE
                            if entry is None
                            else "unscored"
                            if entry.value is None
                            else f"{100 * entry.value:.0f}",
                            "value": entry.value if entry else None,
                            "low": entry.ci95[0] if entry and entry.ci95 else None,
                            "high": entry.ci95[1] if entry and entry.ci95 else None,
                        }
                        for entry in line
                    ],
                }
            )
        title = BREAKDOWNS.get(by, by.replace("_", " ").capitalize())
        found.append(
            {
                "by": by,
                "title": title,
                "metric": metric_label(metric or ""),
                "variants": [variant_label(v) for v in variants],
                "rows": rows,
            }
        )
    return found
