"""The base of every figure: Plotly JSON in the page's colours.

Colours are the page's own CSS variables (`var(--accent)`): the page puts their values in when it draws, so that one figure serves light, dark and
paper. Symbols and dashes repeat what colours show. Text that came from outside is escaped, since Plotly reads some HTML in labels.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go


@dataclass(frozen=True)
class Drawing:
    """One figure and its text alternative."""

    key: str
    """Unique in the page."""
    title: str
    description: str
    """What it shows, for screen readers."""
    height: int
    """Pixels; the width is the page's."""
    plotly: dict[str, Any]
    """`data` and `layout`; `narrow`: what changes in them on a narrow page."""
    key_text: str = ""
    """The key to the numbers that a narrow figure shows in place of names."""


def band(low: float, high: float, colour: str) -> dict[str, Any]:
    """A filled band from the bottom to the top."""
    area = {"type": "rect", "x0": low, "x1": high, "y0": 0, "y1": 1, "yref": "paper"}
    return area | {"fillcolor": colour, "line": {"width": 0}, "layer": "below"}


def rule(x: float, dash: str, colour: str, rows: tuple[float, float] | None = None) -> dict[str, Any]:
    """From the bottom to the top, or between two places of the y axis."""
    low, high = rows or (0, 1)
    return {
        "type": "line",
        "x0": x,
        "x1": x,
        "y0": low,
        "y1": high,
        "yref": "y" if rows else "paper",
        "line": {"color": colour, "width": 1, "dash": dash},
        "layer": "below",
    }


def base_layout(**more: Any) -> dict[str, Any]:
    """The layout that all figures share, with `more` in place of its keys."""
    axis = {
        "gridcolor": "var(--line)",
        "zeroline": False,
        "linecolor": "var(--line)",
        "tickcolor": "var(--line)",
        "automargin": True,
    }
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


def figure(data: Sequence[Any], layout: dict[str, Any]) -> dict[str, Any]:
    """Traces and layout as plain values, checked by Plotly."""
    found = go.Figure(data=list(data), layout=layout).to_plotly_json()
    found["layout"].pop("template", None)
    return found


def safe(text: str) -> str:
    """Text from outside, for a label."""
    return html.escape(text)


def rounded(values: Sequence[float]) -> list[float]:
    """Six significant digits: more are invisible and take space."""
    return [float(f"{value:.6g}") for value in values]
