"""Baselines that need no model: the rule by template, and variants against them question by question."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from harness import storage
from harness.questions.no_model_baselines import rule_answers
from harness.records import NoModelScore, Question, SplitManifest
from harness.report import terminal
from harness.stages import compare, score
from tests.helpers.scored_run import CONFIG, make, questions

ASKED = questions(n_groups=40, size=2)
PLACES = "Goa Assam Kerala Sikkim Punjab Bihar Odisha Manipur".split()


def test_a_rule_learns_the_commonest_answer_of_each_template():
    known = [(f"Is {place} a State?", "yes") for place in PLACES] + [
        (f"Who governs {place}?", "a Governor") for place in PLACES
    ]
    known += [("Is Delhi a State?", "no"), ("How many Houses has Parliament?", "two")]
    assert rule_answers(known, ["Is Tripura a State?", "Who governs Tripura?", "Why?"]) == ["yes", "a Governor", "yes"]


@given(st.lists(st.tuples(st.text(max_size=12), st.sampled_from("abc")), min_size=1, max_size=12), st.text(max_size=12))
def test_a_rule_always_has_an_answer_of_the_training_side(known, asked):
    found = rule_answers(known, [asked, *(question for question, _ in known)])
    assert len(found) == len(known) + 1 and set(found) <= {answer for _, answer in known}


def with_training(root, answers, train):
    run = make(root, answers, asked=ASKED)
    storage.write_jsonl(run.train_jsonl, train)
    split = storage.read_record(run.split_json, SplitManifest)
    changed = split.model_copy(update={"train_sha256": storage.sha256_file(run.train_jsonl)})
    storage.write_json(run.split_json, changed)
    score.run(run, CONFIG)
    return run


def known(answer):
    return [
        Question(id=f"t{i}", row=i + 1, question=f"Which article is number {i + 500}?", answer=answer, group=f"t{i}")
        for i in range(30)
    ]


def test_variants_are_paired_with_the_baselines(tmp_path):
    right = ASKED[1].answer
    run = with_training(tmp_path, {"base": lambda q: right, "adapter": lambda q: q.answer}, known(right))
    rows = storage.read_records(run.no_model[0], NoModelScore)
    assert [row.id for row in rows] == [q.id for q in ASKED]
    assert {row.answers["rule_answer"] for row in rows} == {right}
    found = compare.run(run, CONFIG)
    pairs = {(p.left, p.right): p for p in found.baseline_pairs}
    assert {name for _, name in pairs} == {"nearest_train_copy", "rule_answer", "constant_answer"}
    assert {p.metric for p in pairs.values()} == {found.primary}
    better, same = pairs["adapter", "rule_answer"], pairs["base", "rule_answer"]
    assert better.verdict == "better" and better.delta == pytest.approx(1 - 1 / 80) and better.ci95 and better.n == 80
    assert same.delta == 0 and (same.wins, same.losses) == (0, 0) and same.verdict != "better"


def shown(comparison):
    console = Console(file=io.StringIO(), width=110)
    terminal.show_comparison(comparison, console)
    return console.file.getvalue()


def test_a_model_that_does_no_better_than_a_rule_is_reported(tmp_path):
    right = ASKED[1].answer
    good = with_training(tmp_path / "good", {"base": lambda q: "x", "adapter": lambda q: q.answer}, known(right))
    poor = with_training(tmp_path / "poor", {"base": lambda q: "x", "adapter": lambda q: right}, known(right))
    said = "adapter is not surely better than rule_answer: 0 points, 95% interval"
    assert said in shown(compare.run(poor, CONFIG)) and said not in shown(compare.run(good, CONFIG))


def test_the_baselines_are_scored_once_and_go_with_the_training_side(tmp_path):
    run = with_training(tmp_path, {"adapter": lambda q: q.answer}, known("x"))
    before = run.no_model[0].stat().st_mtime_ns
    score.run(run, CONFIG)
    assert run.no_model[0].stat().st_mtime_ns == before
    compare.run(run, CONFIG)
    storage.write_jsonl(run.train_jsonl, [])
    score.run(run, CONFIG)
    assert not run.no_model[1].exists() and compare.run(run, CONFIG).baseline_pairs == []
