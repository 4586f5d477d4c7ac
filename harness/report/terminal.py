"""Tables for the terminal: names first, fewer columns where it is narrow, never a cut number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.errors import visible
from harness.records import Comparison, MarksResult, MetricValue, Pair
from harness.registry import metric_label, summary_metrics
from harness.report import figures
from harness.report.headline import (
    formats,
    headline,
    interval,
    p_value,
    percent,
    points,
    primary_metric,
    tuned_variant,
    variant_order,
)
from harness.report.runs import RunRow

WIDTH = 110
"""Width in columns where there is no terminal."""
BORDERS = 3
"""Columns that a table takes for each cell's padding and line."""
TEXT = 40
"""Width that a column of text keeps where the terminal is narrow; longer text wraps."""


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

    @property
    def least(self) -> int:
        """The width that it must have: text wraps, a number never does."""
        return self.width if self.right else min(self.width, TEXT + BORDERS)


def show_comparison(comparison: Comparison, console: Console | None = None, *, decision: bool = True) -> None:
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
        if any(value and value.n_failed for value in (v.metrics.get(primary) for v in variants)):
            # Each mean is over the answered questions: without this column a variant that fails on the hard ones would look better.
            columns.append(
                Column(
                    "failed = wrong", [*(_with_failures(v.metrics.get(primary)) for v in variants), *blank], needed=True
                )
            )
    columns.append(
        Column(
            "MB",
            [*(f"{v.cost.size_bytes / 1e6:,.1f}" if v.cost.size_bytes else "-" for v in variants), *blank],
            needed=True,
        )
    )
    speeds = [f"{v.cost.tokens_per_second:,.0f}" if v.cost.tokens_per_second else "-" for v in variants]
    columns.append(Column("tokens/s", [*speeds, *blank]))
    if any(v.cost.money is not None for v in variants):
        columns.append(
            Column("cost", ["-" if v.cost.money is None else f"{v.cost.money:,.4g}" for v in variants] + blank)
        )
    for metric in summary_metrics():
        if metric != primary and any(metric in v.metrics for v in variants):
            means = [_mean(v.metrics.get(metric)) for v in variants]
            columns.append(Column(metric_label(metric), [*means, *_values(without_model, metric)]))
    title = f"{comparison.run}: {comparison.n} held-out questions in {comparison.n_groups} groups"
    _print(console, title, columns, rule_after=len(names))
    show_figures(comparison, console)
    show_pairs([p for p in comparison.pairs if p.metric == primary and p.family == "confirmatory"], console)
    _show_against_baselines(comparison, console)
    for alarm in comparison.alarms:
        console.print(f"ALARM {alarm.code}: {alarm.message}", markup=False)
    statements = [headline(comparison), *([] if comparison.shipping else formats(comparison))]
    for statement in statements:
        _say(console, statement.text)
    for entry in comparison.against_few_shot:
        _say(console, entry.text)
    if decision:
        show_decision(comparison, console)


def show_decision(comparison: Comparison, console: Console | None = None, *, file: str = "", report: str = "") -> None:
    """Whether to ship, why, what next; `file`: the path of what ships; `report`: the page, and how to open it."""
    console, shipping = console or _console(), comparison.shipping
    if shipping:
        console.print(Text(visible(shipping.title), style="bold"))
        _say(console, shipping.reason)
        if file:
            _say(console, f"File: {file}")
        _say(console, f"Next: {shipping.next_step}")
    if report:
        _say(console, f"Report: {report}")


def _say(console: Console, text: str) -> None:
    """A sentence in which no path or command is wrapped."""
    console.print(visible(text), markup=False, highlight=False, soft_wrap=True)


def _show_against_baselines(comparison: Comparison, console: Console) -> None:
    """A line where the fine-tuned model is not surely better than a no-model baseline."""
    tuned = tuned_variant(comparison)
    for pair in comparison.baseline_pairs:
        if pair.left == tuned and pair.verdict != "better" and pair.delta is not None and pair.ci95 is not None:
            span = f"{points(pair.ci95[0])} to {points(pair.ci95[1])}"
            text = f"{tuned} is not surely better than {pair.right}: {points(pair.delta)} points, 95% interval {span}, n = {pair.n}"
            console.print(visible(text), markup=False, highlight=False)


def show_figures(comparison: Comparison, console: Console | None = None) -> None:
    """Figures from the QA file's own columns, figures x variants; nothing where it has none."""
    found = figures.table(comparison)
    if not found.lines:
        return
    columns = [Column("", [line.label for line in found.lines], needed=True, right=False)]
    columns += [
        Column(name, [line.texts[at] for line in found.lines], needed=name in found.variants[:2])
        for at, name in enumerate(found.variants)
    ]
    columns.insert(1, Column("n", [str(line.n) for line in found.lines]))
    _print(console or _console(), "what the file says of its questions", columns)


