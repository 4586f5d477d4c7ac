"""The report's figures, as Plotly JSON.

Colours are the page's own CSS variables (`var(--accent)`): the page puts their values in when it draws, so that one figure serves light, dark
and paper. Symbols and dashes carry what colours carry. Text that came from outside is escaped, since Plotly reads some HTML in labels.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from harness.records import Comparison, HistoryPoint, Pair
from harness.rendering.plotting import place, smooth, thin
from harness.rendering.verdict import megabytes, metric_label, points, variant_label

SERIES = ["var(--accent)", "var(--series-2)", "var(--series-3)", "var(--series-4)"]
DASHES = ["solid", "dash", "dot", "dashdot"]
MARKS = {"better": "triangle-up", "worse": "triangle-down", "tied": "diamond", "undecided": "circle-open"}
CURVES = {
    "loss": ("Loss", "nats per token"),
    "learning_rate": ("Learning rate", ""),
    "grad_norm": ("Gradient norm", ""),
    "tokens_per_second": ("Training speed", "tokens/s"),
}


@dataclass(frozen=True)
class Drawing:
    """One figure and what stands in its place for those who cannot see it."""

    key: str
    """Unique in the page."""
    title: str
    description: str
    """What it shows, for screen readers."""
    height: int
    """Pixels; the width is the page's."""
    plotly: dict[str, Any]
    """`data` and `layout`."""


def forest(pairs: Sequence[Pair], reference: str, metric: str, noise_floor: float | None, span: tuple[float, float]) -> Drawing:
    """Paired differences against one reference, with the margin of the verdict `tied` and the noise floor.

    Args:
        pairs: left minus `reference`, each with an interval.
        reference: the right side of every pair.
        metric: of every pair.
        noise_floor: share of answers that change when the same model answers again; 0..1.
        span: the x axis, in points, so that several forests can share one.
    """
    rows = list(range(len(pairs)))
    deltas = [100 * (pair.delta or 0.0) for pair in pairs]
    intervals = [pair.ci95 or (pair.delta or 0.0, pair.delta or 0.0) for pair in pairs]
    margin = 100 * max((pair.margin for pair in pairs), default=0.0)
    data = go.Scatter(
        x=_round(deltas),
        y=rows,
        mode="markers",
        marker={
            "symbol": [MARKS[pair.verdict] for pair in pairs],
            "size": 11,
            "color": ["var(--accent)" if pair.verdict in ("better", "worse") else "var(--ink-2)" for pair in pairs],
            "line": {"width": 1.5, "color": "var(--ink-2)"},
        },
        error_x={
            "type": "data",
            "symmetric": False,
            "array": _round([100 * high - delta for delta, (_, high) in zip(deltas, intervals, strict=True)]),
            "arrayminus": _round([delta - 100 * low for delta, (low, _) in zip(deltas, intervals, strict=True)]),
            "color": "var(--ink-2)",
            "thickness": 1.5,
            "width": 4,
        },
        customdata=[[_safe(variant_label(p.left)), p.verdict, points(i[0]), points(i[1])] for p, i in zip(pairs, intervals, strict=True)],
        hovertemplate="%{customdata[0]}: %{x:+.1f} points (%{customdata[2]} to %{customdata[3]}), %{customdata[1]}<extra></extra>",
    )
    shapes = [_band(-margin, margin, "var(--band)"), _line(0.0, "solid", "var(--ink-3)")]
    if noise_floor:
        shapes += [_line(100 * noise_floor, "dot", "var(--ink-3)"), _line(-100 * noise_floor, "dot", "var(--ink-3)")]
    notes = [
        {
            "x": 1.0,
            "xref": "paper",
            "xanchor": "left",
            "xshift": 10,
            "y": row,
            "text": f"{points(pair.delta or 0.0)} {pair.verdict}",
            "showarrow": False,
            "font": {"size": 12},
        }
        for row, pair in zip(rows, pairs, strict=True)
    ]
    names = [_safe(variant_label(pair.left)) for pair in pairs]
    layout = _layout(margin={"l": 8, "r": 122, "t": 6, "b": 44}, shapes=shapes, annotations=notes, showlegend=False)
    layout["xaxis"] |= {"range": list(span), "title": {"text": f"{metric_label(metric)}, points", "standoff": 10}, "nticks": 9}
    layout["yaxis"] |= {"tickvals": rows, "ticktext": names, "range": [len(rows) - 0.4, -0.6], "showgrid": False, "fixedrange": True}
    told = "; ".join(f"{variant_label(pair.left)} {points(pair.delta or 0.0)} points, {pair.verdict}" for pair in pairs)
    return Drawing(
        key=f"forest-{reference}/{metric}",
        title=f"Against {variant_label(reference)}",
        description=f"Differences in {metric_label(metric)} against {variant_label(reference)}, with 95% intervals: {told}.",
        height=60 + 34 * max(len(pairs), 1),
        plotly=_figure([data], layout),
    )


