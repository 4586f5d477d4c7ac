"""Paired differences against one reference, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from harness.records import Pair
from harness.registry import metric_label
from harness.report.charts.plotly_base import Drawing, band, base_layout, figure, rounded, rule, safe
from harness.report.headline import points
from harness.variants import label as variant_label

MARKS = {
    "better": "triangle-up",
    "worse": "triangle-down",
    "tied": "diamond",
    "identical": "diamond-open",
    "undecided": "circle-open",
}


def forest(pairs: Sequence[Pair], reference: str, metric: str, span: tuple[float, float]) -> Drawing:
    """Paired differences against one reference, with the margin of the verdict `tied` and each pair's noise floor.

    Args:
        pairs: left minus `reference`, each with an interval.
        reference: the right side of every pair.
        metric: of every pair.
        span: the x axis, in points, so that several forests can share one.
    """
    rows = list(range(len(pairs)))
    labels = [points(pair.delta or 0.0) for pair in pairs]
    beside = {"x": 1.0, "xref": "paper", "xanchor": "left", "xshift": 10, "showarrow": False, "font": {"size": 12}}
    notes = [
        beside | {"y": row, "text": f"{delta} {pair.verdict}"}
        for row, delta, pair in zip(rows, labels, pairs, strict=True)
    ]
    layout = base_layout(
        margin={"l": 8, "r": 122, "t": 6, "b": 44}, shapes=_shapes(pairs), annotations=notes, showlegend=False
    )
    layout["xaxis"] |= {
        "range": list(span),
        "title": {"text": f"{metric_label(metric)}, points", "standoff": 10},
        "nticks": 9,
        "tickangle": 0,
    }
    layout["yaxis"] |= {
        "tickvals": rows,
        "ticktext": [safe(variant_label(pair.left)) for pair in pairs],
        "range": [len(rows) - 0.4, -0.6],
        "showgrid": False,
        "fixedrange": True,
    }
    # Where there is no room, only the symbols show the verdicts.
    narrow = {
        "margin": {"r": 48},
        "annotations": [note | {"text": delta} for note, delta in zip(notes, labels, strict=True)],
        "xaxis": {"nticks": 5},
    }
    spoken = "; ".join(
        f"{variant_label(pair.left)} {points(pair.delta or 0.0)} points, {pair.verdict}" for pair in pairs
    )
    return Drawing(
        key=f"forest-{reference}/{metric}",
        title=f"Against {variant_label(reference)}",
        description=f"Differences in {metric_label(metric)} against {variant_label(reference)}, with 95% intervals: {spoken}.",
        height=60 + 34 * max(len(pairs), 1),
        plotly=figure([_marks(pairs)], layout) | {"narrow": {"layout": narrow}},
    )


def _marks(pairs: Sequence[Pair]) -> go.Scatter:
    """A symbol for each pair's verdict, on a line as long as its interval."""
    deltas = [100 * (pair.delta or 0.0) for pair in pairs]
    # Of two variants that gave the same text everywhere, a point alone is shown.
    intervals = [
        pair.ci95 if pair.ci95 and pair.verdict != "identical" else (pair.delta or 0.0, pair.delta or 0.0)
        for pair in pairs
    ]
    return go.Scatter(
        x=rounded(deltas),
        y=list(range(len(pairs))),
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
            "array": rounded([100 * high - delta for delta, (_, high) in zip(deltas, intervals, strict=True)]),
            "arrayminus": rounded([delta - 100 * low for delta, (low, _) in zip(deltas, intervals, strict=True)]),
            "color": "var(--ink-2)",
            "thickness": 1.5,
            "width": 4,
        },
        customdata=[
            [safe(variant_label(p.left)), p.verdict, points(i[0]), points(i[1])]
            for p, i in zip(pairs, intervals, strict=True)
        ],
        hovertemplate="%{customdata[0]}: %{x:+.1f} points (%{customdata[2]} to %{customdata[3]}), %{customdata[1]}<extra></extra>",
    )


def _shapes(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """The band of the margin, the line at 0, and at each pair with a noise floor two dotted marks."""
    margin = 100 * max((pair.margin for pair in pairs), default=0.0)
    shapes = [band(-margin, margin, "var(--band)"), rule(0.0, "solid", "var(--ink-3)")]
    for row, pair in enumerate(pairs):
        if pair.noise_floor:
            at = 100 * pair.noise_floor
            shapes += [rule(x, "dot", "var(--ink)", (row - 0.42, row + 0.42)) for x in (-at, at)]
    return shapes
