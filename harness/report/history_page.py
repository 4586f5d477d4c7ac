"""The page of quality over time: one small figure for each variant, with intervals, and lines that break where questions or metric changed. No script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from markupsafe import Markup

from harness import variants
from harness.records import Interval
from harness.registry import metric_label, metric_order
from harness.report import page
from harness.report.charts.plotly_base import Drawing, base_layout, rounded
from harness.report.headline import percent

MAX_LABELS = 5


@dataclass(frozen=True)
class Measurement:
    """One variant's mean at one time."""

    date: str
    """ISO 8601; empty if it is not known."""
    source: str
    variant: str
    metric: str
    value: float
    ci95: Interval | None
    n: int
    signature: str
    """Of questions and metric: only equal ones are joined."""


def html(measurements: Sequence[Measurement]) -> str:
    """The whole page.

    Args:
        measurements: in the order of time.
    """
    style = (page.TEMPLATES / "report.css").read_text("utf-8")
    policy = f"default-src 'none'; style-src 'sha256-{page.digest(style)}'; base-uri 'none'; form-action 'none'"
    return (
        page.environment(escape=True)
        .get_template("history.html.j2")
        .render(policy=Markup(policy), style=Markup(style), sections=_sections(measurements))
    )


def _sections(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    found = []
    for metric in sorted({m.metric for m in measurements}, key=metric_order):
        figures = []
        for variant in sorted({m.variant for m in measurements if m.metric == metric}, key=variants.order):
            points = [m for m in measurements if (m.metric, m.variant) == (metric, variant)]
            figures.append({"drawing": _drawing(points), "rows": _rows(points)})
        found.append({"metric": metric_label(metric), "figures": figures})
    return found


def _segments(points: Sequence[Measurement]) -> list[list[int]]:
    """Positions of neighbours that may be joined."""
    return [[at for at, _ in some] for _, some in groupby(enumerate(points), key=lambda item: item[1].signature)]


def _drawing(points: Sequence[Measurement]) -> Drawing:
    ends = [100 * end for m in points for end in (m.ci95 or (m.value, m.value))]
    room = 0.1 * (max(ends) - min(ends)) or 1.0
    layout = base_layout(margin={"l": 44, "r": 12, "t": 8, "b": 30}, showlegend=False)
    every = max(1, -(-len(points) // MAX_LABELS))
    shown = range(0, len(points), every)
    layout["xaxis"] |= {
        "range": [-0.5, len(points) - 0.5],
        "tickvals": list(shown),
        "ticktext": [points[at].date[:10] or "no date" for at in shown],
        "showgrid": False,
    }
    layout["yaxis"] |= {"range": [min(ends) - room, max(ends) + room], "nticks": 5}
    label = variants.label(points[0].variant)
    description = f"{label}, {metric_label(points[0].metric)}: from {percent(points[0].value)} to {percent(points[-1].value)} in {len(points)} results"
    return Drawing(
        "history",
        label,
        description,
        190,
        {"data": [_trace(points, some) for some in _segments(points)], "layout": layout},
    )


def _trace(points: Sequence[Measurement], positions: Sequence[int]) -> dict[str, Any]:
    chosen = [points[at] for at in positions]
    intervals = [m.ci95 or (m.value, m.value) for m in chosen]
    return {
        "x": list(positions),
        "y": rounded([100 * m.value for m in chosen]),
        "mode": "lines+markers",
        "line": {"color": "var(--accent)", "width": 2},
        "marker": {"size": 8, "symbol": "circle", "color": "var(--accent)"},
        "error_y": {
            "array": rounded([100 * (high - m.value) for m, (_, high) in zip(chosen, intervals, strict=True)]),
            "arrayminus": rounded([100 * (m.value - low) for m, (low, _) in zip(chosen, intervals, strict=True)]),
            "color": "var(--ink-3)",
            "thickness": 1,
        },
    }


def _rows(points: Sequence[Measurement]) -> list[dict[str, str]]:
    first = {some[0] for some in _segments(points)} - {0}
    return [
        {
            "date": m.date[:10] or "\u2013",
            "source": m.source,
            "value": percent(m.value),
            "interval": f"{percent(m.ci95[0])} to {percent(m.ci95[1])}" if m.ci95 else "\u2013",
            "n": f"{m.n:,}",
            "note": "other questions or metric: not comparable with the one before" if at in first else "",
        }
        for at, m in enumerate(points)
    ]
