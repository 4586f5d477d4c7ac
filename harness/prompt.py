"""Question -> token ids, for training and for every backend: the only place where a prompt is rendered or tokenised.

A prompt is text (`prompt.template`) or a conversation in the tokenizer's own chat template (`harness.chat_template`). It has exactly the
special tokens that the template writes; text also gets those that the tokenizer itself puts in front (BOS, for most). An end token closes
every training answer and is labelled, so that stopping is learned. A question that contains the text of a special token is encoded as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.chat_template import ChatTemplate
from harness.config import Prompt
from harness.errors import ConfigError, ModelError
from harness.records import PromptForm
from harness.storage import sha256_json, sha256_tree

IGNORED = -100
"""The label of a token without loss (PyTorch's `ignore_index`)."""
BETWEEN_EXAMPLES = "\n\n"
"""What separates few-shot examples in a text prompt."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
CHAT_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")

Shot = tuple[str, str]
"""A few-shot example: question and answer."""
Part = tuple[str, bool]
"""A piece of a prompt, and whether special tokens in it are meant as such: those of templates are, those of questions are not."""


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


class TextTemplate:
    """Prompts of plain text: the answer follows the rendered template directly."""

    lead = context = ""

    def __init__(self, template: str):
        self.opening = ""
        """A special token that the template itself begins with: it comes before a system line too."""
        self.head, self.tail = template.split("{question}")

    def parts(self, question: str, shots: Sequence[Shot], system: str | None) -> list[Part]:
        """The prompt's pieces; few-shot examples are rendered like the question, each followed by its answer."""
        parts = [(self.opening, True)] if self.opening else []
        parts += [(f"{system}\n\n", False)] if system else []
        for asked, answer in shots:
            parts += [(self.head, True), (asked, False), (self.tail, True), (answer, False), (BETWEEN_EXAMPLES, True)]
        return [*parts, (self.head, True), (question, False), (self.tail, True)]


class Prompter:
    """Renders and tokenises questions for one tokenizer.

    Args:
        tokenizer: of the base model.
        prompt: the config's section, or a text template alone.

    Attributes:
        format: `text` or `chat`.
        bos: ids in front of a text prompt: what the tokenizer itself adds, unless the template writes it.
        eos: the end token of a training answer: the end of the template's assistant turn, or the tokenizer's end token.

    Raises:
        ModelError: the tokenizer has no end token; ConfigError: the settings do not fit the tokenizer, or its chat template fails.
    """

    def __init__(self, tokenizer: Any, prompt: Prompt | str):
        settings = Prompt(format="text", template=prompt) if isinstance(prompt, str) else prompt
        self.tokenizer, self.settings = tokenizer, settings
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no end token",
                "use a base model whose tokenizer defines eos_token",
                file=tokenizer.name_or_path,
            )
        self.format: Literal["text", "chat"] = resolve_format(
            settings, bool(tokenizer.chat_template), tokenizer.name_or_path
        )
        self._special = _special_tokens(tokenizer)
        self.bos: list[int] = []
        self.eos: int = tokenizer.eos_token_id
        self.template: TextTemplate | ChatTemplate
        if self.format == "chat":
            self.template = ChatTemplate(tokenizer, settings)
            if found := self._special.search(self.template.turn_end):
                self.eos = tokenizer.convert_tokens_to_ids(found[0])
        else:
            self.template = TextTemplate(settings.template)
            first = self._special.match(self.template.head)
            added = _added_in_front(tokenizer)
            if first and added and tokenizer.convert_tokens_to_ids(first[0]) == added[0]:
                self.template.opening, self.template.head = first[0], self.template.head[first.end() :]
            else:
                self.bos = added

    def text(self, question: str, shots: Sequence[Shot] = (), system: str | None = None) -> str:
        """The rendered prompt, as text: of few-shot examples (question, answer), an own system line, and the question."""
        return "".join(text for text, _ in self.template.parts(question, shots, system))

    def ids(self, question: str, shots: Sequence[Shot] = (), system: str | None = None) -> list[int]:
        """The prompt's token ids."""
        return self.bos + self._encode_parts(self.template.parts(question, shots, system))

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer behind a prompt, with what the template writes in front of it, and the end token."""
        context, lead = (self.template.context, True), (self.template.lead, True)
        before = self._encode_parts([context])
        whole = self._encode_parts([context, lead, (answer, False)])
        # A tokenizer that merges across the boundary, or marks the beginning of a text, would change the prompt: then the answer is encoded
        # separately.
        alone = whole[: len(before)] != before
        ids = self._encode_parts([lead, (answer, False)]) if alone else whole[len(before) :]
        return [*ids, self.eos]

    def example(
        self,
        question: str,
        answer: str,
        *,
        train_on: Literal["answer", "all"],
        max_length: int,
        name: str = "",
        shots: Sequence[Shot] = (),
        system: str | None = None,
    ) -> Example:
        """A training row: prompt ids, answer ids, end token; too long a row loses the end of its answer, never its question."""
        prompt = self.ids(question, shots, system) if shots or system else self.ids(question)
        target = self.answer_ids(answer)
        room = max(max_length - len(prompt), 0)
        cut = len(target) > room
        target = target[:room]
        labels = ([IGNORED] * len(prompt) if train_on == "answer" else list(prompt)) + target
        return Example(prompt + target, labels, cut, name)

    def form(self, first: str, shots: Sequence[Shot] = (), system: str | None = None) -> PromptForm:
        """What a manifest says about the prompts, with the first one rendered."""
        settings = self.settings
        return PromptForm(
            format=self.format,
            template=settings.template if self.format == "text" else None,
            chat_template_sha256=sha256_json(self.template.source) if isinstance(self.template, ChatTemplate) else None,
            system=settings.system,
            enable_thinking=settings.enable_thinking,
            few_shot=settings.few_shot,
            opening=self.tokenizer.decode(self.bos) if self.bos else "",
            first=self.text(first, shots, system),
            first_tokens=len(self.ids(first, shots, system)),
        )

    def _encode_parts(self, parts: Sequence[Part]) -> list[int]:
        """Ids of the joined pieces; special tokens are recognised in trusted pieces only."""
        text = "".join(piece for piece, _ in parts)
        meant = sum(len(self._special.findall(piece)) for piece, trusted in parts if trusted)
        if not meant:
            return self._encode(text)
        if meant == len(self._special.findall(text)):
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids, plain = [], ""
        for piece, trusted in parts:
            last = 0
            for found in self._special.finditer(piece) if trusted else ():
                plain += piece[last : found.start()]
                ids += self._encode(plain) if plain else []
                ids.append(self.tokenizer.convert_tokens_to_ids(found[0]))
                plain, last = "", found.end()
            plain += piece[last:]
        return ids + (self._encode(plain) if plain else [])

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Matches the text of any special token; the longest first, since one may begin like another."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    names = sorted({*tokenizer.all_special_tokens, *added} - {""}, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")


def _added_in_front(tokenizer: Any) -> list[int]:
    """Ids that the tokenizer puts in front of a text by its own rules."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return list(whole[:at])


