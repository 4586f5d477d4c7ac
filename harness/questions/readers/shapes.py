"""The meaning of a row's columns, from their names or from the user, for the whole file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from harness.config import Columns
from harness.errors import DataError
from harness.questions.readers import chat, squad
from harness.questions.readers.limits import shown
from harness.questions.readers.names import (
    ANSWER,
    ANSWER_OF_LAST_RESORT,
    CHOICES,
    CONTEXT,
    QUESTION,
    SYSTEM,
    are_sentences,
    fold,
    fold_name,
)
from harness.questions.rows import FIELDS

ALPACA = "alpaca"
INPUT = ("input",)
NO_INPUT = ("", "<noinput>", "<no input>")
OPTIONAL = (("input", INPUT), ("context", CONTEXT), ("system", SYSTEM))
"""Fields that a row may lack, and the names of their columns."""
KEPT = tuple(name for name in FIELDS if name not in ("question", "answer", "context", "system", "answerable"))
UNSAID = {"answer_type", "fact", "must_mention", "twin", "extra", "nearest_train", "row"}
"""Columns that are not called unused: scores and figures read them, or a split wrote them."""
PAIRS = (("question", ("answer", "answers")), ("prompt", ("completion", "response")), ("query", ("response", "answer")))
"""Usual pairs: they decide although there are further columns that could be meant."""
NO_HEADER = "the first line must name the columns, as in question,answer"


@dataclass(frozen=True)
class Shape:
    """The column mapping of a row, by folded names."""

    name: str
    """As users call it: alpaca, ShareGPT, SQuAD, ..."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Field (`question`, `input`, `answer`, `context`, `system`, `turns`) -> the column as the file writes it."""
    unused: tuple[str, ...] = ()
    """Further columns of the first row, which are kept and neither asked nor scored."""

    @property
    def summary(self) -> str:
        """The mapping in words."""
        unused = f"; not used: {shown(self.unused)}" if self.unused else ""
        said = {"context": "context", "system": "system line"}
        further = [f"`{self.columns[key]}` the {words}" for key, words in said.items() if key in self.columns]
        if turns := self.columns.get("turns"):
            parts = [f"{self.name}: the user's turn in `{turns}` is the question, the assistant's the answer", *further]
            return ", ".join(parts) + unused
        question = f"`{self.columns['question']}`"
        if "input" in self.columns:
            question += f" + `{self.columns['input']}`"
        parts = [f"{self.name}: {question} is the question", f"`{self.columns['answer']}` the answer", *further]
        return ", ".join(parts) + unused

    def extended(self, row: Mapping[str, Any]) -> Shape:
        """The shape with the optional columns that this row has and the first had not, such as a passage."""
        found: dict[str, str] | None = None
        for key, usual in OPTIONAL:
            if key in self.columns or (key == "input" and self.name != ALPACA):
                continue
            found = {fold_name(name): name.strip() for name in row} if found is None else found
            taken = {fold_name(name) for name in self.columns.values()}
            if name := next((name for name in usual if name in found and name not in taken), None):
                return replace(self, columns={**self.columns, key: found[name]}).extended(row)
        return self

    def convert(self, row: dict[str, Any], unanswerable: str, *, last_turn: bool) -> dict[str, Any]:
        """The row's values by field, for `rows.Checker`; raises chat.LeftOut, or KeyError with the column that it lacks."""
        found = fold(row)
        values: dict[str, Any] = {}
        used = set(map(fold_name, self.columns.values()))
        for key, column in self.columns.items():
            folded = fold_name(column)
            if folded in found:
                values[key] = found[folded]
            elif key in ("question", "answer", "turns"):
                raise KeyError(column)
        if "turns" in values:
            turns = chat.convert(values.pop("turns"), last=last_turn)
            values = {key: value for key, value in values.items() if value is not None} | turns
        elif chat.is_conversation(values["question"]) and chat.is_conversation(values["answer"]):
            values |= chat.convert([*values["question"], *values["answer"]], last=last_turn)
        else:
            self._join_input(values)
            answer = values["answer"]
            if squad.is_unanswerable(found, answer):
                values |= {"answer": unanswerable, "answerable": False}
            else:
                values["answer"] = squad.accepted(answer)
            if "context" in values:
                values["context"] = squad.passage(values["context"])
        for name in KEPT:
            if name in found and name not in used:
                values.setdefault(name, found[name])
        used.update(KEPT)
        extra = {key: value for key, value in row.items() if fold_name(key) not in used and key not in values}
        return extra | values

    @staticmethod
    def _join_input(values: dict[str, Any]) -> None:
        further = values.pop("input", None)
        empty = not isinstance(further, str) or further.strip().casefold() in NO_INPUT
        if isinstance(values["question"], str) and not empty:
            values["question"] = f"{values['question'].strip()}\n\n{further}"


def looks_like_a_row(value: Mapping[str, Any]) -> bool:
    """Whether an object alone is a row: it has a question and an answer, or a conversation."""
    found = fold(value)
    if any(chat.is_conversation(found.get(key)) for key in chat.KEYS):
        return True
    texts = {key for key, inner in found.items() if isinstance(inner, str | int | float)}
    return bool(texts & set(QUESTION)) and bool(found.keys() & set(ANSWER))


