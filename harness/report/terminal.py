"""Tables for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.errors import visible
from harness.records import Comparison, MetricValue, Pair
from harness.report.headline import p_value, variant_order

SHOWN = {
    "exact_match_normalized": "exact match",
    "token_f1": "token F1",
    "rougeL": "ROUGE-L",
    "citation_f1": "citation F1",
}
"""Metric -> heading: what fits beside one another; the report has them all."""
MAIN = "exact_match_normalized"
WIDTH = 110
"""Columns where there is no terminal to ask."""


def show_comparison(comparison: Comparison) -> None:
    """Variants x metrics with 95% intervals, baselines below, then what was tested against the base and merged_16bit, and the alarms."""
    console = _console()
    metrics = [m for m in SHOWN if any(m in v.metrics for v in comparison.variants.values())]
    table = Table(
        title=f"{comparison.run}: {comparison.n} held-out questions in {comparison.n_groups} groups, mean and 95% interval"
    )
    table.add_column("")
    for heading in [*(SHOWN[m] for m in metrics), "tokens/s", "MB"]:
        table.add_column(heading, justify="right", no_wrap=True)
    for name in variant_order(comparison):
        variant = comparison.variants[name]
        speed = f"{variant.cost.tokens_per_second:,.0f}" if variant.cost.tokens_per_second else "-"
        table.add_row(
            name, *[_cell(variant.metrics.get(m)) for m in metrics], speed, f"{variant.cost.size_bytes / 1e6:,.1f}"
        )
    table.add_section()
    for name, values in comparison.baselines.items():
        table.add_row(name, *[f"{values[m]:.3f}          " if m in values else "-" for m in metrics], "", "")
    console.print(table)
    show_pairs([p for p in comparison.pairs if p.metric == MAIN and p.right in ("base", "merged_16bit")])
    for alarm in comparison.alarms:
        console.print(f"ALARM {alarm.code}: {alarm.message}", markup=False)


def show_pairs(pairs: list[Pair]) -> None:
    """Paired differences, one a row."""
    table = Table(title="paired differences")
    for column in ("left - right", "metric", "delta", "95% interval", "p, corrected", "verdict"):
        table.add_column(column, no_wrap=True)
    for p in pairs:
        delta = "-" if p.delta is None else f"{p.delta:+.3f}"
        interval = "-" if p.ci95 is None else f"{p.ci95[0]:+.3f} to {p.ci95[1]:+.3f}"
        adjusted = "-" if p.p_adjusted is None else p_value(p.p_adjusted).removeprefix("p ").removeprefix("= ")
        table.add_row(f"{p.left} - {p.right}", SHOWN.get(p.metric, p.metric), delta, interval, adjusted, p.verdict)
    _console().print(table)


def show_answers(answers: list[tuple[str, str, str]]) -> None:
    """(question, who, answer) triples, question by question; answers are untrusted and shown as plain text."""
    table = Table(show_lines=False)
    for column in ("who", "answer"):
        table.add_column(column)
    for question in dict.fromkeys(q for q, _, _ in answers):
        table.add_section()
        table.add_row("", Text(visible(question), style="bold"))
        for _, who, answer in (a for a in answers if a[0] == question):
            table.add_row(who, Text(visible(answer)))
    _console().print(table)


def _cell(value: MetricValue | None) -> str:
    if value is None or value.value is None:
        return "-"
    return f"{value.value:.3f}" + (f" {value.ci95[0]:.2f}-{value.ci95[1]:.2f}" if value.ci95 else "")


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)
