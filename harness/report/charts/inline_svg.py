"""A figure as plain SVG, drawn when the report is written: visible without JavaScript, in a mail preview, and in print.

It takes the same Plotly values that the page draws later (`Drawing.plotly`), and of Plotly only what the report's figures use: scatter and bar
traces, error bars, lines, rectangles, notes, linear and category axes. Colours stay CSS variables, so that one drawing serves light, dark and paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape, unescape
from typing import Any

from harness.report.charts.plotly_base import Drawing

WIDTHS = {"wide": 560, "narrow": 330}
CHARACTER = 6.4
"""Pixels of a character at 12 pixels of type, about."""
DASHES = {"dot": "2 3", "dash": "6 4", "dashdot": "6 3 2 3"}
SYMBOLS = {
    "circle": "M{r} 0A{r} {r} 0 1 1 -{r} 0A{r} {r} 0 1 1 {r} 0Z",
    "square": "M-{r} -{r}H{r}V{r}H-{r}Z",
    "diamond": "M0 -{d}L{d} 0L0 {d}L-{d} 0Z",
    "triangle-up": "M0 -{d}L{d} {r}H-{d}Z",
    "triangle-down": "M0 {d}L{d} -{r}H-{d}Z",
}


@dataclass(frozen=True)
class Frame:
    """The plot's area in pixels and its axes: (from, to) in the figure's own values."""

    left: float
    top: float
    right: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at_x(self, value: float) -> float:
        """Pixels from the left."""
        return self.left + (value - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left)

    def at_y(self, value: float) -> float:
        """Pixels from the top."""
        return self.bottom - (value - self.y[0]) / (self.y[1] - self.y[0]) * (self.bottom - self.top)


def svg(drawing: Drawing) -> str:
    """Two drawings of one figure, for a wide page and for a phone; the style sheet shows one of them."""
    return "".join(_draw(drawing, kind, width) for kind, width in WIDTHS.items())


def _draw(drawing: Drawing, kind: str, width: int) -> str:
    change = drawing.plotly.get("narrow", {}) if kind == "narrow" else {}
    layout = _overlaid(drawing.plotly["layout"], change.get("layout", {}))
    changes = [*change.get("data", []), *[{}] * len(drawing.plotly["data"])]
    data = [_overlaid(trace, more) for trace, more in zip(drawing.plotly["data"], changes, strict=False)]
    frame = _frame(data, layout, width, drawing.height)
    parts = [
        *_shapes(layout, frame),
        *_axes(data, layout, frame, width, drawing.height),
        *(part for trace in data for part in _trace(trace, layout, frame)),
        *_notes(layout, frame),
        *(_legend(data, frame) if layout.get("showlegend") else ()),
    ]
    return (
        f'<svg class="static {kind}" viewBox="0 0 {width} {drawing.height}" aria-hidden="true" font-size="12">'
        f"{''.join(parts)}</svg>"
    )


def _overlaid(base: Any, change: Mapping[str, Any]) -> Any:
    found = dict(base)
    for key, value in change.items():
        found[key] = _overlaid(base[key], value) if isinstance(value, Mapping) and key in base else value
    return found


# ---------------------------------------------------------------------------------------------------------------- axes


def _frame(data: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], width: int, height: int) -> Frame:
    margin, y_axis = layout["margin"], layout["yaxis"]
    names = [len(unescape(text)) for text in y_axis.get("ticktext", [])]
    left = max([margin["l"], *(CHARACTER * n + 14 for n in names)])
    return Frame(
        left=left,
        top=margin["t"],
        right=width - margin["r"],
        bottom=height - margin["b"],
        x=_range(layout["xaxis"], data, "x"),
        y=_range(y_axis, data, "y"),
    )


def _range(axis: Mapping[str, Any], data: Sequence[Mapping[str, Any]], which: str) -> tuple[float, float]:
    if axis.get("range"):
        return float(axis["range"][0]), float(axis["range"][1])
    if axis.get("type") == "category":
        return -0.5, len(data[0][which]) - 0.5
    values = [float(value) for trace in data for value in trace[which]]
    low, high = min(values, default=0.0), max(values, default=1.0)
    low = min(0.0, low) if axis.get("rangemode") == "tozero" or data[0].get("type") == "bar" else low
    return low, high + (0.05 * (high - low) or 1.0)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round values between two ends, at most `most` of them: steps of 1, 2 or 5 times a power of ten."""
    low, high = min(low, high), max(low, high)
    if not high > low:
        return [low]
    rough = (high - low) / max(most, 1)
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-").replace("-", "\u2212")
    return f"{value:,.6g}".replace("-", "\u2212")


