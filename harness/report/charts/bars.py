"""Counts as bars."""

from __future__ import annotations

import plotly.graph_objects as go

from harness.report.charts.plotly_base import Drawing, base_layout, figure, safe


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
    listed = ", ".join(f"{label}: {count}" for label, count in counts.items())
    return Drawing(key, title, f"{title}. {listed}.", 250, figure([trace], layout))
