"""What the columns of a row mean: found by their names in the first row, or named by the user, and the same for the whole file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from harness.config import Columns
from harness.errors import DataError
from harness.questions.readers import chat, squad
from harness.questions.readers.limits import shown
from harness.questions.rows import FIELDS

QUESTION = ("question", "query", "q", "prompt", "instruction", "input", "problem", "question_text", "user", "human")
ANSWER = (
    *("answer", "answers", "a", "response", "completion", "output", "reply", "solution", "answer_text", "target"),
    *("ground_truth", "expected_answer", "expected_output", "gold", "assistant"),
)
CONTEXT = ("context", "passage", "paragraph", "background", "document", "contexts")
SYSTEM = ("system", "system_prompt")
ALPACA = "alpaca"
KEPT = tuple(name for name in FIELDS if name not in ("question", "answer", "context", "system", "answerable"))
PAIRS = (("question", ("answer", "answers")), ("prompt", ("completion", "response")), ("query", ("response", "answer")))
"""Usual pairs: they decide although there are further columns that could be meant."""


@dataclass(frozen=True)
class Shape:
    """Which column of a row is what, by case-folded names."""

    name: str
    """As users call it: alpaca, ShareGPT, SQuAD, ..."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Field (`question`, `input`, `answer`, `context`, `system`, `turns`) -> the column as it is written in the first row."""

    @property
    def summary(self) -> str:
        """The mapping in words."""
        if turns := self.columns.get("turns"):
            return f"{self.name}: the user's turn in `{turns}` is the question, the assistant's the answer"
        question = f"`{self.columns['question']}`"
        if "input" in self.columns:
            question += f" + `{self.columns['input']}`"
        further = [f"`{self.columns[key]}` the {key}" for key in ("context", "system") if key in self.columns]
        return f"{self.name}: {question} is the question, " + ", ".join(
            [f"`{self.columns['answer']}` the answer", *further]
        )

    def convert(self, row: dict[str, Any], unanswerable: str, *, last_turn: bool) -> dict[str, Any]:
        """The row's values by field, for `rows.Checker`; raises chat.LeftOut, or KeyError with the column that it lacks."""
        found = fold(row)
        values: dict[str, Any] = {}
        used = {name.casefold() for name in self.columns.values()}
        for key, column in self.columns.items():
            folded = column.casefold()
            if folded in found:
                values[key] = found[folded]
            elif key in ("question", "answer", "turns"):
                raise KeyError(column)
        if self.name == ALPACA and "input" not in self.columns and "input" in found:
            values["input"] = found["input"]
            used.add("input")
        if "turns" in values:
            turns = chat.convert(values.pop("turns"), last=last_turn)
            values = {key: value for key, value in values.items() if value is not None} | turns
        else:
            self._join_input(values)
            answer = values["answer"]
            if squad.is_unanswerable(found, answer):
                values |= {"answer": unanswerable, "answerable": False}
            else:
                values["answer"] = squad.accepted(answer)
        for name in KEPT:
            if name in found and name not in used:
                values.setdefault(name, found[name])
        extra = {key: value for key, value in row.items() if key.strip().casefold() not in used | set(KEPT)}
        return {key: value for key, value in extra.items() if key not in values} | values

    @staticmethod
    def _join_input(values: dict[str, Any]) -> None:
        further = values.pop("input", None)
        if isinstance(values["question"], str) and isinstance(further, str) and further.strip():
            values["question"] = f"{values['question'].strip()}\n\n{further}"


