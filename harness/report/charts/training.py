"""The training curves: every quantity that was logged, raw and smoothed, of one run or of several overlaid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from harness.records import HistoryPoint
from harness.report.charts.label_placement import smooth, thin
from harness.report.charts.plotly_base import Drawing, base_layout, figure, rounded, rule, safe

SERIES = ["var(--accent)", "var(--series-2)", "var(--series-3)", "var(--series-4)"]
DASHES = ["solid", "dash", "dot", "dashdot"]
CURVES = {
    "loss": ("Loss", "nats per token"),
    "learning_rate": ("Learning rate", ""),
    "grad_norm": ("Gradient norm", ""),
    "tokens_per_second": ("Training speed", "tokens/s"),
}


def curves(histories: Mapping[str, Sequence[HistoryPoint]]) -> list[Drawing]:
    """One figure for each quantity that any run logged; several runs are overlaid."""
    drawings = []
    for field, (title, unit) in CURVES.items():
        traces: list[go.Scatter] = []
        for at, (run, history) in enumerate(histories.items()):
            colour, dash = SERIES[at % len(SERIES)], DASHES[at % len(DASHES)]
            several = len(histories) > 1
            name = {(True, True): f"{run}, train", (True, False): run, (False, True): "train"}.get(
                (several, field == "loss"), title.lower()
            )
            traces += _raw_and_smooth(history, field, name, colour, dash, several=several)
            if field == "loss":
                traces += _dev(
                    history,
                    f"{run}, dev" if several else "dev",
                    colour if several else "var(--series-2)",
                    dash,
                )
        if not traces:
            continue
        legend = field == "loss" or len(histories) > 1
        last = max(point.step for history in histories.values() for point in history)
        layout = base_layout(margin={"l": 56, "r": 12, "t": 30 if legend else 8, "b": 40}, showlegend=legend)
        layout["xaxis"] |= {"title": {"text": "Step", "standoff": 8}, "range": [0, 1.02 * last], "nticks": 6}
        layout["yaxis"] |= {
            "title": {"text": unit, "standoff": 6},
            "rangemode": "tozero",
            "nticks": 5,
            "exponentformat": "e",
        }
        if len(histories) == 1:
            layout["shapes"], layout["annotations"] = _epochs(next(iter(histories.values())))
        runs = f" of {len(histories)} runs" if len(histories) > 1 else ""
        drawings.append(
            Drawing(
                f"curve-{field}",
                title,
                f"{title}{runs} by training step{_ends(histories, field)}.",
                270,
                figure(traces, layout),
            )
        )
    return drawings


def _raw_and_smooth(
    history: Sequence[HistoryPoint], field: str, name: str, colour: str, dash: str, *, several: bool
) -> list[go.Scatter]:
    """The values as logged and their moving average; of several runs only the averages are named."""
    measured = [point for point in history if getattr(point, field) is not None]
    if not measured:
        return []
    steps, values = [float(point.step) for point in measured], [float(getattr(point, field)) for point in measured]
    strong = {"color": colour, "width": 2, "dash": dash}
    if field == "learning_rate":
        return [_curve(*thin(steps, values), history, name, strong)]
    return [
        _curve(
            *thin(steps, values),
            history,
            f"{name}, raw",
            {"color": colour, "width": 1},
            opacity=0.35,
            showlegend=not several,
        ),
        _curve(*thin(steps, smooth(values)), history, name if several else f"{name}, smoothed", strong),
    ]


def _dev(history: Sequence[HistoryPoint], name: str, colour: str, dash: str) -> list[go.Scatter]:
    measured = [(float(point.step), point.dev_loss) for point in history if point.dev_loss is not None]
    if not measured:
        return []
    line, marker = {"color": colour, "width": 2, "dash": dash}, {"symbol": "square", "size": 7, "color": colour}
    steps, values = [step for step, _ in measured], [value for _, value in measured]
    return [_curve(steps, values, history, name, line, mode="lines+markers", marker=marker)]


def _curve(
    steps: Sequence[float],
    values: Sequence[float],
    history: Sequence[HistoryPoint],
    name: str,
    line: dict[str, Any],
    **more: Any,
) -> go.Scatter:
    """A trace by step that also shows the epoch."""
    epochs = {point.step: point.epoch for point in history}
    return go.Scatter(
        x=rounded(steps),
        y=rounded(values),
        customdata=rounded([epochs[int(step)] for step in steps]),
        name=safe(name),
        line=line,
        hovertemplate="step %{x}, epoch %{customdata:.2f}: %{y:.4g}<extra>" + safe(name) + "</extra>",
        **({"mode": "lines"} | more),
    )


def _epochs(history: Sequence[HistoryPoint]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A line and a label where each epoch ends (up to eight)."""
    ends: list[tuple[int, int]] = []
    for before, after in pairwise(history):
        if int(after.epoch) > int(before.epoch):
            ends.append((after.step, int(after.epoch)))
    ends = ends if len(ends) <= 8 else []
    notes = [
        {
            "x": step,
            "y": 1,
            "yref": "paper",
            "xanchor": "left",
            "xshift": 2,
            "yanchor": "top",
            "text": f"epoch {epoch}",
            "showarrow": False,
            "font": {"size": 11},
        }
        for step, epoch in ends
    ]
    return [rule(step, "dot", "var(--ink-3)") for step, _ in ends], notes


def _ends(histories: Mapping[str, Sequence[HistoryPoint]], field: str) -> str:
    parts = []
    for run, history in histories.items():
        values = [value for point in history if (value := getattr(point, field)) is not None]
        if values:
            parts.append(f"{run} from {values[0]:.3g} to {values[-1]:.3g}")
    return f"; {', '.join(parts)}" if parts else ""
