"""Conversations rendered by a tokenizer's own chat template.

The template is rendered with placeholders for the texts, once for each form of conversation; the texts are inserted afterwards. So no question can
change what the template writes, and it is known which special tokens the template wrote.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from harness.config import Prompt
from harness.errors import ConfigError

MARK = "qaHarnessMark{}x"
MARKS = re.compile(r"qaHarnessMark(\d+)x")
DATE = datetime(2024, 7, 26)
"""What templates that write today's date get (the default in Llama 3.1's own): prompts that change every day could not be compared."""
AWKWARD = "Is <a> & 'b' \"c\" {{ d }} {% e %} \\n\n\nthe  same?"
"""A question that a template must leave unchanged."""
TEXT_INSTEAD = "correct the template, or set prompt.format=text"


class ChatTemplate:
    """A tokenizer's chat template with the config's system line and thinking switch.

    Attributes:
        source: the template itself.
        context: what it writes between a question and the place of the answer.
        lead: what else it writes in front of an answer.
        turn_end: what it writes after an answer.

    Raises:
        ConfigError: the template fails, or drops or changes the question, the answer or the system line.
    """

    def __init__(self, tokenizer: Any, settings: Prompt):
        self._tokenizer, self._settings = tokenizer, settings
        self.source = tokenizer.chat_template
        self._skeletons: dict[tuple[int, bool], list[str]] = {}
        # Most templates strip a message; which is seen by the spaces around a mark.
        self._strips = f" {MARK.format(0)} " not in self._render([_user(f" {MARK.format(0)} ")], generate=True)
        self._check_question()
        self.context = self._skeleton(0, bool(settings.system))[-1]
        self.lead, self.turn_end = self._answer_turn()

    def parts(self, question: str, shots: Sequence[tuple[str, str]], system: str | None) -> list[tuple[str, bool]]:
        """The prompt's pieces, and whether special tokens in each are the template's; `system` replaces the config's line."""
        system = system or self._settings.system
        texts = [*([system] if system else []), *(text for shot in shots for text in shot), question]
        skeleton = self._skeleton(len(shots), bool(system))
        parts = [(skeleton[0], True)]
        for mark, piece in zip(skeleton[1::2], skeleton[2::2], strict=True):
            text = texts[int(mark)]
            parts += [(text.strip() if self._strips else text, False), (piece, True)]
        return parts

    def _skeleton(self, shots: int, system: bool) -> list[str]:
        """What the template writes, taken apart at the texts: piece, number of the text, piece, ..."""
        if (shots, system) not in self._skeletons:
            marks = [MARK.format(i) for i in range(system + 2 * shots + 1)]
            turns = [_user(m) if i % 2 == 0 else _assistant(m) for i, m in enumerate(marks[system:])]
            messages = [{"role": "system", "content": marks[0]}] * system + turns
            pieces = MARKS.split(self._render(messages, generate=True))
            for i in range(len(marks)):
                if str(i) not in pieces[1::2]:
                    what = "the question" if i == len(marks) - 1 else "examples"
                    if system and i == 0:
                        what = "prompt.system" if self._settings.system else "a question's own system line"
                    hint = self._without_system() if system and i == 0 else TEXT_INSTEAD
                    raise self._error(f"the chat template drops {what}", hint)
            self._skeletons[shots, system] = pieces
        return self._skeletons[shots, system]

    def _check_question(self) -> None:
        system = self._settings.system
        messages = [{"role": "system", "content": system}] if system else []
        rendered = self._render([*messages, _user(AWKWARD)], generate=True)
        if rendered != "".join(text for text, _ in self.parts(AWKWARD, [], None)):
            raise self._error("the chat template changes the text of a question", TEXT_INSTEAD)

    def _answer_turn(self) -> tuple[str, str]:
        """(text in front of an answer beyond the prompt, text behind it)."""
        asked, answer = MARK.format(0), MARK.format(1)
        prompt = self._render([_user(asked)], generate=True)
        whole = self._render([_user(asked), _assistant(answer)], generate=False)
        at = whole.find(answer)
        if at < 0:
            raise self._error("the chat template drops the answer", TEXT_INSTEAD)
        # A prompt that opens the answer in another way (an empty thinking block) is followed by the answer directly.
        lead = whole[len(prompt) : at] if whole[:at].startswith(prompt) else ""
        return lead, whole[at + len(answer) :]

    def _render(self, messages: list[dict[str, str]], *, generate: bool) -> str:
        thinking = self._settings.enable_thinking
        switches: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        try:
            return self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generate, strftime_now=DATE.strftime, **switches
            )
        except Exception as error:  # whatever a template raises: its own messages, Jinja's, Python's
            hint = self._without_system() if messages[0]["role"] == "system" else TEXT_INSTEAD
            raise self._error(f"the chat template fails ({type(error).__name__}: {error})", hint) from error

    def _without_system(self) -> str:
        if self._settings.system:
            return "leave prompt.system out"
        return "leave the system lines out of the QA file (column or turns), or set prompt.format=text"

    def _error(self, problem: str, hint: str) -> ConfigError:
        return ConfigError(problem, hint, file=self._tokenizer.name_or_path)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