def fold(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row by case-folded, stripped names; of two names that fold to one, the first."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        found.setdefault(key.strip().casefold(), value)
    return found


def looks_like_a_row(value: Mapping[str, Any]) -> bool:
    """Whether an object alone is a row: it has a question and an answer, or a conversation."""
    found = fold(value)
    if any(chat.is_conversation(found.get(key)) for key in chat.KEYS):
        return True
    texts = {key for key, inner in found.items() if isinstance(inner, str | int | float)}
    return bool(texts & set(QUESTION)) and bool(found.keys() & set(ANSWER))


def detect(row: Mapping[str, Any], columns: Columns, path: Path | str, number: int) -> Shape:
    """The shape of a file by its first row; DataError names the columns that were found, and the fix."""
    found = fold(row)
    written: dict[str, str] = {}
    for key in row:
        written.setdefault(key.strip().casefold(), key.strip())
    chosen: dict[str, str] = {}
    for key in ("question", "answer", "context"):
        if (name := getattr(columns, key)) is not None:
            if name.strip().casefold() not in found:
                _fail(f"has no column {name!r}: found {shown(written.values())}", f"correct data.columns.{key}", path)
            chosen[key] = written[name.strip().casefold()]
    if not {"question", "answer"} & chosen.keys():
        for key in chat.KEYS:
            if chat.is_conversation(found.get(key)):
                system = {"system": written["system"]} if isinstance(found.get("system"), str) else {}
                name = "ShareGPT" if "from" in found[key][0] else "messages"
                return Shape(name, {"turns": written[key], **system})
    question, answer = _pair(found, written, chosen, path, number)
    mapping = {"question": question, "answer": answer}
    if (
        question.casefold() == "instruction"
        and "question" not in chosen
        and "input" in found
        and answer != written["input"]
    ):
        mapping["input"] = written["input"]
    for key, names in (("context", CONTEXT), ("system", SYSTEM)):
        taken = {name.casefold() for name in mapping.values()}
        if key in chosen:
            mapping[key] = chosen[key]
        elif name := next((name for name in names if name in found and name not in taken), None):
            mapping[key] = written[name]
    return Shape(_name(mapping, found), mapping)


def _pair(
    found: Mapping[str, Any], written: Mapping[str, str], chosen: Mapping[str, str], path: Path | str, number: int
) -> tuple[str, str]:
    """The question's column and the answer's."""
    taken = {name.casefold() for name in chosen.values()}
    questions = [name for name in QUESTION if name in found and name not in taken]
    answers = [name for name in ANSWER if name in found and name not in taken]
    if "instruction" in questions and "question" not in questions:
        questions = [name for name in questions if name not in ("input", "prompt")]
    if not chosen.get("question") and not chosen.get("answer"):
        for question, usual in PAIRS:
            both = [name for name in usual if name in answers]
            if question != "question" and "question" in questions:
                continue
            if question in questions and both:
                return written[question], written[both[0]]
    picked = {}
    for key, candidates in (("question", questions), ("answer", answers)):
        if key in chosen:
            picked[key] = chosen[key]
        elif key in candidates:
            picked[key] = written[key]
        elif len(candidates) == 1:
            picked[key] = written[candidates[0]]
        elif not candidates:
            _fail(
                f"has no column {key!r} or a usual name for it: found {shown(written.values()) or 'none'}",
                f"name it with --{key}-column (data.columns.{key})",
                path,
                number,
            )
        else:
            names = shown(written[name] for name in candidates)
            _fail(
                f"has several columns that could be the {key}: {names}",
                f"choose one with --{key}-column (data.columns.{key})",
                path,
            )
    return picked["question"], picked["answer"]


def _name(mapping: Mapping[str, str], found: Mapping[str, Any]) -> str:
    question, answer = mapping["question"].casefold(), mapping["answer"].casefold()
    if question == "instruction":
        return ALPACA
    if question == "prompt" and answer == "completion":
        return "prompt and completion"
    value = found.get(answer)
    objects = isinstance(value, dict) or (isinstance(value, list) and (not value or isinstance(value[0], dict)))
    if "context" in mapping and objects:
        return "SQuAD"
    return "question and answer"


def _fail(problem: str, hint: str, path: Path | str, number: int | None = None) -> NoReturn:
    raise DataError(problem, hint, file=path, row=number)


def lacks(row: Mapping[str, Any], column: str, shape: Shape, path: Path | str, number: int) -> NoReturn:
    """Raises DataError for a row that lacks a column of the file's shape: of another shape, or without the column."""
    names = shown(row) if row else "none"
    try:
        other = detect(row, Columns(), path, number)
    except DataError:
        other = None
    if other is not None and other.columns != shape.columns:
        _fail(
            f"is of another shape ({other.name}: {names}) than the rows before it ({shape.name})",
            "put rows of one shape into a file of their own",
            path,
            number,
        )
    _fail(f"has no {column!r}: found {names}", f"add {column!r}, or remove the row", path, number)
