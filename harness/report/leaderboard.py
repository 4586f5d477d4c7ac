"""The leaderboard: variants and baselines by metric and cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from harness.records import Comparison, MetricValue
from harness.registry import BASELINE_LABELS, IN_PLAIN_WORDS, metric_label, summary_metrics
from harness.report.headline import best_and_ties, megabytes, percent
from harness.report.sections import NONE, metrics_of
from harness.variants import label as variant_label

COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "size_bytes": ("Size", megabytes),
    "tokens_per_second": ("Tokens/s", lambda value: f"{value:,.0f}"),
    "peak_memory_bytes": ("Peak memory", megabytes),
    "seconds": ("Seconds", lambda value: f"{value:,.1f}"),
    "money": ("Cost", lambda value: f"{value:,.4g}"),
}
MONEY = "what all answers cost, in the currency of the price given for the server"
FIRST_COSTS = ("size_bytes", "tokens_per_second", "money")
"""Columns shown by default; the others are shown with all metrics."""
EMPTY_CELL: dict[str, Any] = {
    "text": NONE,
    "sort": None,
    "low": None,
    "high": None,
    "mark": "",
    "title": "",
    "unscored": 0,
}


def leaderboard(comparison: Comparison) -> dict[str, Any]:
    """`columns` and `rows`: variants and baselines x metrics and costs. A cell has the keys of EMPTY_CELL."""
    metrics = metrics_of(comparison)
    marks = {metric: best_and_ties(comparison, metric) for metric in metrics}
    notes = {metric: _shared_n(comparison, metric) for metric in metrics}
    costs = {cost: column for cost, column in COSTS.items() if cost != "money" or _has_price(comparison)}
    rows = []
    for variant, result in comparison.variants.items():
        cells = [
            _metric_cell(variant, result.metrics.get(metric), *marks[metric], note=notes[metric]) for metric in metrics
        ]
        for cost, (_, show) in costs.items():
            value = getattr(result.cost, cost)
            cells.append(EMPTY_CELL if value is None else EMPTY_CELL | {"text": show(value), "sort": value})
        rows.append(
            {
                "name": variant,
                "label": variant_label(variant),
                "note": result.backend,
                "baseline": False,
                "cells": cells,
            }
        )
    for name, values in sorted(comparison.baselines.items(), reverse=True):
        cells = [
            EMPTY_CELL | {"text": f"{100 * values[m]:.1f}", "sort": values[m]} if m in values else EMPTY_CELL
            for m in metrics
        ]
        cells += [EMPTY_CELL] * len(costs)
        rows.append(
            {
                "name": name,
                "label": BASELINE_LABELS.get(name, name),
                "note": "no model",
                "baseline": True,
                "cells": cells,
            }
        )
    columns = _board_columns(metrics, notes, costs)
    return {"columns": columns, "rows": rows, "marked": any(best for best, _ in marks.values())}


def _board_columns(
    metrics: list[str], notes: Mapping[str, str], costs: Mapping[str, tuple[str, Callable[[float], str]]]
) -> list[dict[str, Any]]:
    columns = [
        {
            "label": metric_label(metric),
            "metric": True,
            "key": metric,
            "note": notes[metric],
            "words": IN_PLAIN_WORDS.get(metric, ""),
            "extra": metric != metrics[0] and metric not in summary_metrics(),
        }
        for metric in metrics
    ]
    return columns + [
        {
            "label": label,
            "metric": False,
            "key": cost,
            "note": "",
            "words": MONEY if cost == "money" else "",
            "extra": cost not in FIRST_COSTS,
        }
        for cost, (label, _) in costs.items()
    ]


def _has_price(comparison: Comparison) -> bool:
    return any(result.cost.money is not None for result in comparison.variants.values())


def _shared_n(comparison: Comparison, metric: str) -> str:
    """How many questions the metric was scored on, if that is not all of them and the same for every variant."""
    counts = {(m.n, m.n_unscored) for result in comparison.variants.values() if (m := result.metrics.get(metric))}
    n, n_unscored = next(iter(counts)) if len(counts) == 1 else (0, 0)
    return f"n = {n:,}" if n and n_unscored else ""


def _metric_cell(
    variant: str, measured: MetricValue | None, best: str | None, ties: set[str], *, note: str
) -> dict[str, Any]:
    """One number with its interval; `note`: what the column heading already says about unscored questions."""
    if measured is None:
        return EMPTY_CELL
    unscored = 0 if note else measured.n_unscored
    if measured.value is None:
        return EMPTY_CELL | {"text": "unscored", "unscored": unscored}
    low, high = measured.ci95 or (None, None)
    interval = f"95% CI {percent(low)} to {percent(high)}" if measured.ci95 else "no interval"
    return {
        "text": f"{100 * measured.value:.1f}",
        "sort": measured.value,
        "low": low,
        "high": high,
        "mark": "best" if variant == best else "tied" if variant in ties else "",
        "title": f"{percent(measured.value)}, {interval}, n = {measured.n:,}",
        "unscored": unscored,
    }
