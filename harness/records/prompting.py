"""What train and predict write about their prompts."""

from __future__ import annotations

from typing import Literal

from harness.records.base import Record


class PromptForm(Record):
    """How questions were put."""

    format: Literal["text", "chat"]
    template: str | None
    """Of a text prompt, with `{question}`."""
    chat_template_sha256: str | None
    """Of the tokenizer's chat template, where it was used."""
    system: str | None
    enable_thinking: bool | None
    few_shot: int
    """Examples in front of each question."""
    opening: str
    """Special tokens that the tokenizer puts in front, as text."""
    first: str
    """The first prompt, rendered."""
    first_tokens: int


class FirstPrompt(Record):
    """`split/prompt.json`: the first prompt, as it was shown when the questions were split."""

    key: str
    """Hash of the prompt's settings, the model and the split."""
    prompt: PromptForm
