"""The parts of the report below its first screen: answers, tables, costs, fidelity, and how each format is run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.records import HowToRun
from harness.report import (
    answers,
    first_screen,
    headline,
    leaderboard,
    provenance_section,
    sections,
    terminal,
    two_runs,
)
from harness.report import page as rendering
from harness.stages import report
from harness.variants import label as variant_label
from harness.variants import order
from tests.helpers.report_fixture import comparison_of, pair


def test_answers_keep_every_text_score_and_reason(reported):
    inputs = report.read(reported)
    found = answers.answers(inputs)
    assert [len(column["text"]) for column in found["variants"]] == [60] * 7
    at = 17
    for column in found["variants"]:
        prediction, score = inputs.predictions[column["name"]][at], inputs.scores[column["name"]][at]
        assert column["text"][at] == prediction.text and column["finish"][at] == prediction.finish_reason
        assert column["scores"][at][0] == score.scores["exact_match_normalized"]


def test_regressions_are_real_losses_and_sorted(reported):
    inputs = report.read(reported)
    rows = answers.regressions(inputs, "gguf_q4_k_m", "merged_16bit")
    scores = {
        v: {s.id: s.scores["exact_match_normalized"] or 0 for s in inputs.scores[v]}
        for v in ("gguf_q4_k_m", "merged_16bit")
    }
    assert all(scores["gguf_q4_k_m"][row["id"]] < scores["merged_16bit"][row["id"]] for row in rows)


def test_tables_take_any_keys():
    shown = sections.table(
        [{"right": "b", "left": "gguf_q8_0", "identical": 0.9876, "mean_kl": 0.00412}, {"left": "a", "odd": None}]
    )
    assert sorted(shown["columns"]) == ["Against", "Format", "Mean KL", "Odd", "Same text"]
    assert {"GGUF Q8_0", "98.8%", "0.0041"} <= set(shown["rows"][0])


def test_intervals_of_fidelity_stand_beside_their_values():
    row = {"left": "a", "mean_kl": 0.0041, "top1_agreement": 0.9, "max_kl": 1.0, "positions": 300, "n": 422}
    intervals = {"mean_kl": [0.003, 0.0052], "top1_agreement": [0.875, 0.925], "max_kl": "<b>"}
    shown = sections.table([row | {"intervals": intervals}])
    assert shown["rows"][0][2:] == ["300", "90.0% (87.5% to 92.5%)", "0.0041 (0.003 to 0.0052)", "1"]


@pytest.mark.parametrize(
    ("positions", "asked", "note"),
    [
        (2000, 24, ""),
        (None, 24, ""),
        (300, 24, "Measured at 300 positions; about 160 questions give 2,000 (predict.fidelity_questions)."),
        (30, 24, "Measured at 30 positions; all 422 questions do not give 2,000 (predict.fidelity_questions)."),
        (300, 500, "Measured at 300 positions."),
    ],
)
def test_few_positions_are_told_with_the_way_to_more(reported, positions, asked, note):
    comparison = comparison_of(reported).model_copy(
        update={
            "fidelity": [{"left": "a", "right": "b", "n": 422, "positions": positions}],
            "provenance": {"config": {"predict": {"fidelity_questions": asked}}},
        }
    )
    assert sections.fidelity_note(comparison) == note


def test_the_columns_of_fidelity_and_noise_have_names_and_an_order(reported):
    inputs = report.read(reported)
    columns = "Format|Against|Answers|Same text|Token agreement|Positions|Top-1 agreement|Mean KL|99% KL"
    assert sections.table(inputs.comparison.fidelity)["columns"] == columns.split("|")
    noise = sections.table(sections.noise_rows(inputs.comparison))
    assert noise["columns"] == ["Variant", "What was changed", "Answers", "Of them changed"]
    assert noise["rows"][0] == ["Adapter", "batch: 1 against 64 at most", "64", "0.4%"]


def test_unscored_questions_are_reported_once_if_they_are_the_same_for_all(reported):
    comparison = comparison_of(reported)
    metric = "token_f1"

    def unscored(counts):
        variants = {
            name: result.model_copy(
                update={
                    "metrics": result.metrics
                    | {metric: result.metrics[metric].model_copy(update={"n": 60 - n, "n_unscored": n})}
                }
            )
            for (name, result), n in zip(comparison.variants.items(), counts, strict=True)
        }
        board = leaderboard.leaderboard(comparison.model_copy(update={"variants": variants}))
        at = [column["key"] for column in board["columns"]].index(metric)
        return board["columns"][at]["note"], [
            row["cells"][at]["unscored"] for row in board["rows"] if not row["baseline"]
        ]

    assert unscored([7] * 7) == ("n = 53", [0] * 7)
    assert unscored([7, 0, 0, 0, 0, 0, 0]) == ("", [7, 0, 0, 0, 0, 0, 0])
    assert unscored([0] * 7) == ("", [0] * 7)


def test_the_cost_in_money_is_a_column_where_a_price_is_given(reported, capsys):
    comparison = comparison_of(reported)
    assert "money" not in [column["key"] for column in leaderboard.leaderboard(comparison)["columns"]]
    paid = comparison.variants["base"].model_copy(
        update={"cost": comparison.variants["base"].cost.model_copy(update={"money": 0.01234})}
    )
    comparison = comparison.model_copy(update={"variants": comparison.variants | {"base": paid}})
    board = leaderboard.leaderboard(comparison)
    at = [column["key"] for column in board["columns"]].index("money")
    assert board["columns"][at] | {"label": "Cost", "extra": False} == board["columns"][at]
    texts = {row["name"]: row["cells"][at]["text"] for row in board["rows"]}
    assert (texts["base"], texts["adapter"]) == ("0.01234", "\u2013")
    terminal.show_comparison(comparison)
    assert "0.01234" in capsys.readouterr().out


def test_of_identical_texts_no_interval_is_reported(reported, capsys):
    comparison = comparison_of(reported)
    same = pair(delta=0.0, ci95=(-0.03, 0.03), verdict="identical")
    comparison = comparison.model_copy(update={"pairs": [same]})
    no_interval = "the same text on all 100"
    assert headline.interval(same) == no_interval == sections.pair_rows(comparison)[0]["ci"]
    assert "95% interval" not in two_runs.evidence(same) and no_interval in two_runs.evidence(same)
    terminal.show_pairs([same])
    shown = capsys.readouterr().out
    assert no_interval in shown and "+3" not in shown


def test_the_page_says_how_each_format_is_run_what_ships_first(reported):
    inputs = report.read(reported)
    assert inputs.export is not None
    lines = ["llama-server --model 'runs/demo/gguf/<b>.gguf'"]
    way = HowToRun(tool="llama-server", language="shell", lines=lines, note="needs llama.cpp")
    artifacts = {name: a.model_copy(update={"ways": [way]}) for name, a in inputs.export.artifacts.items()}
    with_formats = replace(inputs, export=inputs.export.model_copy(update={"artifacts": artifacts}))
    found = first_screen.ways(with_formats)
    assert {entry["label"] for entry in found} == {variant_label(name) for name in artifacts}
    ships = with_formats.comparison.shipping.variant if with_formats.comparison.shipping else None
    assert [entry["ship"] for entry in found] == [
        name == ships for name in sorted(artifacts, key=lambda n: (n != ships, order(n)))
    ]
    text = rendering.html(with_formats, [], [], {}, {}, "f")
    assert text.count("&lt;b&gt;.gguf") == len(artifacts) and "<b>.gguf" not in text
    assert text.index('id="differences"') > text.index('id="run"') and text.index('id="training"') > text.index(
        'id="answers"'
    )
    assert 'id="run"' not in rendering.html(inputs, [], [], {}, {}, "f"), "an export of an earlier version has none"


def test_what_grouping_is_worth_has_a_row_for_each_metric(reported):
    split = report.read(reported).split
    assert split is not None
    shown = provenance_section.grouping(split)
    answers = [f"{who} answer, {side} split" for who in ("Nearest training", "Constant") for side in ("this", "random")]
    assert shown["columns"] == ["Metric", *answers]
    assert shown["rows"] == [["Exact match", "4.1%", "19%", "5.7%", "6.1%"], ["ROUGE-L", "36%", "51%", "8%", "9%"]]


def test_page_names_no_place_of_the_machine(reported):
    page = reported.report_html.read_text()
    assert str(Path.cwd()) not in page and "/tmp/" not in page
