"""What is scored of what a model wrote: the answer after its reasoning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.prediction.answers import Answer, read
from harness.prompt import load_tokenizer
from tests.helpers.models import save_tokenizer


@pytest.fixture(scope="module", params=["text", "added", "special"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tags that are several tokens, one ordinary token, or one special token that decoding leaves out."""
    path: Path = tmp_path_factory.mktemp("tokenizer")
    made = save_tokenizer(path)
    if request.param == "added":
        made.add_tokens(["<think>", "</think>"])
    if request.param == "special":
        made.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    made.save_pretrained(path)
    return load_tokenizer(path)


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_reasoning_is_kept_apart(tokenizer: Any) -> None:
    found = read(tokenizer, ids(tokenizer, "Q?\n"), ids(tokenizer, "<think>\nLet me see.\n</think>\n\nParis."))
    assert (found.text, found.thinking, found.unclosed) == ("Paris.", "Let me see.", False)
    assert len(ids(tokenizer, "Let me see.")) <= found.thinking_tokens <= len(ids(tokenizer, "<think>\nLet me see.\n"))


def test_a_prompt_may_have_opened_it(tokenizer: Any) -> None:
    prompt = ids(tokenizer, "Q?\n<think>\n")
    assert read(tokenizer, prompt, ids(tokenizer, "Hm.</think>Paris.")).text == "Paris."
    assert read(tokenizer, prompt, ids(tokenizer, "Hm. Paris")) == Answer(
        "", "Hm. Paris", len(ids(tokenizer, "Hm. Paris")), True
    )


def test_an_unclosed_one_is_no_answer(tokenizer: Any) -> None:
    found = read(tokenizer, [], ids(tokenizer, "<think>\nParis, I think, or"))
    assert (found.text, found.unclosed) == ("", True)
    assert "Paris, I think, or" in found.thinking and found.thinking_tokens > 0


def test_an_empty_one_is_none(tokenizer: Any) -> None:
    found = read(tokenizer, [], ids(tokenizer, "<think>\n\n</think>\n\nParis."))
    assert (found.text, found.thinking, found.unclosed) == ("Paris.", "", False)
    closed = ids(tokenizer, "Q?\n<think>\n\n</think>\n\n")
    assert read(tokenizer, closed, ids(tokenizer, "Paris.")) == Answer("Paris.")


def test_text_of_a_backend_without_ids(tokenizer: Any) -> None:
    assert read(tokenizer, [], [], "<think>a</think> b").text == "b"
    assert read(tokenizer, [], [], "<think>a").unclosed
    assert read(tokenizer, [], [], " b ") == Answer("b")
    assert read(tokenizer, [], [], "") == Answer("")


def test_an_answer_without_reasoning_is_as_it_was(tokenizer: Any) -> None:
    for text in ("Paris.", " a < b > c ", "think", "I <think so"):
        assert read(tokenizer, ids(tokenizer, "Q?"), ids(tokenizer, text)) == Answer(text.strip())