def pareto(comparison: Comparison, metric: str, cost: str) -> Drawing | None:
    """Quality against `size_bytes` (smaller is better) or `tokens_per_second` (larger is better); None without two variants to place."""
    found = []
    for variant, result in comparison.variants.items():
        quality, spent = result.metrics.get(metric), getattr(result.cost, cost)
        if quality is not None and quality.value is not None and spent:
            found.append((variant, float(spent), 100 * quality.value, quality.ci95 or (quality.value, quality.value)))
    # A base model far below the rest would squeeze them into one line: it is named under the plot instead.
    others = [item[3][0] for item in found if item[0] != "base"]
    below = [item for item in found if item[0] == "base" and len(others) > 1 and item[3][1] < min(others) - 0.1]
    found = [item for item in found if item not in below]
    if len(found) < 2:
        return None
    small = cost == "size_bytes"
    scale = 1e-6 if small else 1.0
    front = [a for a in found if not any(_beats(b[1:3], a[1:3], small) for b in found)]
    front.sort(key=lambda item: (item[1], item[2]))
    xs, ys = [item[1] * scale for item in found], [item[2] for item in found]
    low, high = min(100 * item[3][0] for item in found), max(100 * item[3][1] for item in found)
    x_top, room = 1.18 * max(xs), 0.2 * (high - low) or 1.0
    y_span = (max(low - room, min(0.0, low)), high + room)
    labels = [variant_label(item[0]) for item in found]
    on_front = {item[0] for item in front}
    data = [
        go.Scatter(
            x=_round([item[1] * scale for item in front]),
            y=_round([item[2] for item in front]),
            mode="lines",
            line={"color": "var(--accent)", "width": 1.5, "dash": "dot"},
            hoverinfo="skip",
        ),
        go.Scatter(
            x=_round(xs),
            y=_round(ys),
            mode="markers+text",
            text=[_safe(label) for label in labels],
            textposition=place(xs, [item[2:] for item in found], labels, x_top, y_span, [item[0] in on_front for item in found]),
            textfont={"size": 12, "color": "var(--ink)"},
            marker={
                "size": 10,
                "symbol": ["circle" if item[0] in on_front else "circle-open" for item in found],
                "color": ["var(--accent)" if item[0] in on_front else "var(--ink-2)" for item in found],
                "line": {"width": 1.5},
            },
            error_y={
                "type": "data",
                "symmetric": False,
                "array": _round([100 * item[3][1] - item[2] for item in found]),
                "arrayminus": _round([item[2] - 100 * item[3][0] for item in found]),
                "color": "var(--ink-3)",
                "thickness": 1,
                "width": 3,
            },
            customdata=[megabytes(item[1]) if small else f"{item[1]:,.0f} tokens/s" for item in found],
            hovertemplate="%{text}: %{y:.1f}%, %{customdata}<extra></extra>",
        ),
    ]
    layout = _layout(margin={"l": 52, "r": 12, "t": 8, "b": 44}, showlegend=False)
    layout["xaxis"] |= {
        "title": {"text": "Weights, MB" if small else "Tokens per second", "standoff": 10},
        "range": [0, x_top],
        "nticks": 6,
    }
    layout["yaxis"] |= {"title": {"text": f"{metric_label(metric)}, %", "standoff": 6}, "range": list(y_span), "nticks": 6}
    if below:
        text = f"{variant_label('base')}, {below[0][2]:.1f}%, lies below this plot"
        layout["annotations"] = [
            {"x": 1, "xref": "paper", "xanchor": "right", "y": 0, "yref": "paper", "yanchor": "bottom", "text": text, "showarrow": False}
        ]
    best = ", ".join(variant_label(item[0]) for item in front)
    against = "size on disk" if small else "speed"
    return Drawing(
        key=f"pareto-{cost}/{metric}",
        title=f"Quality against {'size' if small else 'speed'}",
        description=f"{metric_label(metric)} against {against}, one point a variant. Not beaten on both: {best}.",
        height=340,
        plotly=_figure(data, layout),
    )


def curves(histories: Mapping[str, Sequence[HistoryPoint]]) -> list[Drawing]:
    """One figure for each quantity that any run logged; several runs are laid over one another."""
    drawings = []
    for field, (title, unit) in CURVES.items():
        traces: list[go.Scatter] = []
        for at, (run, history) in enumerate(histories.items()):
            colour, dash = SERIES[at % len(SERIES)], DASHES[at % len(DASHES)]
            prefix = f"{run}: " if len(histories) > 1 else ""
            traces += _raw_and_smooth(history, field, f"{prefix}{'train' if field == 'loss' else title.lower()}", colour, dash)
            if field == "loss":
                traces += _heldout(history, f"{prefix}held-out", colour if len(histories) > 1 else "var(--series-2)", dash)
        if not traces:
            continue
        legend = field == "loss" or len(histories) > 1
        last = max(point.step for history in histories.values() for point in history)
        layout = _layout(margin={"l": 56, "r": 12, "t": 30 if legend else 8, "b": 40}, showlegend=legend)
        layout["xaxis"] |= {"title": {"text": "Step", "standoff": 8}, "range": [0, 1.02 * last], "nticks": 6}
        layout["yaxis"] |= {"title": {"text": unit, "standoff": 6}, "rangemode": "tozero", "nticks": 5, "exponentformat": "e"}
        if len(histories) == 1:
            layout["shapes"], layout["annotations"] = _epochs(next(iter(histories.values())))
        runs = f" of {len(histories)} runs" if len(histories) > 1 else ""
        drawings.append(
            Drawing(f"curve-{field}", title, f"{title}{runs} by training step{_ends(histories, field)}.", 270, _figure(traces, layout))
        )
    return drawings


