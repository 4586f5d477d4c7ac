"""Question -> token ids, for training and for every backend: the only place where a prompt is rendered or tokenised.

Exactly one BOS opens a sequence (where the tokenizer has one) and EOS closes every training answer and is labelled, so that stopping is
learned. Text of a question that looks like a special token stays text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.errors import ModelError
from harness.storage import sha256_json

IGNORED = -100
"""The label of a token without loss."""


@dataclass(frozen=True)
class Example:
    """One training row."""

    input_ids: list[int]
    labels: list[int]
    """Aligned with `input_ids`; IGNORED where there is no loss."""
    cut: bool
    """The answer was cut at the maximum length."""
    name: str = ""
    """The question's id, for messages."""


class Prompter:
    """Renders and tokenises questions for one tokenizer and template.

    Args:
        tokenizer: of the base model.
        template: with `{question}` once; the answer follows the rendered text directly.
    """

    def __init__(self, tokenizer: Any, template: str):
        self.tokenizer = tokenizer
        self.template = template
        self.head, self.tail = template.split("{question}")
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no end token",
                "use a base model whose tokenizer defines eos_token",
                file=tokenizer.name_or_path,
            )
        self.bos: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.eos: int = tokenizer.eos_token_id

    def text(self, question: str) -> str:
        """The rendered prompt, as text."""
        return self.head + question + self.tail

    def ids(self, question: str) -> list[int]:
        """The prompt's token ids: BOS, then the rendered template."""
        return self.bos + self._encode(self.text(question))

    def example(
        self, question: str, answer: str, *, train_on: Literal["answer", "all"], max_length: int, name: str = ""
    ) -> Example:
        """A training row: prompt ids, answer ids, EOS; too long a row loses the end of its answer, never its question."""
        prompt = self.ids(question)
        target = [*self._encode(answer), self.eos]
        room = max(max_length - len(prompt), 0)
        cut = len(target) > room
        target = target[:room]
        labels = ([IGNORED] * len(prompt) if train_on == "answer" else list(prompt)) + target
        return Example(prompt + target, labels, cut, name)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def prompt_hash(prompt: Sequence[Any]) -> str:
    """sha256 of a prompt's token ids (of its text or messages, where a model takes those): equal hashes, equal questions to two backends."""
    return sha256_json(prompt if isinstance(prompt, str) else list(prompt))


def load_tokenizer(path: Path | str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a folder or hub model, padding on the left; ModelError if there is none."""
    from transformers import AutoTokenizer

    if Path(path).is_dir() and not any(
        (Path(path) / name).exists() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    ):
        raise ModelError("has no tokenizer", "put tokenizer.json beside the weights", file=path)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises a dozen kinds here, by version
        raise ModelError(
            f"its tokenizer cannot be loaded ({type(error).__name__}: {error})",
            "check the folder or the model's name",
            file=path,
        ) from error
    tokenizer.padding_side = "left"
    return tokenizer


def stop_ids(tokenizer: Any, generation_eos: int | Iterable[int] | None) -> tuple[int, ...]:
    """The end tokens: the union of the tokenizer's and the generation config's, sorted."""
    others = (
        [] if generation_eos is None else [generation_eos] if isinstance(generation_eos, int) else list(generation_eos)
    )
    return tuple(sorted({tokenizer.eos_token_id, *others}))


def tokenizer_sha256(tokenizer: Any) -> str:
    """Hash of what decides token ids: the vocabulary with its merges and rules, and the special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # Truncation and padding are settings of the moment: a batch that was padded leaves them behind.
    model = (
        {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("truncation", "padding")}
        if backend is not None
        else tokenizer.get_vocab()
    )
    return sha256_json([model, tokenizer.bos_token_id, tokenizer.eos_token_id])