def show_pairs(pairs: list[Pair], console: Console | None = None) -> None:
    """Paired differences in percentage points, one a row."""
    if not pairs:
        return
    metrics = {p.metric for p in pairs}
    columns = [Column("left - right", [f"{p.left} - {p.right}" for p in pairs], needed=True, right=False)]
    if len(metrics) > 1:
        columns.append(Column("metric", [metric_label(p.metric) for p in pairs], needed=True, right=False))
    spans = [interval(p) for p in pairs]
    columns += [
        Column("points", ["-" if p.delta is None else points(p.delta) for p in pairs], needed=True),
        Column("verdict", [p.verdict for p in pairs], needed=True, right=False),
        *([Column("n", [str(p.n) for p in pairs])] if len({p.n for p in pairs}) > 1 else []),
        Column("95% interval", spans),
        Column("p, corrected", ["-" if p.p_adjusted is None else p_value(p.p_adjusted)[2:] for p in pairs]),
    ]
    title = "paired differences" + (f", {metric_label(next(iter(metrics)))}" if len(metrics) == 1 else "")
    shown_on = console or _console()
    _print(shown_on, title, columns)
    for note in dict.fromkeys(p.seed_note for p in pairs if p.seed_note):
        shown_on.print(visible(note[0].upper() + note[1:]) + ".", markup=False, highlight=False)


def show_runs(rows: Sequence[RunRow], console: Console | None = None) -> None:
    """One row a run; what is damaged is listed below."""
    columns = [
        Column("run", [row.run for row in rows], needed=True, right=False),
        Column("last stage", [row.stage or "-" for row in rows], needed=True, right=False),
        Column("quality", [row.quality or "-" for row in rows], needed=True),
        Column("decision", [row.decision or "-" for row in rows], right=False),
        Column("gate", [row.gate or "-" for row in rows], right=False),
        Column("date", [row.date or "-" for row in rows], right=False),
        Column("metric", [metric_label(row.metric) if row.metric else "-" for row in rows], right=False),
        Column("model", [row.model or "-" for row in rows], right=False),
    ]
    console = console or _console()
    _print(console, "runs", columns)
    for row in rows:
        if row.problem:
            _say(console, f"{row.run}: {row.problem}")


def show_marks(result: MarksResult, console: Console | None = None) -> None:
    """The metric `human` of each variant, and each metric's agreement with people."""
    console = console or _console()
    values = list(result.human.values())
    columns = [
        Column("", list(result.human), needed=True, right=False),
        Column("marked right", [_mean(v) for v in values], needed=True),
        Column("95% interval", [_interval(v) for v in values], needed=True),
        Column("answers", [f"{v.n:,}" for v in values], needed=True),
    ]
    if values:
        _print(console, f"{result.run}: people's marks", columns)
    known = [a for a in result.agreements if a.kappa is not None]
    for a in sorted(known, key=lambda a: -(a.kappa or 0.0)):
        span = f" ({a.ci95[0]:.2f} to {a.ci95[1]:.2f})" if a.ci95 else ""
        _say(console, f"{metric_label(a.metric)}: Cohen's kappa {a.kappa:.2f}{span} on {a.n:,} answers")
    for v in result.preferences:
        _say(console, f"{v.for_left} prefer {v.left}, {v.for_right} {v.right}, {v.neither} neither; {p_value(v.p)}")


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
    needed = [column for column in columns if column.needed]
    room = console.width - 1 - sum(column.width for column in needed)
    if room < 0:
        room = console.width - 1 - sum(column.least for column in needed)
    chosen = []
    for column in columns:
        if column.needed or column.least <= room:
            chosen.append(column)
            room -= 0 if column.needed else column.least
    table = Table(title=Text(visible(title)))
    for column in chosen:
        table.add_column(column.heading, justify="right" if column.right else "left", no_wrap=column.right)
    for at, row in enumerate(zip(*(column.cells for column in chosen), strict=True)):
        if at and at == rule_after:
            table.add_section()
        table.add_row(*(Text(visible(cell)) for cell in row))
    console.print(table)


def _values(without_model: list[tuple[str, dict[str, float]]], metric: str) -> list[str]:
    return [percent(values[metric]) if metric in values else "-" for _, values in without_model]


def _mean(value: MetricValue | None) -> str:
    return "-" if value is None or value.value is None else percent(value.value)


def _with_failures(value: MetricValue | None) -> str:
    """The mean with failed answers counted as wrong, which is the mean where none failed."""
    if value is None or value.failures_as_wrong is None:
        return _mean(value)
    return f"{percent(value.failures_as_wrong)} ({value.n_failed} failed)"


def _interval(value: MetricValue | None) -> str:
    return "-" if value is None or value.ci95 is None else f"{percent(value.ci95[0])} to {percent(value.ci95[1])}"


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)
