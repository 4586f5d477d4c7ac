"""One checked row of a QA file, independent of the file's shape.

A file is untrusted: every limit here is there so that no row takes memory or time without end.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from harness.errors import DataError
from harness.storage import sha256_json, strict_json

MAX_CHARACTERS = 32_000
"""Maximum characters of one text: far more than a model's context, but few enough for quadratic metrics."""
MAX_REFERENCES = 1_000
"""Accepted answers of a row."""
MAX_DEPTH = 32
"""Maximum nesting within a row: what all later JSON writers support."""
LABELS = ("article", "part", "kind", "group")
FIELDS = ("id", "question", "answer", "references", "context", "system", "answerable", *LABELS)
"""Fields that a reader may pass on; all others are kept in `extra`."""
BLANK = re.compile(r"[\s\u200b-\u200f\u2060\ufeff]*")
WHOLE = 10**15
"""Below it a float without a fraction is written as a whole number: tables with gaps turn 14 into 14.0."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a QA file; texts are stripped of surrounding white space."""

    id: str
    """The row's own, or `q` and a hash of question, context and answer: the same wherever the row is and whatever is added."""
    row: int
    """Position in the file, counted from 1; the line of a JSON Lines file."""
    question: str
    answer: str
    references: tuple[str, ...] = ()
    group: str | None = None
    article: str | None = None
    part: str | None = None
    kind: str | None = None
    context: str | None = None
    """A passage that the question is about."""
    system: str | None = None
    """The system turn of a conversation."""
    answerable: bool = True
    """False: the file says that the question has no answer."""
    extra: dict[str, Any] = field(default_factory=dict)


def _further(values: dict[str, Any]) -> dict[str, Any]:
    """All other columns; in a row written by a split they are in `extra`."""
    found = {key: value for key, value in values.items() if key not in FIELDS}
    nested = found.pop("extra") if isinstance(found.get("extra"), dict) else {}
    return nested | found


class Checker:
    """Turns a reader's values into rows, or raises DataError with file, row, column and fix.

    Args:
        path: the file, for messages.
        names: field -> the file's own name for it, for messages.
        cells: the values are cells of a table: an empty one is absent, and `|` separates references.
    """

    def __init__(self, path: Path | str, names: Mapping[str, str], *, cells: bool):
        self.path, self.names, self.cells = path, names, cells
        self.number = 0

    def fail(self, problem: str, hint: str) -> NoReturn:
        """Raises DataError for the present row."""
        raise DataError(problem, hint, file=self.path, row=self.number)

    def check(self, values: dict[str, Any], number: int) -> Row:
        """One row without a derived id (`id` is empty if the row has none)."""
        self.number = number
        try:
            strict_json.check(values, max_depth=MAX_DEPTH)
        except ValueError as error:
            self.fail(f"has {error}", "correct it, or remove the row")
        answer, *further = self._answers(values.get("answer"))
        return Row(
            id=self._label(values, "id") or "",
            row=number,
            question=self._text("question", values.get("question")),
            answer=answer,
            references=tuple(dict.fromkeys([*further, *self._references(values.get("references"))])),
            context=self._optional(values, "context"),
            system=self._optional(values, "system"),
            answerable=values.get("answerable", True),
            **{key: self._label(values, key) for key in LABELS},
            extra=_further(values),
        )

    def name(self, key: str) -> str:
        """The field as the file calls it."""
        own = self.names.get(key, key)
        return own if own == key else f"{own} (the {key})"

    def _text(self, key: str, value: Any) -> str:
        if value is None:
            self.fail(f"{self.name(key)} is null", f"fill in the {key}, or remove the row")
        if not isinstance(value, str):
            self.fail(f"{self.name(key)} is {kind_of(value)}, not a text", f"write the {key} as a string")
        if BLANK.fullmatch(value):
            self.fail(f"{self.name(key)} is {'blank' if value else 'empty'}", f"fill in the {key}, or remove the row")
        return self._checked(key, value)

    def _checked(self, key: str, value: str) -> str:
        if len(value) > MAX_CHARACTERS:
            self.fail(f"{self.name(key)} has {len(value):,} characters", f"keep it under {MAX_CHARACTERS:,}")
        if "\0" in value:
            self.fail(f"{self.name(key)} contains a NUL character", "remove it: text has none")
        return value.strip()

    def _number(self, value: Any) -> Any:
        """A number as text; anything else unchanged."""
        if isinstance(value, str | bool) or not isinstance(value, int | float):
            return value
        return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < WHOLE else str(value)

    def _answers(self, value: Any) -> list[str]:
        if isinstance(value, list):
            if not value:
                self.fail(f"{self.name('answer')} is an empty list", "fill in the answer, or remove the row")
            if len(value) > MAX_REFERENCES:
                self.fail(f"{self.name('answer')} has {len(value):,} answers", f"keep {MAX_REFERENCES:,} at most")
            return [self._text("answer", self._number(each)) for each in value]
        if isinstance(value, bool):
            self.fail(f"{self.name('answer')} is true or false, not a text", 'write it as "yes" or "no", in quotes')
        return [self._text("answer", self._number(value))]

    def _references(self, value: Any) -> tuple[str, ...]:
        if isinstance(value, str):
            value = value.split("|") if self.cells else [value]
        if value is None:
            return ()
        texts = [self._number(each) for each in value] if isinstance(value, list) else value
        if isinstance(texts, list) and None in texts:
            self.fail(f"{self.name('references')} holds null", "leave it out, or write the answer")
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            self.fail(f"{self.name('references')} is not a list of texts", 'write them as ["...", "..."]')
        if len(texts) > MAX_REFERENCES:
            self.fail(f"{self.name('references')} has {len(texts):,} answers", f"keep {MAX_REFERENCES:,} at most")
        return tuple(self._checked("references", each) for each in texts if not BLANK.fullmatch(each))

    def _optional(self, values: dict[str, Any], key: str) -> str | None:
        value = values.get(key)
        if value is None:
            return None
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            value = "\n\n".join(each for each in value if not BLANK.fullmatch(each))
        if isinstance(value, str) and BLANK.fullmatch(value):
            return None
        return self._text(key, value)

    def _label(self, values: dict[str, Any], key: str) -> str | None:
        value = values.get(key)
        if value is None:
            return None
        if isinstance(value, float) and not value.is_integer():
            self.fail(f"{key} is a number, not a text", f"write the {key} as a string, or leave it out")
        value = self._number(value)
        if not isinstance(value, str):
            self.fail(f"{key} is {kind_of(value)}, not a text", f"write the {key} as a string, or leave it out")
        return self._checked(key, value) or None


def with_ids(rows: list[Row], path: Path | str) -> list[Row]:
    """The rows with ids that no other row has; DataError if the file gives one twice."""
    taken: dict[str, int] = {}
    for row in rows:
        if row.id and row.id in taken:
            raise DataError(
                f"id {row.id[:80]!r} is also that of row {taken[row.id]}",
                "give each row its own id, or none",
                file=path,
                row=row.row,
            )
        if row.id:
            taken[row.id] = row.row
    named, copies = [], Counter[str]()
    for row in rows:
        name = row.id
        if not name:
            # Question and answer twice over: their order distinguishes the second from the first.
            content = [row.question, row.answer] if row.context is None else [row.question, row.answer, row.context]
            stem = "q" + sha256_json(content)[:16]
            copies[stem] += 1
            while (name := stem if copies[stem] == 1 else f"{stem}-{copies[stem]}") in taken:
                copies[stem] += 1
            taken[name] = row.row
        named.append(replace(row, id=name))
    return named


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    return {int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}.get(
        type(value), type(value).__name__
    )
