"""Few-shot examples: the nearest training questions, never a question's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ConfigError
from harness.questions import few_shot
from harness.records import Question


def question(i: int, text: str, group: str = "") -> Question:
    return Question(id=f"q{i}", row=i + 1, question=text, answer=f"a{i}", group=group or f"g{i}")


TRAIN = [
    question(0, "Who is the head of the Union?"),
    question(1, "Which Article protects life?"),
    question(2, "Who is the head of a State?"),
    question(3, "What does Article 14 deal with?"),
]


def test_the_nearest_come_last() -> None:
    asked = [question(9, "Who is the head of the government?"), question(8, "Which Article protects liberty?")]
    found = few_shot.nearest(asked, TRAIN, 2)
    assert [[answer for _, answer in shots] for shots in found] == [["a2", "a0"], ["a3", "a1"]]
    assert few_shot.nearest(asked, TRAIN, 0) == [[], []]


def test_a_training_question_never_gets_its_own_group() -> None:
    train = [question(0, "a b c", "x"), question(1, "a b c", "x"), question(2, "a d", "y"), question(3, "e f", "z")]
    found = few_shot.nearest(train, train, 2)
    assert [[answer for _, answer in shots] for shots in found][:2] == [["a3", "a2"], ["a3", "a2"]]
    for row, shots in zip(train, found, strict=True):
        assert all(row.answer != answer for _, answer in shots)


def test_ties_go_to_the_earlier_row() -> None:
    train = [question(i, "same words here") for i in range(5)]
    assert few_shot.nearest([question(9, "words")], train, 3)[0] == [(train[i].question, f"a{i}") for i in (2, 1, 0)]


def test_too_few_are_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"prompt.few_shot is 4, and question 'q0' has 3 training questions of other groups; lower"
    ):
        few_shot.nearest(TRAIN, TRAIN, 4)


@given(
    texts=st.lists(st.text("abc def", max_size=12), min_size=3, max_size=12),
    asked=st.lists(st.text("abc dxf", max_size=12), min_size=1, max_size=4),
    k=st.integers(1, 3),
)
def test_none_left_out_is_nearer_than_one_chosen(texts: list[str], asked: list[str], k: int) -> None:
    train = [question(i, text) for i, text in enumerate(texts)]
    rows = [question(100 + i, text) for i, text in enumerate(asked)]
    known = few_shot._vocabulary(train)
    near = (few_shot._vectors(rows, known) @ few_shot._vectors(train, known).T).toarray()
    for shots, scores in zip(few_shot.nearest(rows, train, k), near, strict=True):
        chosen = [int(answer[1:]) for _, answer in shots]
        assert len(set(chosen)) == k
        left = [score for i, score in enumerate(scores) if i not in chosen]
        assert min(scores[chosen]) >= max(left, default=0.0) and list(scores[chosen]) == sorted(scores[chosen])
