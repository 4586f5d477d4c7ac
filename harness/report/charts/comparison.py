"""The report's figures of a comparison: differences, quality against cost, and counts."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from harness.records import Comparison, Pair
from harness.registry import metric_label
from harness.report.charts.label_placement import NARROW, WIDE, place
from harness.report.charts.plotly_base import Drawing, band, base_layout, figure, rounded, rule, safe
from harness.report.headline import megabytes, points
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
    deltas = [100 * (pair.delta or 0.0) for pair in pairs]
    intervals = [pair.ci95 or (pair.delta or 0.0, pair.delta or 0.0) for pair in pairs]
    margin = 100 * max((pair.margin for pair in pairs), default=0.0)
    data = go.Scatter(
        x=rounded(deltas),
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
    shapes = [band(-margin, margin, "var(--band)"), rule(0.0, "solid", "var(--ink-3)")]
    for row, pair in zip(rows, pairs, strict=True):
        if pair.noise_floor:
            shapes += [
                rule(x, "dot", "var(--ink)", (row - 0.42, row + 0.42))
                for x in (-100 * pair.noise_floor, 100 * pair.noise_floor)
            ]
    beside = {"x": 1.0, "xref": "paper", "xanchor": "left", "xshift": 10, "showarrow": False, "font": {"size": 12}}
    told = [points(pair.delta or 0.0) for pair in pairs]
    notes = [
        beside | {"y": row, "text": f"{delta} {pair.verdict}"}
        for row, delta, pair in zip(rows, told, pairs, strict=True)
    ]
    names = [safe(variant_label(pair.left)) for pair in pairs]
    layout = base_layout(margin={"l": 8, "r": 122, "t": 6, "b": 44}, shapes=shapes, annotations=notes, showlegend=False)
    layout["xaxis"] |= {
        "range": list(span),
        "title": {"text": f"{metric_label(metric)}, points", "standoff": 10},
        "nticks": 9,
        "tickangle": 0,
    }
    # Where there is no room, the symbols alone tell the verdicts.
    narrow = {
        "margin": {"r": 48},
        "annotations": [note | {"text": delta} for note, delta in zip(notes, told, strict=True)],
        "xaxis": {"nticks": 5},
    }
    layout["yaxis"] |= {
        "tickvals": rows,
        "ticktext": names,
        "range": [len(rows) - 0.4, -0.6],
        "showgrid": False,
        "fixedrange": True,
    }
    spoken = "; ".join(
        f"{variant_label(pair.left)} {points(pair.delta or 0.0)} points, {pair.verdict}" for pair in pairs
    )
    return Drawing(
        key=f"forest-{reference}/{metric}",
        title=f"Against {variant_label(reference)}",
        description=f"Differences in {metric_label(metric)} against {variant_label(reference)}, with 95% intervals: {spoken}.",
        height=60 + 34 * max(len(pairs), 1),
        plotly=figure([data], layout) | {"narrow": {"layout": narrow}},
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
    spans, joined = [item[2:] for item in found], [item[0] in on_front for item in found]
    narrow = {"textposition": place(xs, spans, labels, x_top, y_span, joined, NARROW, 6.0), "textfont": {"size": 10.5}}
    data = [
        go.Scatter(
            x=rounded([item[1] * scale for item in front]),
            y=rounded([item[2] for item in front]),
            mode="lines",
            line={"color": "var(--accent)", "width": 1.5, "dash": "dot"},
            hoverinfo="skip",
        ),
        go.Scatter(
            x=rounded(xs),
            y=rounded(ys),
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
                "array": rounded([100 * item[3][1] - item[2] for item in found]),
                "arrayminus": rounded([item[2] - 100 * item[3][0] for item in found]),
                "color": "var(--ink-3)",
                "thickness": 1,
                "width": 3,
            },
            customdata=[megabytes(item[1]) if small else f"{item[1]:,.0f} tokens/s" for item in found],
            hovertemplate="%{text}: %{y:.1f}%, %{customdata}<extra></extra>",
        ),
    ]
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
        text = f"{variant_label('base')}, {below[0][2]:.1f}%, lies below this plot"
        layout["annotations"] = [
            {
                "x": 1,
                "xref": "paper",
                "xanchor": "right",
                "y": 0,
                "yref": "paper",
                "yanchor": "bottom",
                "text": text,
                "showarrow": False,
            }
        ]
    best = ", ".join(variant_label(item[0]) for item in front)
    against = "size on disk" if small else "speed"
    return Drawing(
        key=f"pareto-{cost}/{metric}",
        title=f"Quality against {'size' if small else 'speed'}",
        description=f"{metric_label(metric)} against {against}, one point a variant. Not beaten on both: {best}.",
        height=340,
        plotly=figure(data, layout) | {"narrow": {"data": [{}, narrow]}},
    )


def bars(key: str, counts: dict[str, int], title: str, x_title: str, y_title: str) -> Drawing:
    """A histogram that is already counted."""
    trace = go.Bar(
        x=[safe(label) for label in counts],
        y=list(counts.values()),
        marker={"color": "var(--accent)"},
        hovertemplate="%{x}: %{y}<extra></extra>",
    )
    layout = base_layout(margin={"l": 52, "r": 12, "t": 8, "b": 48}, showlegend=False, bargap=0.15)
    layout["xaxis"] |= {"title": {"text": x_title, "standoff": 8}, "type": "category", "showgrid": False}
    layout["yaxis"] |= {"title": {"text": y_title, "standoff": 6}, "nticks": 5}
    told = ", ".join(f"{label}: {count}" for label, count in counts.items())
    return Drawing(key, title, f"{title}. {told}.", 250, figure([trace], layout))


# ------------------------------------------------------------------------------------------------------------- pieces


def _beats(one: tuple[float, float], other: tuple[float, float], small: bool) -> bool:
    """At least as good on both, and better on one."""
    no_dearer = one[0] <= other[0] if small else one[0] >= other[0]
    return no_dearer and one[1] >= other[1] and one != other
