"""Quality against what it costs, one point a variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from harness.records import Comparison
from harness.registry import metric_label
from harness.report.charts.label_placement import NARROW, WIDE, place
from harness.report.charts.plotly_base import Drawing, base_layout, figure, rounded, safe
from harness.report.headline import megabytes
from harness.variants import UNTUNED
from harness.variants import label as variant_label

SQUEEZED = 0.1
"""A base this far below all others is named under the plot instead: it would squeeze them into one line."""


@dataclass(frozen=True)
class Point:
    """One variant."""

    variant: str
    cost: float
    quality: float
    """Percent; `low` and `high` likewise."""
    low: float
    high: float


def pareto(comparison: Comparison, metric: str, cost: str) -> Drawing | None:
    """Quality against `size_bytes` (smaller is better) or `tokens_per_second` (larger is better); None without two variants to place."""
    found = _measured(comparison, metric, cost)
    others = [point.low for point in found if point.variant not in UNTUNED]
    below = [p for p in found if p.variant in UNTUNED and len(others) > 1 and p.high < min(others) - 100 * SQUEEZED]
    found = [point for point in found if point not in below]
    if len(found) < 2:
        return None
    small = cost == "size_bytes"
    front = [a for a in found if not any(_beats(b, a, small) for b in found)]
    front.sort(key=lambda point: (point.cost, point.quality))
    scale = 1e-6 if small else 1.0
    low, high = min(point.low for point in found), max(point.high for point in found)
    room = 0.2 * (high - low) or 1.0
    x_top, y_span = 1.18 * scale * max(point.cost for point in found), (max(low - room, min(0.0, low)), high + room)
    layout = base_layout(margin={"l": 52, "r": 12, "t": 8, "b": 44}, showlegend=False)
    layout["xaxis"] |= {
        "tickangle": 0,
        "title": {"text": "Weights, MB" if small else "Tokens per second", "standoff": 10},
        "range": [0, x_top],
        "nticks": 6,
    }
    layout["yaxis"] |= {
        "title": {"text": f"{metric_label(metric)}, %", "standoff": 6},
        "range": list(y_span),
        "nticks": 6,
    }
    if below:
        layout["annotations"] = [_named_below(below)]
    data, narrow = _traces(found, front, scale, x_top, y_span)
    best = ", ".join(variant_label(point.variant) for point in front)
    against = "size on disk" if small else "speed"
    return Drawing(
        key=f"pareto-{cost}/{metric}",
        title=f"Quality against {'size' if small else 'speed'}",
        description=f"{metric_label(metric)} against {against}, one point a variant. Not beaten on both: {best}.",
        height=340,
        plotly=figure(data, layout) | {"narrow": {"data": [{}, narrow]}},
        key_text=", ".join(f"{at} {variant_label(point.variant)}" for at, point in enumerate(found, 1)),
    )


def _measured(comparison: Comparison, metric: str, cost: str) -> list[Point]:
    found = []
    for variant, result in comparison.variants.items():
        quality, spent = result.metrics.get(metric), getattr(result.cost, cost)
        if quality is not None and quality.value is not None and spent:
            low, high = quality.ci95 or (quality.value, quality.value)
            found.append(Point(variant, float(spent), 100 * quality.value, 100 * low, 100 * high))
    return found


def _traces(
    found: Sequence[Point], front: Sequence[Point], scale: float, x_top: float, y_span: tuple[float, float]
) -> tuple[list[go.Scatter], dict[str, Any]]:
    """The line through the Pareto front, and the labelled points; also the changes to the labels on a narrow page."""
    xs, labels = [scale * point.cost for point in found], [variant_label(point.variant) for point in found]
    spans = [(p.quality, (p.low / 100, p.high / 100)) for p in found]
    joined = [point in front for point in found]
    # No space for names: numbers, and a key under the figure.
    numbers = [str(at) for at in range(1, len(found) + 1)]
    narrow = {"text": numbers, "textposition": place(xs, spans, numbers, x_top, y_span, joined, NARROW, 6.6)}
    line = go.Scatter(
        x=rounded([scale * point.cost for point in front]),
        y=rounded([point.quality for point in front]),
        mode="lines",
        line={"color": "var(--accent)", "width": 1.5, "dash": "dot"},
        hoverinfo="skip",
    )
    small = scale != 1.0
    marks = go.Scatter(
        x=rounded(xs),
        y=rounded([point.quality for point in found]),
        mode="markers+text",
        text=[safe(label) for label in labels],
        textposition=place(xs, spans, labels, x_top, y_span, joined, WIDE, 6.6),
        textfont={"size": 12, "color": "var(--ink)"},
        marker={
            "size": 10,
            "symbol": ["circle" if on else "circle-open" for on in joined],
            "color": ["var(--accent)" if on else "var(--ink-2)" for on in joined],
            "line": {"width": 1.5},
        },
        error_y={
            "type": "data",
            "symmetric": False,
            "array": rounded([point.high - point.quality for point in found]),
            "arrayminus": rounded([point.quality - point.low for point in found]),
            "color": "var(--ink-3)",
            "thickness": 1,
            "width": 3,
        },
        customdata=[megabytes(point.cost) if small else f"{point.cost:,.0f} tokens/s" for point in found],
        hovertemplate="%{text}: %{y:.1f}%, %{customdata}<extra></extra>",
    )
    return [line, marks], narrow


def _named_below(points: list[Point]) -> dict[str, Any]:
    corner = {"x": 1, "xref": "paper", "xanchor": "right", "y": 0, "yref": "paper", "yanchor": "bottom"}
    named = " and ".join(f"{variant_label(point.variant)}, {point.quality:.1f}%," for point in points)
    text = f"{named} {'lies' if len(points) == 1 else 'lie'} below this plot"
    return corner | {"text": text, "showarrow": False}


def _beats(one: Point, other: Point, small: bool) -> bool:
    """At least as good on both, and better on one."""
    no_dearer = one.cost <= other.cost if small else one.cost >= other.cost
    return no_dearer and one.quality >= other.quality and (one.cost, one.quality) != (other.cost, other.quality)
