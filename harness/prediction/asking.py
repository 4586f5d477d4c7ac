"""Prompts of a model: which tokenizer and template make them, and which tokens end its answers.

The run's own models share one tokenizer and one prompt, so that their prompts are equal token by token (contract `same ids`). A model from elsewhere
uses its own; where these are the same tokenizer and prompt, the contract is `same ids` too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from harness.prompt import Prompter, TextTemplate, load_tokenizer, stop_ids, tokenizer_sha256
from harness.questions.asking import system_of
from harness.records import PromptForm, Question

OWN = "own"
"""Value of `predict.extra.NAME.tokenizer`: send text; the server or file has its own tokenizer."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


Shots = list[list[tuple[str, str]]]
"""For each question its few-shot examples: (question, answer)."""


@dataclass(frozen=True)
class Asking:
    """The prompts of all questions, and everything about them that affects the answers."""

    tokenizer: Path | None
    """None: the model takes text or messages."""
    tokenizer_sha256: str
    prompts: list[Prompt]
    generation: Generation
    by: Literal["run", "own"]
    loaded: Any = None
    """The tokenizer."""
    form: PromptForm | None = None


class Asker:
    """Makes the prompts of a run's variants; each tokenizer is loaded and used once.

    Args:
        folder: of the run's model; None: no variant needs it.
        few_shots: the examples for each question that a prompt's settings ask for.
    """

    def __init__(
        self,
        config: Config,
        questions: Sequence[Question],
        folder: Path | None,
        few_shots: Callable[[PromptSettings], Shots],
    ):
        self.config, self.questions, self.folder, self.few_shots = config, questions, folder, few_shots
        self._made: dict[tuple[Path, str], Asking] = {}

    @cached_property
    def by_run(self) -> Asking:
        """How the run's own models are asked; ModelError without a model."""
        if self.folder is None:
            raise ModelError("the run has no model whose tokenizer could ask", "name one as model.path")
        return replace(self._by_tokenizer(self.folder, self.config.prompt, self.config.model), by="run")

    def with_examples(self, k: int) -> Asking:
        """The run's prompts, each with `k` training questions and their answers before the question."""
        if self.folder is None:
            raise ModelError("the run has no model whose tokenizer could ask", "name one as model.path")
        prompt = self.config.prompt.model_copy(update={"few_shot": k})
        return self._by_tokenizer(self.folder, prompt, self.config.model)

    def of_model(self, extra: ExtraVariant, folder: Path | None) -> Asking:
        """Prompts by the tokenizer named for a model, else by that of a model folder, else by the run's."""
        prompt = extra.prompt or self.config.prompt
        if extra.tokenizer and extra.tokenizer != OWN:
            named = Path(extra.tokenizer)
            folder = named if named.is_dir() else base_model.resolve_tokenizer(extra.tokenizer, extra.revision)
        if folder is None or not any((folder / name).exists() for name in TOKENIZER_FILES):
            folder = self.folder
        run = self.by_run
        assert folder is not None
        asking = self._by_tokenizer(folder, prompt, Model(path=str(folder)))
        same = asking.tokenizer_sha256 == run.tokenizer_sha256 and asking.prompts == run.prompts
        return run if same else asking

    def by_text(self, extra: ExtraVariant) -> Asking:
        """How a server or a file with its own tokenizer is asked."""
        prompt = extra.prompt or self.config.prompt
        if extra.api == "chat":
            own = extra.prompt is not None and "template" in extra.prompt.model_fields_set
            pairs = zip(self.questions, self.few_shots(prompt), strict=True)
            return self._untokenised([_messages(q, shots, prompt, own=own) for q, shots in pairs])
        return self._untokenised(list(self._texts(prompt)))

    def by_object(self, extra: ExtraVariant) -> Asking:
        """Prompts for recorded answers and Python functions: id, question and rendered prompt."""
        texts = self._texts(extra.prompt or self.config.prompt)
        prompts: list[Prompt] = [
            [{"id": q.id, "question": q.question, "text": text}] for q, text in zip(self.questions, texts, strict=True)
        ]
        return self._untokenised(prompts)

    def _texts(self, prompt: PromptSettings) -> Iterator[str]:
        template = TextTemplate(prompt.template)
        for question, shots in zip(self.questions, self.few_shots(prompt), strict=True):
            yield "".join(
                text for text, _ in template.parts(question.question, shots, system_of(question) or prompt.system)
            )

    def _untokenised(self, prompts: Sequence[Prompt]) -> Asking:
        generation = Generation(self.config.predict.max_new_tokens, (), 0)
        return Asking(None, OWN, list(prompts), generation, "own")

    def _by_tokenizer(self, folder: Path, prompt: PromptSettings, model: Model) -> Asking:
        key = (folder, prompt.model_dump_json())
        if key not in self._made:
            tokenizer = load_tokenizer(folder, revision=model.revision, trust_remote_code=model.trust_remote_code)
            prompter = Prompter(tokenizer, prompt)
            ends = stop_ids(tokenizer, generation_eos(folder), prompter.eos)
            pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
            shots = self.few_shots(prompt)
            self._made[key] = Asking(
                tokenizer=folder,
                tokenizer_sha256=tokenizer_sha256(tokenizer),
                prompts=[
                    prompter.ids(q.question, chosen, system_of(q))
                    for q, chosen in zip(self.questions, shots, strict=True)
                ],
                generation=Generation(self.config.predict.max_new_tokens, ends, pad),
                by="own",
                loaded=tokenizer,
                form=first_form(prompter, self.questions, shots),
            )
        return self._made[key]


def first_form(prompter: Prompter, questions: Sequence[Question], shots: Shots) -> PromptForm | None:
    """The manifest's description of the prompts, with the first one rendered; None without questions."""
    return prompter.form(questions[0].question, shots[0], system_of(questions[0])) if questions else None


def _messages(
    question: Question, shots: list[tuple[str, str]], prompt: PromptSettings, *, own: bool
) -> list[dict[str, str]]:
    """A chat of one question. The message includes a text template only if it was set for this model (`own`), since the server has its own."""

    def shown(text: str) -> str:
        return "".join(part for part, _ in TextTemplate(prompt.template).parts(text, (), None)).strip() if own else text

    system = system_of(question) or prompt.system
    found = [{"role": "system", "content": system}] if system else []
    for asked, answer in shots:
        found += [{"role": "user", "content": shown(asked)}, {"role": "assistant", "content": answer}]
    return [*found, {"role": "user", "content": shown(question.question)}]


def generation_eos(folder: Path) -> int | list[int] | None:
    """The end tokens of a model's generation_config.json, if it names any; ModelError if they are not token ids."""
    file = folder / "generation_config.json"
    settings: Any = storage.read_json(file) if file.exists() else {}
    found = settings.get("eos_token_id") if isinstance(settings, dict) else settings
    if not all(type(i) is int and i >= 0 for i in (found if isinstance(found, list) else [found or 0])):
        raise ModelError(f"its eos_token_id is {str(found)[:40]!r}, not token ids", "fetch the model again", file=file)
    return found
