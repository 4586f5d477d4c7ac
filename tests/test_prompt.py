"""The one place where a question becomes token ids, in training and for every backend."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config import TEMPLATE
from harness.errors import ModelError
from harness.prompt import IGNORED, Prompter, load_tokenizer, prompt_hash, stop_ids, tokenizer_sha256
from tests.helpers.models import BOS, BOS_ID, EOS, EOS_ID, edit_json, save_tokenizer

QUESTION, ANSWER = "Who is the head of the Union?", "The President of India."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def prompter(folder: Path) -> Prompter:
    return Prompter(load_tokenizer(folder), TEMPLATE)


def without_post_processor(folder: Path, target: Path) -> Path:
    """A copy of a tokenizer that puts nothing in front of a text."""
    shutil.copytree(folder, target)
    values = json.loads((target / "tokenizer.json").read_text())
    values["post_processor"] = None
    (target / "tokenizer.json").write_text(json.dumps(values))
    return target


# ------------------------------------------------------------------------------------------------------------ prompts


def test_exactly_one_bos_opens_the_prompt(prompter: Prompter) -> None:
    ids = prompter.ids(QUESTION)
    assert ids[0] == BOS_ID and ids.count(BOS_ID) == 1 and EOS_ID not in ids
    tokenizer: Any = prompter.tokenizer
    assert tokenizer.decode(ids[1:]) == prompter.text(QUESTION) == TEMPLATE.format(question=QUESTION)


def test_a_tokenizer_that_adds_no_bos_gets_none_although_it_has_one(folder: Path, tmp_path: Path) -> None:
    other = without_post_processor(folder, tmp_path / "t")
    with_bos, without = (Prompter(load_tokenizer(f), TEMPLATE).ids(QUESTION) for f in (folder, other))
    assert load_tokenizer(other).bos_token_id == BOS_ID
    assert without == with_bos[1:]


def test_a_template_that_writes_bos_gets_no_second_one(folder: Path, tmp_path: Path) -> None:
    for tokenizer in (load_tokenizer(folder), load_tokenizer(without_post_processor(folder, tmp_path / "t"))):
        assert Prompter(tokenizer, BOS + "{question}").ids("A")[:2] == [BOS_ID, *tokenizer("A")["input_ids"][-1:]]
    assert Prompter(load_tokenizer(folder), "a" + BOS + "{question}").ids("A").count(BOS_ID) == 2


@pytest.mark.parametrize("text", [BOS, EOS, f"What does {EOS} mean?", f"{BOS}{BOS}"])
def test_text_that_looks_like_a_special_token_stays_text(prompter: Prompter, text: str) -> None:
    ids = prompter.ids(text)
    tokenizer: Any = prompter.tokenizer
    assert ids.count(BOS_ID) == 1 and EOS_ID not in ids
    assert tokenizer.decode(ids[1:]) == prompter.text(text)
    example = prompter.example(QUESTION, text, train_on="answer", max_length=500)
    assert example.input_ids.count(EOS_ID) == 1 and example.input_ids.count(BOS_ID) == 1


def test_braces_in_a_question_stay_braces(prompter: Prompter) -> None:
    assert "{question} {0} {x}" in prompter.text("{question} {0} {x}")


def test_no_end_token_is_refused(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "t")
    edit_json(other / "tokenizer_config.json", eos_token=None)
    with pytest.raises(
        ModelError, match=r"t: the tokenizer has no end token; use a base model whose tokenizer defines eos_token"
    ):
        Prompter(load_tokenizer(other), TEMPLATE)


def test_the_hash_of_a_prompt_is_of_its_ids() -> None:
    assert prompt_hash([1, 2, 3]) == prompt_hash((1, 2, 3)) != prompt_hash([1, 23])


# ------------------------------------------------------------------------------------------------------ training rows


def test_the_answer_and_its_end_carry_the_loss(prompter: Prompter) -> None:
    example = prompter.example(QUESTION, ANSWER, train_on="answer", max_length=500)
    prompt = prompter.ids(QUESTION)
    tokenizer: Any = prompter.tokenizer
    assert example.labels[: len(prompt)] == [IGNORED] * len(prompt)
    assert example.labels[len(prompt) :] == example.input_ids[len(prompt) :]
    assert tokenizer.decode(example.labels[len(prompt) : -1]) == ANSWER
    assert example.labels[-1] == EOS_ID and not example.cut


def test_the_prompt_carries_loss_too_if_asked(prompter: Prompter) -> None:
    example = prompter.example(QUESTION, ANSWER, train_on="all", max_length=500)
    assert example.labels == example.input_ids


def test_a_row_too_long_loses_the_end_of_its_answer(prompter: Prompter) -> None:
    prompt, whole = (
        prompter.ids(QUESTION),
        prompter.example(QUESTION, ANSWER, train_on="answer", max_length=500).input_ids,
    )
    cut = prompter.example(QUESTION, ANSWER, train_on="answer", max_length=len(prompt) + 2)
    assert (cut.input_ids, cut.cut) == (whole[: len(prompt) + 2], True)
    only = prompter.example(QUESTION, ANSWER, train_on="answer", max_length=len(prompt) - 3)
    assert (only.input_ids, only.labels, only.cut) == (prompt, [IGNORED] * len(prompt), True)
    exact = prompter.example(QUESTION, ANSWER, train_on="answer", max_length=len(whole))
    assert (exact.input_ids, exact.cut) == (whole, False)


@settings(max_examples=200, deadline=None)
@given(
    question=st.text(min_size=1, max_size=60),
    answer=st.text(min_size=1, max_size=60),
    length=st.integers(1, 300),
    train_on=st.sampled_from(["answer", "all"]),
)
def test_a_training_row_begins_with_the_prompt_of_inference(
    prompter: Prompter, question: str, answer: str, length: int, train_on: Literal["answer", "all"]
) -> None:
    prompt = prompter.ids(question)
    example = prompter.example(question, answer, train_on=train_on, max_length=length)
    assert example.input_ids[: len(prompt)] == prompt
    assert len(example.labels) == len(example.input_ids) <= max(length, len(prompt))
    assert all(label in (IGNORED, token) for label, token in zip(example.labels, example.input_ids, strict=True))
    assert example.input_ids.count(BOS_ID) == 1
    assert example.cut != (example.input_ids[-1] == EOS_ID == example.labels[-1])
    assert prompter.ids(question) == prompt


# ---------------------------------------------------------------------------------------------------------- tokenizer


def test_the_tokenizer_pads_on_the_left(folder: Path) -> None:
    assert load_tokenizer(folder).padding_side == "left"


def test_the_hash_is_of_what_decides_the_ids(folder: Path, tmp_path: Path) -> None:
    tokenizer: Any = load_tokenizer(folder)
    first = tokenizer_sha256(tokenizer)
    tokenizer.pad_token = EOS
    tokenizer(["a", "a b c d e"], padding=True, truncation=True, max_length=3)
    tokenizer.padding_side = "right"
    assert (
        tokenizer_sha256(tokenizer)
        == first
        == tokenizer_sha256(load_tokenizer(shutil.copytree(folder, tmp_path / "moved")))
    )
    (tmp_path / "other").mkdir()
    assert tokenizer_sha256(save_tokenizer(tmp_path / "other", size=400)) != first
    other = shutil.copytree(folder, tmp_path / "end")
    edit_json(other / "tokenizer_config.json", eos_token=BOS)
    assert tokenizer_sha256(load_tokenizer(other)) != first


@pytest.mark.parametrize(
    ("generation", "expected"),
    [(None, (EOS_ID,)), (EOS_ID, (EOS_ID,)), (7, (7, EOS_ID)), ([9, 7, EOS_ID, 7], (7, 9, EOS_ID)), ([], (EOS_ID,))],
)
def test_the_end_tokens_are_the_union(prompter: Prompter, generation: Any, expected: tuple[int, ...]) -> None:
    assert stop_ids(prompter.tokenizer, generation) == expected


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        load_tokenizer(tmp_path)
    assert str(error.value) == f"{tmp_path}: has no tokenizer; put tokenizer.json beside the weights"


def test_a_damaged_tokenizer_is_one_line(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "t")
    (broken / "tokenizer.json").write_text('{"version": "1.0", "model":')
    with pytest.raises(
        ModelError, match=r"t: its tokenizer cannot be loaded .*; check the folder or the model's name"
    ) as error:
        load_tokenizer(broken)
    assert "\n" not in str(error.value)