def bars(key: str, counts: dict[str, int], title: str, x_title: str, y_title: str) -> Drawing:
    """A histogram that is already counted."""
    trace = go.Bar(
        x=[_safe(label) for label in counts],
        y=list(counts.values()),
        marker={"color": "var(--accent)"},
        hovertemplate="%{x}: %{y}<extra></extra>",
    )
    layout = _layout(margin={"l": 52, "r": 12, "t": 8, "b": 48}, showlegend=False, bargap=0.15)
    layout["xaxis"] |= {"title": {"text": x_title, "standoff": 8}, "type": "category", "showgrid": False}
    layout["yaxis"] |= {"title": {"text": y_title, "standoff": 6}, "nticks": 5}
    told = ", ".join(f"{label}: {count}" for label, count in counts.items())
    return Drawing(key, title, f"{title}. {told}.", 250, _figure([trace], layout))


# ------------------------------------------------------------------------------------------------------------- pieces


def _raw_and_smooth(history: Sequence[HistoryPoint], field: str, name: str, colour: str, dash: str) -> list[go.Scatter]:
    measured = [(point.step, value) for point in history if (value := getattr(point, field)) is not None]
    if not measured:
        return []
    steps, values = [float(step) for step, _ in measured], [float(value) for _, value in measured]
    raw, averaged = thin(steps, values), thin(steps, smooth(values))
    if field == "learning_rate":
        return [_curve(*raw, name, {"color": colour, "width": 2, "dash": dash}, 1.0)]
    return [
        _curve(*raw, f"{name}, raw", {"color": colour, "width": 1}, 0.35),
        _curve(*averaged, f"{name}, smoothed", {"color": colour, "width": 2, "dash": dash}, 1.0),
    ]


def _heldout(history: Sequence[HistoryPoint], name: str, colour: str, dash: str) -> list[go.Scatter]:
    measured = [(float(point.step), point.heldout_loss) for point in history if point.heldout_loss is not None]
    if not measured:
        return []
    trace = _curve([step for step, _ in measured], [value for _, value in measured], name, {"color": colour, "width": 2, "dash": dash}, 1.0)
    return [trace.update(mode="lines+markers", marker={"symbol": "square", "size": 7, "color": colour})]


def _curve(xs: Sequence[float], ys: Sequence[float], name: str, line: dict[str, Any], opacity: float) -> go.Scatter:
    hover = "step %{x}: %{y:.4g}<extra>" + _safe(name) + "</extra>"
    return go.Scatter(x=_round(xs), y=_round(ys), mode="lines", name=_safe(name), line=line, opacity=opacity, hovertemplate=hover)


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
    return [_line(step, "dot", "var(--ink-3)") for step, _ in ends], notes


def _ends(histories: Mapping[str, Sequence[HistoryPoint]], field: str) -> str:
    told = []
    for run, history in histories.items():
        values = [value for point in history if (value := getattr(point, field)) is not None]
        if values:
            told.append(f"{run} from {values[0]:.3g} to {values[-1]:.3g}")
    return f"; {', '.join(told)}" if told else ""


def _beats(one: tuple[float, float], other: tuple[float, float], small: bool) -> bool:
    """At least as good on both, and better on one."""
    no_dearer = one[0] <= other[0] if small else one[0] >= other[0]
    return no_dearer and one[1] >= other[1] and one != other


def _band(low: float, high: float, colour: str) -> dict[str, Any]:
    area = {"type": "rect", "x0": low, "x1": high, "y0": 0, "y1": 1, "yref": "paper"}
    return area | {"fillcolor": colour, "line": {"width": 0}, "layer": "below"}


def _line(x: float, dash: str, colour: str) -> dict[str, Any]:
    return {
        "type": "line",
        "x0": x,
        "x1": x,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": {"color": colour, "width": 1, "dash": dash},
        "layer": "below",
    }


def _layout(**more: Any) -> dict[str, Any]:
    axis = {"gridcolor": "var(--line)", "zeroline": False, "linecolor": "var(--line)", "tickcolor": "var(--line)", "automargin": True}
    base: dict[str, Any] = {
        "template": "none",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "var(--ink-2)"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"bgcolor": "var(--paper)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 11}},
        "xaxis": dict(axis),
        "yaxis": dict(axis),
        "dragmode": False,
    }
    return base | more


def _figure(data: Sequence[Any], layout: dict[str, Any]) -> dict[str, Any]:
    figure = go.Figure(data=list(data), layout=layout).to_plotly_json()
    figure["layout"].pop("template", None)
    return figure


def _safe(text: str) -> str:
    return html.escape(text)


def _round(values: Sequence[float]) -> list[float]:
    """Six significant digits: more cannot be seen, and costs bytes."""
    return [float(f"{value:.6g}") for value in values]
