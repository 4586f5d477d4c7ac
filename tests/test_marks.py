"""People's marks: checked, made the metric `human`, and compared with every other metric."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from harness import storage
from harness.analysis.agreement import cohens_kappa
from harness.cli import app
from harness.config import Config
from harness.errors import ArtifactError
from harness.records import Mark, MarksResult
from harness.stages import marks, report
from tests.helpers.marks import lines_of, saved
from tests.helpers.report_fixture import CONFIG, HOSTILE, write_run


@pytest.fixture
def made(tmp_path):
    return write_run(tmp_path, questions=60)


def test_marks_become_a_metric_with_pairs_and_agreement(made, tmp_path):
    file = saved(tmp_path, [*lines_of(made, "adapter"), *lines_of(made, "base")])
    result = marks.add(made, CONFIG, [file])
    assert result.human["adapter"].n == 40 and result.human["adapter"].ci95 is not None
    gain = next(p for p in result.pairs if (p.left, p.right) == ("adapter", "base"))
    assert gain.verdict == "better" and gain.n == 40 and gain.p is not None and gain.p <= 0.05
    exact = next(a for a in result.agreements if a.metric == "exact_match_normalized")
    assert exact.kappa == pytest.approx(1) and exact.agreement == 1
    assert storage.read_record(made.marks_json, MarksResult) == result
    assert "gguf_f16" in result.human, "a variant that gave the same text is marked with it"


def test_unsure_is_unscored_and_the_later_mark_holds(made, tmp_path):
    first = lines_of(made, "adapter", lambda q, text: "wrong")
    marks.add(made, CONFIG, [saved(tmp_path, first)])
    second = [line | {"mark": "unsure"} for line in first[:10]] + [line | {"mark": "right"} for line in first[10:20]]
    result = marks.add(made, CONFIG, [saved(tmp_path, second)])
    assert result.marks == len({(line["id"], line["answer"]) for line in first})
    assert result.human["adapter"].n == 30 and result.human["adapter"].value == pytest.approx(1 / 3)


def test_marks_of_answers_that_have_changed_are_left_out_and_reported(made, tmp_path):
    lines = [line | {"answer": "an answer of last week"} for line in lines_of(made, "adapter", n=3)]
    result = marks.add(made, CONFIG, [saved(tmp_path, lines)])
    assert result.marks == 0 and result.left_out == {"the answer has changed since": 3} and not result.human


def test_blind_votes_are_counted_whichever_side_they_were_cast_from(made, tmp_path):
    a, b = lines_of(made, "adapter"), lines_of(made, "base")
    votes = []
    for at, (one, two) in enumerate(zip(a, b, strict=True)):
        mine, other, prefers = (one, two, "variant") if at % 2 else (two, one, "other")
        votes.append(
            mine
            | {
                "kind": "vote",
                "mark": None,
                "other": other["variant"],
                "other_answer": other["answer"],
                "prefers": prefers,
            }
        )
    votes[0]["prefers"] = "neither"
    (found,) = marks.add(made, CONFIG, [saved(tmp_path, votes)]).preferences
    assert (found.left, found.for_left, found.for_right, found.neither) == ("adapter", 39, 0, 1)
    assert found.p is not None and found.p < 0.05


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"split_id": "other"}, "was made on another split"),
        ({"id": "nobody"}, "marks question 'nobody', which is not in this run"),
        ({"variant": "gguf_q2_k"}, "names variant 'gguf_q2_k', which is not in this run"),
        ({"mark": None}, "has no mark"),
        ({"kind": "vote"}, "is a vote without"),
        ({"mark": "maybe"}, "is damaged"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(made, tmp_path, change, problem):
    lines = lines_of(made, "adapter", n=2)
    file = saved(tmp_path, [lines[0], lines[1] | change])
    with pytest.raises(ArtifactError, match=problem) as caught:
        marks.add(made, CONFIG, [file])
    assert str(file) in str(caught.value) and not made.marks_jsonl.exists() and not made.marks_json.exists()


def test_the_verb_and_the_report_show_them(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = saved(tmp_path, [line | {"note": HOSTILE[0]} for line in lines_of(made, "adapter")])
    done = CliRunner().invoke(app, ["marks", "add", str(file), "--run", "demo", "--set", "score.resamples=100"])
    assert done.exit_code == 0, done.output
    assert "Cohen's kappa" in done.stdout and "reports/demo/marks.json" in done.stdout
    page = report.run(made, Config()).read_text()
    assert "People's marks" in page and "Cohen's kappa" in page and HOSTILE[0] not in page
    done = CliRunner().invoke(app, ["marks", "add", "nowhere.jsonl", "--run", "demo"])
    assert done.exit_code == 2 and "nowhere.jsonl: is missing" in done.stderr


def test_a_note_that_is_markup_stays_out_of_every_page(made, tmp_path):
    marks.add(
        made,
        CONFIG,
        [
            saved(
                tmp_path,
                [line | {"note": text} for line, text in zip(lines_of(made, "adapter"), HOSTILE, strict=False)],
            )
        ],
    )
    report.run(made, Config())
    assert "window.pwned=1" not in made.report_html.read_text() and "window.pwned" not in made.report_md.read_text()
    assert Mark.model_validate(json.loads(made.marks_jsonl.read_text().splitlines()[0])).note == HOSTILE[0]


# --------------------------------------------------------------------------------------------------------------- kappa


def test_kappa_is_cohens():
    # Cohen (1960) by hand: 20 both yes, 5 only one, 10 only the other, 15 both no: p_o = 0.7, p_e = 0.5, kappa = 0.4.
    one, other = [1] * 20 + [1] * 5 + [0] * 10 + [0] * 15, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    kappa, ci95 = cohens_kappa(one, other, range(50), resamples=2000, seed=0)
    assert kappa == pytest.approx(0.4) and ci95 is not None and ci95[0] < 0.4 < ci95[1]
    # The large-sample standard error of Fleiss, Cohen and Everitt (1969) is 0.128 here.
    assert (ci95[1] - ci95[0]) / 3.92 == pytest.approx(0.128, abs=0.015)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_kappa_does_not_care_who_is_first_or_what_yes_means(pairs):
    one, other = np.array(pairs).T
    kappa, _ = cohens_kappa(one, other, range(len(pairs)), resamples=50, seed=0)
    swapped, _ = cohens_kappa(other, one, range(len(pairs)), resamples=50, seed=0)
    negated, _ = cohens_kappa(~one, ~other, range(len(pairs)), resamples=50, seed=0)
    assert (
        (kappa, kappa) == pytest.approx((swapped, negated), nan_ok=True)
        if kappa is not None
        else swapped is negated is None
    )
    if kappa is not None:
        assert -1 - 1e-9 <= kappa <= 1 + 1e-9 and (kappa == pytest.approx(1)) == (one == other).all()


def test_one_verdict_only_and_one_group_only():
    assert cohens_kappa([1, 1, 1], [1, 1, 1], "abc", resamples=50, seed=0) == (None, None)
    assert cohens_kappa([], [], [], resamples=50, seed=0) == (None, None)
    assert cohens_kappa([1, 0], [1, 0], "aa", resamples=50, seed=0) == (1.0, None)