def names_columns(found: Iterable[str]) -> bool:
    """Whether there is a question's column and an answer's among these names."""
    folded = {fold_name(name) for name in found}
    return bool(folded & set(QUESTION)) and bool(folded & {*ANSWER, *ANSWER_OF_LAST_RESORT})


def detect(row: Mapping[str, Any], columns: Columns, path: Path | str, number: int) -> Shape:
    """The shape of a file by its first row; DataError names the columns that were found, and the fix."""
    found = fold(row)
    written: dict[str, str] = {}
    for key in row:
        written.setdefault(fold_name(key), key.strip())
    chosen: dict[str, str] = {}
    for key in ("question", "answer", "context"):
        if (name := getattr(columns, key)) is not None:
            if fold_name(name) not in found:
                _fail(f"has no column {name!r}: found {shown(written.values())}", f"correct data.columns.{key}", path)
            exact = next((each for each in row if each.strip() == name.strip()), written[fold_name(name)])
            chosen[key] = exact.strip()
    if not {"question", "answer"} & chosen.keys():
        for key in chat.KEYS:
            if chat.is_conversation(found.get(key)) or (found.get(key) == [] and not names_columns(found)):
                return _conversation(written[key], found, written)
    question, answer = _pair(found, written, chosen, path, number)
    mapping = {"question": question, "answer": answer}
    _refuse_doubles(row, mapping, path, number)
    _refuse_multiple_choice(found, mapping, path, number)
    if fold_name(question) == "instruction" and "question" not in chosen and "input" in found:
        mapping |= {"input": written["input"]} if answer != written["input"] else {}
    for key, names in (("context", CONTEXT), ("system", SYSTEM)):
        taken = {fold_name(name) for name in mapping.values()}
        if key in chosen:
            mapping[key] = chosen[key]
        elif name := next((name for name in names if name in found and name not in taken), None):
            mapping[key] = written[name]
    return _shape(_name(mapping, found), mapping, written)


def _conversation(column: str, found: Mapping[str, Any], written: Mapping[str, str]) -> Shape:
    turns = chat.turns_of(found[fold_name(column)])
    mapping = {"turns": column}
    if isinstance(found.get("system"), str):
        mapping["system"] = written["system"]
    return _shape("ShareGPT" if turns and "from" in turns[0] else "messages", mapping, written)


def _shape(name: str, mapping: Mapping[str, str], written: Mapping[str, str]) -> Shape:
    used = {fold_name(column) for column in mapping.values()} | set(FIELDS) | UNSAID | {"is_impossible"}
    return Shape(name, mapping, tuple(column for folded, column in written.items() if folded not in used))


def _pair(
    found: Mapping[str, Any], written: Mapping[str, str], chosen: Mapping[str, str], path: Path | str, number: int
) -> tuple[str, str]:
    """The question's column and the answer's."""
    taken = {fold_name(name) for name in chosen.values()}
    questions = [name for name in QUESTION if name in found and name not in taken]
    # Columns a, b, c are the choices of a test.
    answers = [name for name in ANSWER if name in found and name not in taken and not (name == "a" and "b" in found)]
    answers = answers or [name for name in ANSWER_OF_LAST_RESORT if name in found and name not in taken]
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
            hint = f"name it with --{key}-column (data.columns.{key})"
            _fail(
                f"has no column {key!r} or a usual name for it: found {shown(written.values()) or 'none'}",
                NO_HEADER if key == "question" and are_sentences(written.values()) else hint,
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


def _refuse_doubles(row: Mapping[str, Any], mapping: Mapping[str, str], path: Path | str, number: int) -> None:
    for key, column in mapping.items():
        same = [name.strip() for name in row if fold_name(name) == fold_name(column)]
        if len(same) > 1:
            _fail(
                f"has two columns that could be the {key}: {shown(same)}", "keep one, or rename the other", path, number
            )


def _refuse_multiple_choice(
    found: Mapping[str, Any], mapping: Mapping[str, str], path: Path | str, number: int
) -> None:
    """The number or letter of a choice is not an answer that could be trained on or scored."""
    answer = found[fold_name(mapping["answer"])]
    for name in CHOICES:
        if not isinstance(found.get(name), list | dict):
            continue
        if isinstance(answer, int) or (isinstance(answer, str) and len(answer.strip()) == 1):
            _fail(
                f"is multiple choice: {mapping['answer']} is {answer!r}, one of the {name}",
                "write the text of the right choice as the answer, or name its column with --answer-column",
                path,
                number,
            )


def _name(mapping: Mapping[str, str], found: Mapping[str, Any]) -> str:
    question, answer = fold_name(mapping["question"]), fold_name(mapping["answer"])
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
        before = shown(shape.columns.values())
        _fail(
            f"is of another shape ({other.name}: {names}) than the rows before it ({shape.name}: {before})",
            "put rows of one shape into a separate file",
            path,
            number,
        )
    _fail(f"has no {column!r}: found {names}", f"add {column!r}, or remove the row", path, number)
