"""Tables for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from harness.records import Comparison, MetricValue, Pair

SHOWN = {
    "exact_match_normalized": "exact",
    "exact_match": "raw exact",
    "token_f1": "F1",
    "rouge1": "R-1",
    "rouge2": "R-2",
    "rougeL": "R-L",
    "citation_f1": "cite F1",
}
"""Metric -> heading: narrow enough for 100 columns; the report has them all."""
MAIN = "exact_match_normalized"


def show_comparison(comparison: Comparison) -> None:
    """Variants x metrics with 95% intervals, baselines below, pairs against the base, alarms."""
    console = Console()
    metrics = [m for m in SHOWN if any(m in v.metrics for v in comparison.variants.values())]
    table = Table(title=f"{comparison.run}: {comparison.n} held-out questions in {comparison.n_groups} groups", caption="95% intervals")
    table.add_column("", no_wrap=True)
    for metric in metrics:
        table.add_column(SHOWN[metric], justify="right", no_wrap=True)
    table.add_column("tokens/s", justify="right")
    table.add_column("MB", justify="right")
    for name, variant in comparison.variants.items():
        cells = [_cell(variant.metrics.get(m)) for m in metrics]
        speed = f"{variant.cost.tokens_per_second:,.0f}" if variant.cost.tokens_per_second else "-"
        table.add_row(name, *cells, speed, f"{variant.cost.size_bytes / 1e6:,.1f}")
    for name, values in comparison.baselines.items():
        table.add_row(f"[dim]{name}[/dim]", *[f"{values[m]:.3f}" if m in values else "-" for m in metrics], "", "")
    console.print(table)
    show_pairs([p for p in comparison.pairs if p.metric == MAIN and p.right in ("base", "merged_16bit")])
    for alarm in comparison.alarms:
        console.print(f"ALARM {alarm.code}: {alarm.message}", markup=False)


def show_pairs(pairs: list[Pair]) -> None:
    """Paired differences, one a row."""
    table = Table(title="paired differences (left - right)")
    for column in ("left", "right", "metric", "delta", "95% interval", "p (Holm)", "verdict"):
        table.add_column(column, no_wrap=True)
    for p in pairs:
        delta = "-" if p.delta is None else f"{p.delta:+.3f}"
        interval = "-" if p.ci95 is None else f"{p.ci95[0]:+.3f} to {p.ci95[1]:+.3f}"
        table.add_row(
            p.left, p.right, SHOWN.get(p.metric, p.metric), delta, interval, "-" if p.p_holm is None else f"{p.p_holm:.4f}", p.verdict
        )
    Console().print(table)


def _cell(value: MetricValue | None) -> str:
    if value is None or value.value is None:
        return "-"
    return f"{value.value:.3f}" + (f"\n{value.ci95[0]:.2f}-{value.ci95[1]:.2f}" if value.ci95 else "")