def _axes(
    data: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], frame: Frame, width: int, height: int
) -> Iterator[str]:
    x_axis, y_axis = layout["xaxis"], layout["yaxis"]
    if x_axis.get("type") == "category":
        labels = [(float(i), unescape(str(text))) for i, text in enumerate(data[0]["x"])]
        room = (frame.right - frame.left) / (CHARACTER * max([1, *(len(text) + 1 for _, text in labels)]))
        labels = labels[:: max(1, math.ceil(len(labels) / room))]
    elif "ticktext" in x_axis:
        labels = list(zip(x_axis["tickvals"], map(unescape, x_axis["ticktext"]), strict=True))
    else:
        labels = [(value, _number(value)) for value in ticks(*frame.x, x_axis.get("nticks", 6))]
    for value, text in labels:
        at = frame.at_x(value)
        if x_axis.get("showgrid", True):
            yield _line(at, frame.top, at, frame.bottom, "var(--line)")
        yield _text(at, frame.bottom + 16, text, "middle")
    named = "ticktext" in y_axis
    if named:
        rows = list(zip(y_axis["tickvals"], map(unescape, y_axis["ticktext"]), strict=True))
    else:
        rows = [(value, _number(value)) for value in ticks(*frame.y, y_axis.get("nticks", 5))]
    for value, text in rows:
        at = frame.at_y(value)
        if y_axis.get("showgrid", True):
            yield _line(frame.left, at, frame.right, at, "var(--line)")
        yield _text(frame.left - 7, at + 4, text, "end")
    if title := x_axis.get("title", {}).get("text"):
        yield _text((frame.left + frame.right) / 2, height - 6, title, "middle")
    if title := y_axis.get("title", {}).get("text"):
        middle = (frame.top + frame.bottom) / 2
        yield f'<text transform="translate(13 {middle:.1f}) rotate(-90)" text-anchor="middle" fill="var(--ink-2)">{_safe(title)}</text>'


# -------------------------------------------------------------------------------------------------------------- traces


def _trace(trace: Mapping[str, Any], layout: Mapping[str, Any], frame: Frame) -> Iterator[str]:
    if trace.get("type") == "bar":
        yield from _bars(trace, layout, frame)
        return
    xs, ys = [frame.at_x(float(x)) for x in trace["x"]], [frame.at_y(float(y)) for y in trace["y"]]
    mode = trace.get("mode", "lines")
    if "lines" in mode and xs:
        line = trace.get("line", {})
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        dash = f' stroke-dasharray="{DASHES[line["dash"]]}"' if line.get("dash") in DASHES else ""
        shade = f' opacity="{trace["opacity"]}"' if "opacity" in trace else ""
        yield f'<polyline points="{points}" fill="none" stroke="{line.get("color")}" stroke-width="{line.get("width", 2)}"{dash}{shade}/>'
    if "markers" in mode:
        yield from _errors(trace, frame)
        yield from (_marker(trace["marker"], i, x, y) for i, (x, y) in enumerate(zip(xs, ys, strict=True)))
    if "text" in mode:
        yield from _labels(trace, xs, ys)


def _bars(trace: Mapping[str, Any], layout: Mapping[str, Any], frame: Frame) -> Iterator[str]:
    half = 0.5 * (1 - layout.get("bargap", 0.15))
    for i, value in enumerate(trace["y"]):
        left, right, top = frame.at_x(i - half), frame.at_x(i + half), frame.at_y(value)
        yield f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{frame.bottom - top:.1f}" fill="{trace["marker"]["color"]}"/>'


def _errors(trace: Mapping[str, Any], frame: Frame) -> Iterator[str]:
    for key in ("error_x", "error_y"):
        error = trace.get(key)
        if not error:
            continue
        ends = zip(trace["x"], trace["y"], error["array"], error["arrayminus"], strict=True)
        for x, y, more, less in ends:
            if key == "error_x":
                at, low, high = frame.at_y(y), frame.at_x(x - less), frame.at_x(x + more)
                yield _line(low, at, high, at, error["color"], error["thickness"])
                yield from (_line(end, at - 4, end, at + 4, error["color"], error["thickness"]) for end in (low, high))
            else:
                at, low, high = frame.at_x(x), frame.at_y(y - less), frame.at_y(y + more)
                yield _line(at, low, at, high, error["color"], error["thickness"])
                yield from (_line(at - 3, end, at + 3, end, error["color"], error["thickness"]) for end in (low, high))


