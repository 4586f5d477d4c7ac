"""Few-shot examples: the nearest training questions, never a question's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import variants
from harness.errors import ConfigError
from harness.questions import few_shot
from harness.records import PromptForm, Question
from harness.report import terminal
from harness.stages import compare, score
from tests.helpers import scored_run


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
        ConfigError,
        match=r"4 few-shot examples are requested, but question 'q0' has only 3 training questions in other groups; lower",
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


def test_the_fine_tuned_variant_is_tested_against_the_base_with_examples() -> None:
    names = ["base", "base_fewshot", "adapter", "merged_16bit", "gguf_q8_0", "instruct"]
    found = variants.pairs(names, {"instruct"})
    assert ("base_fewshot", "base") in found
    assert [left for left, right in found if right == "base_fewshot"] == ["adapter", "instruct"]
    assert variants.tuned(["base", "base_fewshot"]) is None


FORM = PromptForm(
    format="text",
    template="{question}",
    chat_template_sha256=None,
    system=None,
    enable_thinking=None,
    few_shot=3,
    opening="",
    first="",
    first_tokens=1,
)


@pytest.mark.parametrize(
    "tuned, base, answer, opening",
    [
        ("right", "wrong", "yes", "Fine-tuning is worth it against few-shot: Adapter reaches 100% exact match"),
        ("right", "right", "no", "Fine-tuning is not worth it against few-shot"),
        ("wrong", "right", "no", "Fine-tuning is not worth it against few-shot"),
        ("half", "other half", "cannot tell", "Whether fine-tuning beats few-shot is not decided yet"),
    ],
)
def test_the_answer_is_that_of_the_tested_pair(
    tuned: str, base: str, answer: str, opening: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says: dict[str, Callable[[Question], str]] = {
        "right": lambda q: q.answer,
        "wrong": lambda q: f"nothing {q.id}",
        "half": lambda q: q.answer if q.row % 2 else f"nothing {q.id}",
        "other half": lambda q: f"nothing {q.id}" if q.row % 2 else q.answer,
    }
    answers = {"base": says["wrong"], "base_fewshot": says[base], "adapter": says[tuned]}
    run = scored_run.make(tmp_path, answers, prompt=FORM)
    score.run(run, scored_run.CONFIG)
    comparison = compare.run(run, scored_run.CONFIG)
    (found,) = comparison.against_few_shot
    assert (found.variant, found.answer, found.examples) == ("adapter", answer, 3)
    assert found.text.startswith(opening) and "3 training examples in front of each question" in found.text
    terminal.show_comparison(comparison)
    assert found.text in capsys.readouterr().out
