"""Answers from objects of the calling program: a function from texts to texts, or a loaded transformers model with its tokenizer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from harness.backends import Completion, Execution, Facts, Generation, Prompt, Source
from harness.errors import ModelError


class PythonBackend:
    """`source.object`: a callable `list[str] -> list[str]`, or (model, tokenizer); the model is left as it was found.

    Raises:
        ModelError: an object of another kind.
    """

    def __init__(self, source: Source, generation: Generation, execution: Execution):
        found: Any = source.object
        self.answer_texts: Callable[[list[str]], Any]
        if isinstance(found, tuple) and len(found) == 2 and hasattr(found[0], "generate"):
            self.answer_texts = _Generator(*found, generation)
            version = _versions()
        elif callable(found):
            self.answer_texts = found
            version = f"python {getattr(found, '__qualname__', type(found).__name__)}"
        else:
            raise ModelError(
                f"{type(found).__name__} cannot answer",
                "give a function from a list of texts to one, or (model, tokenizer)",
            )
        self.facts = Facts(version, context=2**31, execution={"device": "the calling program's"})

    def answer(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """Answers one batch; exceptions of the function are not caught."""
        asked: list[Any] = list(prompts)
        texts = [prompt[0]["text"] for prompt in asked]
        began = time.monotonic()
        answers = list(self.answer_texts(texts))
        seconds = (time.monotonic() - began) / len(prompts)
        if len(answers) != len(texts):
            raise ModelError(
                f"the function gave {len(answers)} answers to {len(texts)} questions",
                "return one text for each, in order",
            )
        return [_completion(answer, seconds) for answer in answers]

    def close(self) -> None:
        """Nothing to free: the objects are the caller's."""


def _completion(answer: Any, seconds: float) -> Completion:
    if isinstance(answer, Completion):
        return Completion(
            answer.answer_ids, answer.finish_reason, seconds, text=answer.text, prompt_ids=answer.prompt_ids
        )
    if not isinstance(answer, str):
        raise ModelError(f"the function gave a {type(answer).__name__} as an answer", "return texts")
    return Completion([], "stop", seconds, text=answer.strip())


def _versions() -> str:
    import torch
    import transformers

    return f"transformers {transformers.__version__}, torch {torch.__version__}"


class _Generator:
    """Greedy answers of a loaded model."""

    def __init__(self, model: Any, tokenizer: Any, generation: Generation):
        from harness.prompt import stop_ids

        configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        self.model, self.tokenizer = model, tokenizer
        self.ends = stop_ids(tokenizer, configured)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.ends[0]
        self.longest = generation.max_new_tokens

    def __call__(self, texts: list[str]) -> list[Completion]:
        import torch
        from transformers import GenerationConfig

        bos = self.tokenizer.bos_token_id
        rows = [
            self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in texts
        ]
        rows = [row if bos is None else [bos, *row] for row in rows]
        width = max(map(len, rows))
        ids = torch.tensor([[self.pad] * (width - len(row)) + row for row in rows], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.model.device)
        # Set every field: a model's own generation_config may sample.
        settings = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.longest,
            eos_token_id=list(self.ends),
            pad_token_id=self.pad,
        )
        before, training = self.model.generation_config, self.model.training
        self.model.generation_config = settings
        self.model.eval()
        try:
            with torch.no_grad():
                made = self.model.generate(input_ids=ids, attention_mask=mask)[:, width:].tolist()
        finally:
            self.model.generation_config = before
            self.model.train(training)
        return [self._completion(row, ids) for row, ids in zip(rows, made, strict=True)]

    def _completion(self, prompt: list[int], ids: list[int]) -> Completion:
        end = next((i for i, token in enumerate(ids) if token in self.ends), None)
        ids = ids if end is None else ids[:end]
        text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return Completion(ids, "length" if end is None else "stop", 0.0, text=text, prompt_ids=prompt)
