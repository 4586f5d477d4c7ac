"""The figures of the report: what is drawn, and from what."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.records import HistoryPoint
from harness.report.charts import forest, inline_svg, label_placement, pareto, training
from tests.helpers.report_fixture import comparison_of, pair


def test_every_figure_is_drawn_in_the_page(reported):
    page = reported.report_html.read_text()
    assert page.count('class="static wide"') == page.count('class="static narrow"') == page.count('data-figure="')
    assert "nan" not in "".join(re.findall("<svg class=.static.*?</svg>", page, re.S))


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(1, 12))
def test_ticks_are_round_and_inside(low, width, most):
    found = inline_svg.ticks(low, low + width, most)
    assert len(found) <= most + 1 and all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in found)
    assert found == sorted(found)


def test_names_in_an_inline_figure_are_text():
    drawing = forest.forest([pair(left="<b>&amp;x", right="b")], "b", "m", (-5, 25))
    drawn = inline_svg.svg(drawing)
    assert "<b>" not in drawn and "&lt;b&gt;&amp;" in drawn


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=50), st.floats(0, 0.99))
def test_smoothing_stays_within_the_values_and_begins_at_the_first(values, weight):
    smoothed = label_placement.smooth(values, weight)
    assert smoothed[0] == pytest.approx(values[0])
    assert all(min(values) - 1e-6 <= value <= max(values) + 1e-6 for value in smoothed)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=400))
def test_thinning_keeps_the_extremes_and_the_order(values):
    xs, ys = label_placement.thin(list(range(len(values))), values, limit=20)
    assert len(xs) <= max(20, len(values) if len(values) <= 20 else 20) and xs == sorted(xs)
    assert (min(ys), max(ys)) == (min(values), max(values))


def test_curves_show_only_what_was_measured():
    history = [HistoryPoint(step=step, epoch=step / 10, seconds=step, loss=1 / step) for step in range(1, 30)]
    assert [drawing.key for drawing in training.curves({"run": history})] == ["curve-loss"]
    assert training.curves({}) == []


def test_curves_show_steps_and_epochs_and_name_each_of_several_runs_once():
    history = [
        HistoryPoint(step=step, epoch=step / 10, seconds=step, loss=1 / step, grad_norm=1.0) for step in range(1, 30)
    ]
    alone = training.curves({"run": history})[0].plotly
    assert [trace["name"] for trace in alone["data"]] == ["train, raw", "train, smoothed"]
    assert alone["data"][0]["customdata"][:2] == [0.1, 0.2] and "epoch" in alone["data"][0]["hovertemplate"]
    assert [note["text"] for note in alone["layout"]["annotations"]] == ["epoch 1", "epoch 2"]
    loss, norm = training.curves({"a": history, "<b>": history[:9]})
    assert [trace["name"] for trace in loss.plotly["data"] if trace.get("showlegend", True)] == [
        "a, train",
        "&lt;b&gt;, train",
    ]
    assert [trace["name"] for trace in norm.plotly["data"] if trace.get("showlegend", True)] == ["a", "&lt;b&gt;"]
    dashes = {trace["line"].get("dash") for trace in norm.plotly["data"] if trace.get("showlegend", True)}
    assert len(dashes) == 2, "they differ in more than colour"


def test_front_of_the_pareto_plot_is_beaten_by_none(reported):
    drawing = pareto.pareto(comparison_of(reported), "exact_match_normalized", "size_bytes")
    assert drawing is not None
    points = list(zip(drawing.plotly["data"][1]["x"], drawing.plotly["data"][1]["y"], strict=True))
    front = list(zip(drawing.plotly["data"][0]["x"], drawing.plotly["data"][0]["y"], strict=True))
    assert front and all(not any(x <= a and y >= b and (x, y) != (a, b) for x, y in points) for a, b in front)


def test_forest_draws_the_margin_and_the_noise_floor():
    drawing = forest.forest([pair(), pair(left="c", noise_floor=0.01)], "b", "m", (-5, 25))
    shapes = {(shape["x0"], shape["x1"]): (shape["y0"], shape["y1"]) for shape in drawing.plotly["layout"]["shapes"]}
    assert shapes[(-2.0, 2.0)] == (0, 1), "the margin is every pair's"
    assert all(0.5 < end < 1.5 for x in (-1.0, 1.0) for end in shapes[(x, x)]), "the noise floor is its own pair's"
    notes = [note["text"] for note in drawing.plotly["layout"]["annotations"]]
    assert notes == ["+10 better", "+10 better"]
    assert [note["text"] for note in drawing.plotly["narrow"]["layout"]["annotations"]] == ["+10", "+10"]
    assert json.dumps(drawing.plotly)
