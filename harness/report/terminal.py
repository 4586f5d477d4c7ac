"""Tables for the terminal: names first, fewer columns where it is narrow, never a cut number."""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.errors import visible
from harness.records import Comparison, MetricValue, Pair
from harness.registry import metric_label, summary_metrics
from harness.report import figures
from harness.report.headline import (
    formats,
    headline,
    p_value,
    percent,
    points,
    primary_metric,
    variant_order,
)

WIDTH = 110
"""Columns where there is no terminal to ask."""
BORDERS = 3
"""Columns that a table takes for each cell's padding and line."""


@dataclass(frozen=True)
class Column:
    """A table column; one with `needed` is always shown, the others while there is room."""

    heading: str
    cells: list[str]
    needed: bool = False
    right: bool = True

    @property
    def width(self) -> int:
        """In terminal cells, with padding and line."""
        return max(map(cell_len, [self.heading, *self.cells])) + BORDERS


def show_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Variants x metrics, the primary one with its 95% interval; model-free baselines below; the tested pairs, the alarms, the result in words."""
    console = console or _console()
    primary = primary_metric(comparison)
    names = variant_order(comparison)
    variants = [comparison.variants[name] for name in names]
    without_model = list(comparison.baselines.items())
    blank = [""] * len(without_model)
    columns = [Column("", [*names, *(name for name, _ in without_model)], needed=True, right=False)]
    if primary:
        means = [_mean(v.metrics.get(primary)) for v in variants]
        intervals = [_interval(v.metrics.get(primary)) for v in variants]
        columns.append(Column(metric_label(primary), [*means, *_values(without_model, primary)], needed=True))
        columns.append(Column("95% interval", [*intervals, *blank], needed=True))
    columns.append(Column("MB", [*(f"{v.cost.size_bytes / 1e6:,.1f}" for v in variants), *blank], needed=True))
    speeds = [f"{v.cost.tokens_per_second:,.0f}" if v.cost.tokens_per_second else "-" for v in variants]
    columns.append(Column("tokens/s", [*speeds, *blank]))
    for metric in summary_metrics():
        if metric != primary and any(metric in v.metrics for v in variants):
            means = [_mean(v.metrics.get(metric)) for v in variants]
            columns.append(Column(metric_label(metric), [*means, *_values(without_model, metric)]))
    title = f"{comparison.run}: {comparison.n} held-out questions in {comparison.n_groups} groups"
    _print(console, title, columns, rule_after=len(names))
    show_figures(comparison, console)
    show_pairs([p for p in comparison.pairs if p.metric == primary and p.family == "confirmatory"], console)
    for alarm in comparison.alarms:
        console.print(f"ALARM {alarm.code}: {alarm.message}", markup=False)
    for statement in [headline(comparison), *formats(comparison)]:
        console.print(visible(statement.text), markup=False, highlight=False)


def show_figures(comparison: Comparison, console: Console | None = None) -> None:
    """What the QA file's own columns allow to tell, figures x variants; nothing where it has none."""
    told = figures.table(comparison)
    if not told.lines:
        return
    columns = [Column("", [line.label for line in told.lines], needed=True, right=False)]
    columns += [
        Column(name, [line.texts[at] for line in told.lines], needed=name in told.variants[:2])
        for at, name in enumerate(told.variants)
    ]
    columns.insert(1, Column("n", [str(line.n) for line in told.lines]))
    _print(console or _console(), "what the file says of its questions", columns)


def show_pairs(pairs: list[Pair], console: Console | None = None) -> None:
    """Paired differences in percentage points, one a row."""
    if not pairs:
        return
    metrics = {p.metric for p in pairs}
    columns = [Column("left - right", [f"{p.left} - {p.right}" for p in pairs], needed=True, right=False)]
    if len(metrics) > 1:
        columns.append(Column("metric", [metric_label(p.metric) for p in pairs], needed=True, right=False))
    spans = ["-" if p.ci95 is None else f"{points(p.ci95[0])} to {points(p.ci95[1])}" for p in pairs]
    columns += [
        Column("points", ["-" if p.delta is None else points(p.delta) for p in pairs], needed=True),
        Column("verdict", [p.verdict for p in pairs], needed=True, right=False),
        Column("95% interval", spans),
        Column("p, corrected", ["-" if p.p_adjusted is None else p_value(p.p_adjusted)[2:] for p in pairs]),
    ]
    title = "paired differences" + (f", {metric_label(next(iter(metrics)))}" if len(metrics) == 1 else "")
    _print(console or _console(), title, columns)


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


def _print(console: Console, title: str, columns: list[Column], *, rule_after: int = 0) -> None:
    """As many of the columns, in their order, as the console has room for; those that are needed are never left out."""
    room = console.width - 1 - sum(column.width for column in columns if column.needed)
    chosen = []
    for column in columns:
        if column.needed or column.width <= room:
            chosen.append(column)
            room -= 0 if column.needed else column.width
    table = Table(title=Text(visible(title)))
    for column in chosen:
        table.add_column(column.heading, justify="right" if column.right else "left", no_wrap=True)
    for at, row in enumerate(zip(*(column.cells for column in chosen), strict=True)):
        if at and at == rule_after:
            table.add_section()
        table.add_row(*(Text(visible(cell)) for cell in row))
    console.print(table)


def _values(without_model: list[tuple[str, dict[str, float]]], metric: str) -> list[str]:
    return [percent(values[metric]) if metric in values else "-" for _, values in without_model]


def _mean(value: MetricValue | None) -> str:
    return "-" if value is None or value.value is None else percent(value.value)


def _interval(value: MetricValue | None) -> str:
    return "-" if value is None or value.ci95 is None else f"{percent(value.ci95[0])} to {percent(value.ci95[1])}"


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)
