"""Preparation of a figure: smoothing, thinning, and label positions with the least overlap."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

SMOOTHING = 0.8
"""Weight of the past in the smoothed curves: debiased exponential moving average, as in W&B and TensorBoard."""
MAX_POINTS = 1200
"""Most points of a drawn curve; longer ones keep the lowest and the highest value of each segment."""
WIDE, NARROW, HEIGHT = 440, 250, 280
"""Pixels of the plots that labels are placed for; good enough for slightly narrower or wider ones."""


def smooth(values: Sequence[float], weight: float = SMOOTHING) -> list[float]:
    """Debiased exponential moving average: the first value is unchanged, not pulled towards zero."""
    found, mean = [], 0.0
    for at, value in enumerate(values, 1):
        mean = weight * mean + (1 - weight) * value
        found.append(mean / (1 - weight**at))
    return found


def thin(xs: Sequence[float], ys: Sequence[float], limit: int = MAX_POINTS) -> tuple[list[float], list[float]]:
    """At most `limit` points in order: of each segment the lowest and the highest, so that no spike is lost."""
    if len(xs) <= limit:
        return list(xs), list(ys)
    stretches = limit // 2
    keep: set[int] = set()
    for part in range(stretches):
        stretch = range(part * len(xs) // stretches, (part + 1) * len(xs) // stretches)
        keep |= {min(stretch, key=lambda i: ys[i]), max(stretch, key=lambda i: ys[i])}
    return [xs[i] for i in sorted(keep)], [ys[i] for i in sorted(keep)]


def place(
    xs: Sequence[float],
    ys: Sequence[tuple[float, tuple[float, float]]],
    labels: Sequence[str],
    x_top: float,
    y_span: tuple[float, float],
    joined: Sequence[bool],
    width: int,
    letter: float,
) -> list[str]:
    """For each label the side of its point with the least overlap, on a plot of `width` by HEIGHT pixels.

    Args:
        xs: from 0 to `x_top`.
        ys: each a value in percent and its interval as fractions; `y_span` is in percent.
        labels: one for each point.
        x_top: right end of the x axis.
        y_span: ends of the y axis.
        joined: which points a line joins, from left to right.
        letter: mean width of a letter, in pixels.
    """
    across = [width * x / x_top for x in xs]
    up = [
        [HEIGHT * (y - y_span[0]) / (y_span[1] - y_span[0]) for y in (value, 100 * low, 100 * high)]
        for value, (low, high) in ys
    ]
    at = [(x, y[0]) for x, y in zip(across, up, strict=True)]
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in at] + [
        (x - 4, low, x + 4, high) for x, (_, low, high) in zip(across, up, strict=True)
    ]
    line = sorted(point for point, on in zip(at, joined, strict=True) if on)
    for (x0, y0), (x1, y1) in pairwise(line):
        steps = max(1, int((x1 - x0) / 8))
        along = [(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps) for i in range(steps + 1)]
        taken += [(x - 4, y - 2, x + 4, y + 2) for x, y in along]
    chosen = []
    for (x, y), label in zip(at, labels, strict=True):
        long = letter * len(label)
        boxes = {
            "top center": (x - long / 2, y + 8, x + long / 2, y + 24),
            "bottom center": (x - long / 2, y - 24, x + long / 2, y - 8),
            "middle right": (x + 9, y - 8, x + 9 + long, y + 8),
            "middle left": (x - 9 - long, y - 8, x - 9, y + 8),
            "top right": (x + 5, y + 8, x + 5 + long, y + 24),
            "bottom right": (x + 5, y - 24, x + 5 + long, y - 8),
            "top left": (x - 5 - long, y + 8, x - 5, y + 24),
            "bottom left": (x - 5 - long, y - 24, x - 5, y - 8),
        }
        costs = {
            side: sum(_overlap(box, other) for other in taken) + _outside(box, width) for side, box in boxes.items()
        }
        side = min(boxes, key=lambda name: costs[name])
        taken.append(boxes[side])
        chosen.append(side)
    return chosen


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    wide, high = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return wide * high if wide > 0 and high > 0 else 0.0


def _outside(box: tuple[float, ...], width: int) -> float:
    return 1e4 if box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > HEIGHT else 0.0
