"""How a model is asked: which tokenizer and prompt make its prompts, and what ends its answers.

The run's own models are asked by one tokenizer and one prompt, so that their prompts are equal token by token (contract `same ids`). A model from
elsewhere is asked by its own; where that comes to the same tokenizer and prompt, it is asked as the run asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness import storage
from harness.backends import Generation, Prompt
from harness.config import Config, ExtraVariant, Model
from harness.config import Prompt as PromptSettings
from harness.errors import ModelError
from harness.models import base_model
from harness.prompt import Prompter, load_tokenizer, stop_ids, tokenizer_sha256
from harness.records import Question

OWN = "own"
"""Value of `predict.extra.NAME.tokenizer`: the server's or the file's own, which is given text."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class Asking:
    """The prompts of all questions, and everything about them that decides the answers."""

    tokenizer: Path | None
    """None: the model takes text or messages."""
    tokenizer_sha256: str
    template: str
    prompts: list[Prompt]
    generation: Generation
    by: Literal["run", "own"]


class Asker:
    """Makes the prompts of a run's variants; each tokenizer is loaded and used once."""

    def __init__(self, config: Config, questions: Sequence[Question]):
        self.config, self.questions = config, questions
        self._made: dict[tuple[Path, str], Asking] = {}

    @cached_property
    def folder(self) -> Path:
        """The run's model; ModelError if it cannot be used."""
        return base_model.resolve(self.config.model)

    @cached_property
    def by_run(self) -> Asking:
        """How the run's own models are asked."""
        return replace(self._by_tokenizer(self.folder, self.config.prompt, self.config.model), by="run")

    def of_model(self, extra: ExtraVariant, folder: Path) -> Asking:
        """How a model folder from elsewhere is asked: by the tokenizer named for it, its own, or the run's where it has none."""
        prompt = extra.prompt or self.config.prompt
        if extra.tokenizer and extra.tokenizer != OWN:
            named = Path(extra.tokenizer)
            folder = named if named.is_dir() else base_model.resolve_tokenizer(extra.tokenizer, extra.revision)
        elif not any((folder / name).exists() for name in TOKENIZER_FILES):
            folder = self.folder
        asking = self._by_tokenizer(folder, prompt, Model(path=str(folder)))
        run = self.by_run
        same = (asking.tokenizer_sha256, asking.template) == (run.tokenizer_sha256, run.template)
        return run if same and asking.prompts == run.prompts else asking

    def by_text(self, extra: ExtraVariant) -> Asking:
        """How a server or a file with a tokenizer of its own is asked."""
        prompt = extra.prompt or self.config.prompt
        if extra.api == "chat":
            prompts: list[Prompt] = [_messages(q.question, extra.prompt) for q in self.questions]
        else:
            prompts = [_render(prompt, q.question) for q in self.questions]
        return self._untokenised(prompts, prompt)

    def by_object(self, extra: ExtraVariant) -> Asking:
        """How recorded answers are looked up and Python functions are called: by id and question, and the rendered prompt."""
        prompt = extra.prompt or self.config.prompt
        prompts: list[Prompt] = [
            [{"id": q.id, "question": q.question, "text": _render(prompt, q.question)}] for q in self.questions
        ]
        return self._untokenised(prompts, prompt)

    def _untokenised(self, prompts: list[Prompt], prompt: PromptSettings) -> Asking:
        generation = Generation(self.config.predict.max_new_tokens, (), 0)
        return Asking(None, OWN, prompt.template, prompts, generation, "own")

    def _by_tokenizer(self, folder: Path, prompt: PromptSettings, model: Model) -> Asking:
        key = (folder, prompt.model_dump_json())
        if key not in self._made:
            tokenizer = load_tokenizer(folder, revision=model.revision, trust_remote_code=model.trust_remote_code)
            prompter = Prompter(tokenizer, prompt.template)
            ends = stop_ids(tokenizer, generation_eos(folder))
            pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
            self._made[key] = Asking(
                tokenizer=folder,
                tokenizer_sha256=tokenizer_sha256(tokenizer),
                template=prompt.template,
                prompts=[prompter.ids(q.question) for q in self.questions],
                generation=Generation(self.config.predict.max_new_tokens, ends, pad),
                by="own",
            )
        return self._made[key]


def _render(prompt: PromptSettings, question: str) -> str:
    head, tail = prompt.template.split("{question}")
    return head + question + tail


def _messages(question: str, prompt: PromptSettings | None) -> list[dict[str, str]]:
    """A chat of one question; a prompt that was given for this model is put into the message, any other is left to the server's template."""
    return [{"role": "user", "content": _render(prompt, question).strip() if prompt else question}]


def generation_eos(folder: Path) -> int | list[int] | None:
    """The end tokens of a model's generation_config.json, if it names any; ModelError if they are not token ids."""
    file = folder / "generation_config.json"
    settings: Any = storage.read_json(file) if file.exists() else {}
    found = settings.get("eos_token_id") if isinstance(settings, dict) else settings
    if not all(type(i) is int and i >= 0 for i in (found if isinstance(found, list) else [found or 0])):
        raise ModelError(f"its eos_token_id is {str(found)[:40]!r}, not token ids", "fetch the model again", file=file)
    return found
