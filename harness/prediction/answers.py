"""Token ids -> the text that is scored. The reasoning before an answer is stored separately."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<think>", "</think>"
"""Tags around the reasoning of models that mark it (DeepSeek-R1, Qwen3, SmolLM3, Phi-4-reasoning and others)."""
LAST_OF_PROMPT = 16
"""Tokens at the end of a prompt to search for an opening tag written by the template."""


@dataclass(frozen=True)
class Answer:
    """An answer, separated from the reasoning before it."""

    text: str
    """The scored text; empty if the reasoning was never closed."""
    thinking: str = ""
    thinking_tokens: int = 0
    unclosed: bool = False
    """The reasoning did not end: the question is unanswered."""


def read(tokenizer: Any, prompt_ids: Sequence[int], answer_ids: Sequence[int], text: str = "") -> Answer:
    """The answer in the generated ids, or in the text of a backend that gives no ids."""

    if tokenizer is None:  # of a server, which is given text: words stand for tokens
        return split(text, opened=False, count=lambda part: len(part.split()))

    def count(part: str) -> int:
        return len(tokenizer(part, add_special_tokens=False)["input_ids"])

    opened = _opens(tokenizer, prompt_ids)
    if not answer_ids:
        return split(text, opened=opened, count=count)
    ids = list(answer_ids)
    close = tokenizer.get_added_vocab().get(CLOSE)
    if close in ids:
        at = ids.index(close)
        return Answer(_decode(tokenizer, ids[at + 1 :]), _without_open(_decode(tokenizer, ids[:at])), at)
    # A special token, as the opening tag is in some vocabularies, is left out of the text.
    begins = tokenizer.decode(ids[:LAST_OF_PROMPT], skip_special_tokens=False).lstrip()
    return split(_decode(tokenizer, ids), opened=opened or begins.startswith(OPEN), count=count)


def split(text: str, *, opened: bool, count: Callable[[str], int]) -> Answer:
    """The answer behind the first closing tag; without one, all of a text that was opened is reasoning.

    Args:
        opened: the reasoning began before this text.
        count: the number of tokens in a text.
    """
    before, closed, after = text.partition(CLOSE)
    if closed:
        thinking = _without_open(before)
        return Answer(after.strip(), thinking, count(thinking))
    if opened or text.lstrip().startswith(OPEN):
        thinking = _without_open(text)
        return Answer("", thinking, count(thinking), unclosed=True)
    return Answer(text.strip())


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def _without_open(text: str) -> str:
    return text.strip().removeprefix(OPEN).strip()


def _opens(tokenizer: Any, prompt_ids: Sequence[int]) -> bool:
    """Whether a prompt ends within the reasoning, as some templates make it."""
    if not len(prompt_ids):
        return False
    return tokenizer.decode(list(prompt_ids[-LAST_OF_PROMPT:]), skip_special_tokens=False).rstrip().endswith(OPEN)
