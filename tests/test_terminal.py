"""The closing tables: names and numbers are whole at every width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from harness import storage
from harness.records import Comparison, Figure
from harness.report import terminal
from harness.report.headline import percent, primary_metric
from tests.helpers.report_fixture import write_run

VARIANTS = ["base", "adapter", "merged_16bit", "merged_4bit", "gguf_q8_0", "gguf_q4_k_m"]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    run = write_run(tmp_path_factory.mktemp("run"), questions=30, variants=VARIANTS)
    return storage.read_record(run.comparison_json, Comparison)


@pytest.mark.parametrize("width", [72, 80, 110, 200])
def test_no_row_without_its_name_and_no_cut_number(comparison: Comparison, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    terminal.show_comparison(comparison, console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    tables = [line for line in lines if line.startswith(("│", "┃"))]
    assert tables and not any("…" in line for line in lines)
    assert max(map(len, tables)) <= width
    for name, result in comparison.variants.items():
        row = next(line for line in tables if line.removeprefix("│").split("│")[0].strip() == name)
        assert percent(result.metrics[comparison.primary or "exact_match_normalized"].value) in row


@pytest.mark.parametrize("width", [70, 80, 200])
def test_long_labels_wrap_and_no_figure_is_cut(comparison: Comparison, width: int) -> None:
    label = "Trained questions in other words, exact match (the nearest training answer: 86%)"
    found = [
        Figure(name="taught", label=label, variant=variant, value=value, ci95=None, n=313)
        for variant, value in (("base", 0.003), ("adapter", 0.68))
    ]
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    terminal.show_figures(comparison.model_copy(update={"figures": found}), console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    assert all(word in text for word in [*label.split(), "313", "0.3%", "68%", "adapter"])


def test_wide_terminals_show_more_metrics(comparison: Comparison) -> None:
    def headings(width: int) -> str:
        console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        terminal.show_comparison(comparison, console)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    assert "ROUGE-L" in headings(160) and "ROUGE-L" not in headings(72)


def test_failures_are_shown_as_wrong_too(comparison: Comparison) -> None:
    def shown(result: Comparison) -> str:
        console = Console(file=io.StringIO(), width=110, force_terminal=True, color_system=None)
        terminal.show_comparison(result, console)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    adapter = comparison.variants["adapter"]
    failed = {"n_failed": 3, "failures_as_wrong": 0.41}
    metrics = {
        name: value.model_copy(update=failed if name == primary_metric(comparison) else {})
        for name, value in adapter.metrics.items()
    }
    changed = comparison.model_copy(
        update={"variants": comparison.variants | {"adapter": adapter.model_copy(update={"metrics": metrics})}}
    )
    assert "41% (3 failed)" in shown(changed) and "failed = wrong" not in shown(comparison)


def test_control_characters_in_a_name_are_visible() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    terminal._print(console, "t", [terminal.Column("", ["a\x1b[2Jb"], needed=True)])
    assert isinstance(console.file, io.StringIO)
    assert "\x1b[2J" not in console.file.getvalue()


def test_the_decision_comes_last_with_the_file_and_the_report(comparison: Comparison) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=False, color_system=None)
    terminal.show_decision(
        comparison, console, file="runs/demo/gguf/model.gguf", report="reports/demo/report.html (harness report --open)"
    )
    assert isinstance(console.file, io.StringIO) and comparison.shipping
    first, *_, last = console.file.getvalue().splitlines()
    assert first == comparison.shipping.title and last == "Report: reports/demo/report.html (harness report --open)"
    assert "File: runs/demo/gguf/model.gguf" in console.file.getvalue().splitlines()
