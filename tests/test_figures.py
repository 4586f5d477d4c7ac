"""Figures from the QA file's own columns: points of long answers, answer types, refusals, phrasings of one fact."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from harness import metrics
from harness.analysis import buckets
from harness.analysis.figures import abstains
from harness.config import Config
from harness.records import Comparison, Question
from harness.report import terminal
from harness.report.figures import table
from harness.stages import compare, score
from harness.stages.score import expected
from tests.helpers import scored_run

METRICS = ["exact_match_normalized", "rougeL", "point_recall"]
CONFIG = Config.model_validate(
    {"score": {"resamples": 100, "metrics": METRICS}, "compare": {"resamples": 100, "easy_kinds": ["part", "who"]}}
)
REFUSAL = "The Constitution does not say."


def question(row: int, answer: str, group: str, kind: str = "term", **extra: object) -> Question:
    references = ["Not provided for."] if extra.get("answerable") is False else []
    return Question(
        id=f"q{row}",
        row=row,
        question=f"{row}?",
        answer=answer,
        references=references,
        group=group,
        kind=kind,
        extra=extra,
    )


ASKED = [
    question(1, "Part III", "a", "part", answer_type="short"),
    question(2, "Parliament", "b", "who", answer_type="short"),
    question(3, "35 years", "c", fact="age", answer_type="short"),
    question(4, "35 years", "c", fact="age", answer_type="short"),
    question(5, "35 years", "c", fact="age", answer_type="short"),
    question(6, "Six", "d", fact="seats", answer_type="short"),
    question(7, "Six", "d", fact="seats", answer_type="short"),
    question(8, REFUSAL, "e", answerable=False, twin="t1", answer_type="short"),
    question(9, "Yes. It does.", "e", twin="t1", answer_type="yes-no"),
    question(10, REFUSAL, "f", answerable=False, twin="t2", answer_type="short"),
    question(11, "No. It does not.", "f", twin="t2", answer_type="yes-no"),
    question(
        12, "Parliament, under Article 21A.", "g", answer_type="long", must_mention=["Parliament", "Article 21A|21A"]
    ),
    question(13, "The Union and its territory", "h", answer_type="long"),
]
SAID = {
    1: "Part III",
    2: "The President",
    3: "35 years",
    4: "35 years.",
    5: "35 years",
    6: "Six",
    7: "Seven",
    8: "The Constitution does not say. It is silent.",
    9: REFUSAL,
    10: "Parliament",
    11: "No. It does not.",
    12: "It is Parliament that decides under Article 21.",
    13: "The Union and its territory",
}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    run = scored_run.make(tmp_path_factory.mktemp("run"), {"adapter": lambda q: SAID[q.row]}, asked=ASKED)
    score.run(run, CONFIG)
    return compare.run(run, CONFIG)


@pytest.mark.parametrize(
    ("name", "value", "n"),
    [
        ("without_part", 6 / 12, 12),
        ("without_part_who", 6 / 11, 11),
        ("answer_type_yes-no", 1 / 2, 2),
        ("answer_type_long", (0.5 + 1.0) / 2, 2),
        ("by_answer_type", (1 + 3 + 1 + 1 + 1.5) / 13, 13),
        ("correct_abstention", 1 / 2, 2),
        ("false_abstention", 1 / 11, 11),
        ("false_abstention_twins", 1 / 2, 2),
        ("consistency", 1 / 2, 2),
        ("all_phrasings_right", 1 / 2, 2),
    ],
)
def test_figures(comparison: Comparison, name: str, value: float, n: int) -> None:
    found = {figure.name: figure for figure in comparison.figures}
    assert found[name].value == pytest.approx(value)
    assert found[name].n == n
    low, high = found[name].ci95 or (1.0, 0.0)
    assert low <= value <= high


def test_point_recall_is_scored_where_points_are_listed_and_nowhere_else(comparison: Comparison) -> None:
    value_of = comparison.variants["adapter"].metrics["point_recall"]
    assert (value_of.value, value_of.n, value_of.n_unscored) == (0.5, 1, 12)


def test_a_failed_answer_is_neither_a_refusal_nor_none(tmp_path: Path) -> None:
    failed = {"text": "", "finish_reason": "error", "error": "gone"}
    run = scored_run.make(tmp_path, {"adapter": lambda q: failed if q.row in (8, 3) else SAID[q.row]}, asked=ASKED)
    score.run(run, CONFIG)
    found = {figure.name: figure for figure in compare.run(run, CONFIG).figures}
    assert (found["correct_abstention"].value, found["correct_abstention"].n) == (0.0, 1)
    assert found["consistency"].n == 1


def test_a_file_without_the_columns_has_no_figures(tmp_path: Path) -> None:
    run = scored_run.make(tmp_path, {"adapter": lambda q: q.answer})
    score.run(run, scored_run.CONFIG)
    assert compare.run(run, scored_run.CONFIG).figures == []


def test_terminal_and_table_show_every_figure(comparison: Comparison) -> None:
    out = io.StringIO()
    terminal.show_figures(comparison, Console(file=out, width=120))
    assert all(figure.label in out.getvalue() for figure in comparison.figures)
    assert [line.texts for line in table(comparison).lines if line.label.startswith("Refused where")] == [["50%"]]


@pytest.mark.parametrize(
    ("answer", "points", "recall"),
    [
        ("Article 21A obliges the State.", ["Article 21A|21A", "State"], 1.0),
        ("article 21-a", ["Article 21A"], 1.0),
        ("Article 21", ["Article 21A|21A"], 0.0),
        ("Thirty-five years", ["thirty-five|35"], 1.0),
        ("The Council of the States", ["Council of States"], 1.0),
        ("Council", ["Council of States", "House"], 0.0),
        ("Parliament", ["Parliament", "President"], 0.5),
        ("", ["Parliament"], 0.0),
    ],
)
def test_point_recall(answer: str, points: list[str], recall: float) -> None:
    assert metrics.find("point_recall").score_one(answer, points) == recall


@pytest.mark.parametrize("points", [[], ["|"], [" "]])
def test_no_points_no_score(points: list[str]) -> None:
    assert metrics.find("point_recall").score_one("Parliament", points) is None


@given(st.lists(st.sampled_from(["Parliament", "six", "Article 5", "two-thirds"]), min_size=1, max_size=5), st.data())
def test_naming_more_points_never_scores_less(points: list[str], data: st.DataObject) -> None:
    metric = metrics.find("point_recall")
    some = data.draw(st.lists(st.sampled_from(points), unique=True))
    fewer, all_named = metric.score_one(" and ".join(some), points), metric.score_one(" and ".join(points), points)
    assert fewer is not None
    assert fewer <= (all_named or 0) == 1.0


def test_what_a_metric_is_scored_against() -> None:
    long = ASKED[11]
    assert expected("token_f1", long) == [long.answer]
    assert expected("point_recall", long) == ["Parliament", "Article 21A|21A"]
    one = long.model_copy(update={"extra": {"must_mention": "Parliament"}})
    assert expected("point_recall", one) == ["Parliament"]
    odd = long.model_copy(update={"extra": {"must_mention": [3, None]}})
    assert expected("point_recall", odd) == []


def test_a_refusal_is_known_by_its_beginning() -> None:
    refusals = {("constitution", "does", "not", "say")}
    assert abstains("The Constitution does not say, and no law does.", refusals)
    assert not abstains("Yes, though the Constitution does not say when.", refusals)


def test_the_file_s_answer_type_goes_before_the_guess() -> None:
    assert buckets.answer_type(ASKED[12]) == "long"
    assert buckets.answer_type(ASKED[12].model_copy(update={"extra": {}})) == "term"


def test_every_question_of_the_dataset_has_a_type_that_a_metric_judges() -> None:
    from harness.analysis.figures import DECIDES

    rows = json.loads((Path(__file__).parents[1] / "data" / "constitution_qa.json").read_text(encoding="utf-8"))
    assert {row["answer_type"] for row in rows} == set(DECIDES)
