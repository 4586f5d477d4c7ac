"""Invariants of the rows added after the fact check: sources, forms of an answer, twins, facts asked in several ways."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

DATA = Path(__file__).parents[1] / "data"
sys.path.insert(0, str(DATA))

import croissant  # noqa: E402
import gradable  # noqa: E402
import restate  # noqa: E402
import tables  # noqa: E402
import verify  # noqa: E402
from facts import facts  # noqa: E402

from harness.questions.dataset import load  # noqa: E402

ROWS = json.loads((DATA / "constitution_qa.json").read_text(encoding="utf-8"))
OLD_HAND_FILES = sorted(DATA.glob("handwritten/articles-*.jsonl"))
TYPES = {"short", "list", "yes-no", "long"}


def questions(path: Path) -> set[str]:
    return {json.loads(line)["question"] for line in path.read_text(encoding="utf-8").splitlines()}


def test_every_new_row_names_two_sources_and_the_date_of_the_text():
    old = set().union(*map(questions, OLD_HAND_FILES))
    new = [r for r in ROWS if "cites" in r or (r.get("source") == "hand" and r["question"] not in old)]
    assert len(new) >= 2400
    for row in new:
        assert row["cites"], row["question"]
        assert len(set(row["verified_against"])) == 2, row["question"]
        assert set(row["verified_against"]) <= set(verify.NAMES.values()), row["question"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["text_as_of"]), row["question"]


def test_cited_places_exist():
    known = {f.article for f in facts() if f.article} | {f.key for f in facts() if not f.article}
    known |= {f"Amendment {a['number']}" for a in tables.table("amendments")} | {"31"}
    assert {c for r in ROWS for c in r.get("cites", ())} <= known


def test_answer_types_and_points():
    assert {r["answer_type"] for r in ROWS} == TYPES
    for row in ROWS:
        if row["answer_type"] == "yes-no":
            assert gradable.yes_or_no(row["answer"]) in ({row["answer"]} | set(row["references"])), row["question"]
        if "must_mention" in row:
            said = " ".join([row["answer"], *row.get("references", [])]).lower()
            for point in row["must_mention"]:
                assert any(form.lower() in said for form in point.split("|")), (row["question"], point)
    assert sum("must_mention" in r for r in ROWS if r["answer_type"] == "long") >= 500


def test_yes_and_no_are_balanced():
    said = Counter(gradable.yes_or_no(r["answer"]) for r in ROWS if r["answer_type"] == "yes-no")
    assert sum(said.values()) >= 400
    assert 0.45 <= said["Yes"] / said.total() <= 0.55, said
    scenarios = Counter(
        gradable.yes_or_no(r["answer"]) for r in ROWS if r["answer_type"] == "yes-no" and r["kind"] == "scenario"
    )
    assert 0.4 <= scenarios["Yes"] / scenarios.total() <= 0.6, scenarios


def test_scenarios_over_several_articles():
    scenarios = [r for r in ROWS if r["kind"] == "scenario"]
    assert sum(len(r.get("cites", ())) >= 2 for r in scenarios) >= 150
    assert sum(len(re.findall(r"[.?](?= [A-Z]|$)", r["question"])) >= 4 for r in scenarios) >= 150


def test_each_question_that_must_not_be_answered_has_its_twin():
    pairs = defaultdict(list)
    for row in ROWS:
        if "twin" in row:
            pairs[row["twin"]].append(row)
    assert len(pairs) >= 150
    for name, rows in pairs.items():
        assert sorted(r.get("answerable", True) for r in rows) == [False, True], name
        assert len({r["group"] for r in rows}) == 1, name
    refused = [r for r in ROWS if r.get("answerable") is False]
    assert len({r["answer"] for r in refused}) <= 3
    assert all("twin" in r for r in refused)


def test_facts_asked_in_three_ways_have_one_answer_and_one_group():
    asked = defaultdict(list)
    for row in ROWS:
        if "fact" in row:
            asked[row["fact"]].append(row)
    assert len(asked) >= 150
    for name, rows in asked.items():
        assert len(rows) == 3, name
        assert len({(r["answer"], r["group"]) for r in rows}) == 1, name


def test_the_reader_accepts_the_new_fields():
    rows = load(DATA / "constitution_qa.json")
    assert len(rows) == len(ROWS)
    refused = [r for r in rows if not r.answerable]
    assert len(refused) >= 150
    assert all(r.answer.strip() for r in refused)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("Thirty-five years", {"35 years", "35", "thirty-five"}),
        ("35 years", {"35", "Thirty-five years", "thirty-five"}),
        ("Fifteen per cent", {"15 per cent", "15%", "15 percent"}),
        ("Two-thirds", {"2/3"}),
        ("Not less than five years", {"five years", "Not less than 5 years", "5 years", "5"}),
        ("The President", {"The President of India", "President of India"}),
        ("Parliament", {"Parliament of India"}),
        ("Article 21A", {"21A"}),
        ("Part IVA", {"IVA"}),
        ("No, because a Governor must be thirty-five.", {"No"}),
        ("Yes. Article 3 asks only for views.", {"Yes"}),
        ("Two thousand five hundred rupees", {"2500", "2,500", "2500 rupees"}),
    ],
)
def test_further_right_answers(answer: str, wanted: set[str]):
    assert wanted <= set(gradable.references({"answer": answer}))


def test_a_sentence_that_opens_with_no_as_a_determiner_is_no_yes_no_answer():
    assert gradable.yes_or_no("No person may be a member of both Houses.") is None


@given(st.integers(min_value=0, max_value=999))
def test_number_words_round_trip(n: int):
    assert gradable.value_of(gradable.in_words(n)) == n
    assert gradable.in_figures(gradable.in_words(n)) == str(n)


@given(st.integers(min_value=0, max_value=999), st.sampled_from(["years", "days", "per cent", "members", "seats"]))
def test_figures_and_words_accept_each_other(n: int, unit: str):
    words, figures = f"{gradable.in_words(n).capitalize()} {unit}", f"{n} {unit}"
    assert figures in gradable.references({"answer": words})
    assert words in gradable.references({"answer": figures})


def test_the_check_finds_a_wrong_figure_a_wrong_word_and_a_missing_article():
    copy = {"58": "No person shall be eligible unless he has completed the age of thirty-five years"}
    row = {"question": "How old must a President be?", "cites": ["58"]}
    assert verify.problems(row | {"answer": "Thirty-five years"}, copy) == []
    assert verify.problems(row | {"answer": "35 years"}, copy) == []
    assert "40" in verify.problems(row | {"answer": "Forty years"}, copy)[0]
    assert verify.problems(row | {"answer": "A degree in economics from abroad"}, copy)[0].startswith("words")
    assert verify.problems(row | {"answer": "Thirty-five years", "cites": ["59"]}, copy) == ["has no 59"]


def test_croissant_metadata_describes_the_file():
    text = (DATA / "constitution_qa.json").read_text(encoding="utf-8")
    assert (DATA / "croissant.json").read_text(encoding="utf-8") == croissant.render(text), "run `make data`"
    fields = set().union(*(set(r) for r in ROWS)) - {"source", "answerable"}
    assert fields == set(croissant.FIELDS)


def test_restated_questions_ask_what_the_file_asks_but_are_not_in_it():
    again = json.loads((DATA / "constitution_taught.json").read_text(encoding="utf-8"))
    assert again == restate.rows(ROWS), "run `make data`"
    asked = {r["question"]: r for r in ROWS}
    assert len(again) == len({r["question"] for r in again}) == restate.ROWS
    assert {"lookup", "authority", "term", "content"} <= {r["kind"] for r in again}
    for row in again:
        original = asked[row["restates"]]
        assert row["question"] not in asked
        assert [row[k] for k in ("answer", "group", "kind")] == [original[k] for k in ("answer", "group", "kind")]
        assert row.get("references") == original.get("references")
        assert re.search(r"[.?]$", row["question"]) and not re.search(r"  |[{}]", row["question"])


def test_the_folder_loads_as_a_dataset(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(DATA), cache_dir=str(tmp_path), split="train")
    assert len(loaded) == len(ROWS)
    assert loaded["question"][-1] == ROWS[-1]["question"]
