"""Questions in many languages: those of a template ask different things, those in other words the same (`golden/questions.json`, made up)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.questions.grouping import group_rows
from harness.questions.rows import Row
from harness.questions.similarity import Shingles

GOLDEN = json.loads((Path(__file__).parent / "golden" / "questions.json").read_text(encoding="utf-8"))


def groups(pairs: list[list[str]], label: str | None = None) -> list[int]:
    rows = [
        Row(id=str(at), row=at + 1, question=question, answer=answer, group=f"{label}-{at}" if label else None)
        for at, (question, answer) in enumerate(pairs)
    ]
    return group_rows(rows, Shingles([row.question for row in rows], 5), threshold=0.5, long_answer_words=6).of


@pytest.mark.parametrize("name", GOLDEN["templates"])
def test_a_templates_questions_stay_apart(name: str) -> None:
    rows = GOLDEN["templates"][name]
    assert groups(rows) == list(range(len(rows)))


@pytest.fixture(scope="module")
def of_one_file() -> dict[tuple[str, str], bool]:
    """For each pair of questions whether it is tied, all of them in one file."""
    cases = [*GOLDEN["same"], *GOLDEN["apart"]]
    of = groups([pair for a, b, c, d in cases for pair in ([a, b], [c, d])])
    return {(case[0], case[2]): of[2 * at] == of[2 * at + 1] for at, case in enumerate(cases)}


@pytest.mark.parametrize("case", GOLDEN["same"], ids=lambda case: case[0])
def test_one_question_in_other_words_is_tied(of_one_file: dict[tuple[str, str], bool], case: list[str]) -> None:
    assert of_one_file[case[0], case[2]]


@pytest.mark.parametrize("case", GOLDEN["apart"], ids=lambda case: case[0])
def test_questions_of_different_things_are_not(of_one_file: dict[tuple[str, str], bool], case: list[str]) -> None:
    assert not of_one_file[case[0], case[2]]


def test_labels_decide_before_other_words() -> None:
    asked = [["Who wrote War and Peace?", "Leo Tolstoy"], ["Name the author of War and Peace.", "Leo Tolstoy"]]
    assert groups(asked) == [0, 0]
    assert groups(asked, label="book") == [0, 1]