def _marker(marker: Mapping[str, Any], i: int, x: float, y: float) -> str:
    symbol, colour = (_of(marker.get(key, default), i) for key, default in (("symbol", "circle"), ("color", "")))
    name, hollow = symbol.removesuffix("-open"), symbol.endswith("-open")
    r = marker.get("size", 8) / 2
    path = SYMBOLS[name].format(r=f"{r:g}", d=f"{1.25 * r:g}")
    fill = f'fill="var(--paper)" stroke="{colour}" stroke-width="1.5"' if hollow else f'fill="{colour}"'
    return f'<path transform="translate({x:.1f} {y:.1f})" d="{path}" {fill}/>'


def _labels(trace: Mapping[str, Any], xs: Sequence[float], ys: Sequence[float]) -> Iterator[str]:
    size = trace.get("textfont", {}).get("size", 12)
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        vertical, _, side = str(_of(trace.get("textposition", "top center"), i)).partition(" ")
        anchor = {"left": "end", "right": "start"}.get(side, "middle")
        across = {"left": -9, "right": 9}.get(side, 0)
        down = {"top": -9, "bottom": 17}.get(vertical, 4)
        yield _text(x + across, y + down, unescape(str(trace["text"][i])), anchor, "var(--ink)", size)


def _of(value: Any, i: int) -> Any:
    return value[i] if isinstance(value, list | tuple) else value


# ------------------------------------------------------------------------------------------------- shapes and text


def _shapes(layout: Mapping[str, Any], frame: Frame) -> Iterator[str]:
    for shape in layout.get("shapes", ()):
        x0, x1 = frame.at_x(shape["x0"]), frame.at_x(shape["x1"])
        y0, y1 = (_vertical(shape[key], shape.get("yref"), frame) for key in ("y0", "y1"))
        if shape["type"] == "rect":
            yield f'<rect x="{min(x0, x1):.1f}" y="{min(y0, y1):.1f}" width="{abs(x1 - x0):.1f}" height="{abs(y1 - y0):.1f}" fill="{shape["fillcolor"]}"/>'
        elif frame.left - 1 <= x0 <= frame.right + 1:
            line = shape["line"]
            yield _line(x0, y0, x1, y1, line["color"], line["width"], DASHES.get(line.get("dash", ""), ""))


def _vertical(value: float, reference: str | None, frame: Frame) -> float:
    return frame.bottom - value * (frame.bottom - frame.top) if reference == "paper" else frame.at_y(value)


def _notes(layout: Mapping[str, Any], frame: Frame) -> Iterator[str]:
    for note in layout.get("annotations", ()):
        on_paper = note.get("xref") == "paper"
        x = frame.left + note["x"] * (frame.right - frame.left) if on_paper else frame.at_x(note["x"])
        y = _vertical(note["y"], note.get("yref"), frame)
        down = {"top": 11, "bottom": -5}.get(note.get("yanchor", "middle"), 4)
        anchor = {"left": "start", "right": "end"}.get(note.get("xanchor", ""), "middle")
        yield _text(x + note.get("xshift", 0), y + down, unescape(note["text"]), anchor)


def _legend(data: Sequence[Mapping[str, Any]], frame: Frame) -> Iterator[str]:
    at = frame.left
    for trace in data:
        if not trace.get("name") or trace.get("showlegend") is False:
            continue
        name, line = unescape(trace["name"]), trace.get("line", {})
        if at + 26 + CHARACTER * len(name) > frame.right:
            return
        yield _line(at, 12, at + 18, 12, line.get("color", ""), 2, DASHES.get(line.get("dash", ""), ""))
        yield _text(at + 23, 16, name, "start")
        at += 36 + CHARACTER * len(name)


def _line(x0: float, y0: float, x1: float, y1: float, colour: str, thickness: float = 1, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}" stroke-width="{thickness}"{dashed}/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = "var(--ink-2)", size: float = 12) -> str:
    sized = "" if size == 12 else f' font-size="{size:g}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{sized}>{_safe(text)}</text>'


def _safe(text: str) -> str:
    return escape(unescape(text))