# ----------------------------------------------------------------------------------------------------- text or chat


def resolve_format(settings: Prompt, has_chat_template: bool, tokenizer: Path | str) -> Literal["text", "chat"]:
    """`text` or `chat` for a tokenizer; ConfigError if the settings ask for what it does not have."""
    if settings.format == "chat" and not has_chat_template:
        raise ConfigError(
            "prompt.format is chat, and the tokenizer has no chat template",
            "use an instruction-tuned model, or set prompt.format=text",
            file=tokenizer,
        )
    if settings.format == "chat" or (settings.format == "auto" and has_chat_template):
        return "chat"
    for key, value in (("system", settings.system), ("enable_thinking", settings.enable_thinking)):
        if value is not None:
            why = "prompt.format is text" if settings.format == "text" else "the tokenizer has no chat template"
            hint = "write it into prompt.template" if key == "system" else "leave it out"
            raise ConfigError(f"prompt.{key} is set, and {why}", hint, file=tokenizer)
    return "text"


def has_chat_template(folder: Path) -> bool:
    """Whether a model folder's tokenizer has a chat template, read from its files without loading it."""
    if any((folder / name).is_file() for name in CHAT_TEMPLATE_FILES):
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_text("utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def describe(settings: Prompt, folder: Path | None) -> str:
    """The prompt's form in a few words, for the first line that a verb prints.

    Args:
        folder: of the base model; None if it is not on this machine yet.
    """
    is_auto, has_template = settings.format == "auto", folder is not None and has_chat_template(folder)
    if folder is None and is_auto:
        words = ["chat template if the tokenizer has one, else text"]
    elif settings.format == "chat" or (is_auto and has_template):
        words = [f"the tokenizer's chat template{' (auto: it has one)' if is_auto else ''}"]
    else:
        why = " (auto: the tokenizer has no chat template)" if is_auto else ""
        words = [f"text {' '.join(settings.template.split())[:60]!r}{why}"]
    if settings.system:
        words.append(f"system line {settings.system[:60]!r}")
    if settings.enable_thinking is not None:
        words.append(f"thinking {'on' if settings.enable_thinking else 'off'}")
    if settings.few_shot:
        words.append(f"{settings.few_shot} example{'s' * (settings.few_shot > 1)} from the training questions")
    return ", ".join(words)


# -------------------------------------------------------------------------------------------------------- tokenizers


def prompt_hash(prompt: Sequence[Any]) -> str:
    """sha256 of a prompt's token ids (of its text or messages, where a model takes those): equal hashes, equal questions to two backends."""
    return sha256_json(prompt if isinstance(prompt, str) else list(prompt))


def load_tokenizer(path: Path | str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a folder or hub model, padding on the left; ModelError if there is none."""
    from transformers import AutoTokenizer

    if Path(path).is_dir() and not any((Path(path) / name).exists() for name in TOKENIZER_FILES[:3]):
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


def stop_ids(tokenizer: Any, generation_eos: int | Iterable[int] | None, *more: int) -> tuple[int, ...]:
    """The end tokens, sorted: the union of the tokenizer's, the generation config's and `more` (a chat template's turn end)."""
    others = [] if generation_eos is None else [generation_eos] if isinstance(generation_eos, int) else generation_eos
    return tuple(sorted({tokenizer.eos_token_id, *others, *more}))


def tokenizer_sha256(tokenizer: Any) -> str:
    """Hash of what decides token ids: the vocabulary with its merges and rules, and the special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # Truncation and padding are transient settings, which a padded batch leaves set.
    model = (
        {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("truncation", "padding")}
        if backend is not None
        else tokenizer.get_vocab()
    )
    return sha256_json([model, tokenizer.bos_token_id, tokenizer.eos_token_id])


def tokenizer_files_sha256(folder: Path) -> str:
    """Hash of a model folder's tokenizer files, chat template included."""
    return sha256_tree(folder, lambda path: path.name in (*TOKENIZER_FILES, *CHAT_TEMPLATE_FILES))
