"""Reads and checks QA files: the entry point of `harness.questions.readers`.

A file is recognised by its content: its container (gzip, parquet, xlsx, text), where its rows are (a list, JSON Lines, a wrapper, a table)
and what their columns mean (question and answer, alpaca, prompt and completion, messages, ShareGPT, SQuAD). One line says what was
recognised and what was left out; whatever cannot be used is refused with the file, the row and the fix. Nothing is dropped silently.
"""

from __future__ import annotations

import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from harness.config import Data
from harness.errors import DataError
from harness.questions.readers import chat, containers, hub, json_documents, shapes, table
from harness.questions.readers.chat import LeftOut
from harness.questions.readers.limits import MAX_BYTES, MAX_ROWS
from harness.questions.readers.shapes import Shape
from harness.questions.rows import BLANK, Checker, Row, kind_of, with_ids
from harness.records.split import SourceFile
from harness.storage import sha256_file, sha256_json

__all__ = ["BLANK", "MAX_BYTES", "MAX_ROWS", "QaFile", "Row", "load", "locate", "read"]

BLANK_ROWS = "blank"
ENTITY = re.compile(r"&(?:[a-zA-Z]{2,31}|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});")
PYTHON_ANSWER = re.compile(r"\{\s*'text'\s*:")
"""SQuAD's answers as pandas writes them into CSV."""
MISSING = frozenset(["nan", "null", "none", "n/a", "#n/a", "na"])
"""Answers that look like a table's marker for missing values."""
NO_ROWS_HINTS = {
    chat.SEVERAL: "set data.turns=last to take the last turn",
    chat.UNASKED: "set data.turns=last to take the last turn",
    chat.UNANSWERED: "give each conversation an assistant's turn behind the user's",
    chat.TOOLS: "give conversations of text: a question, and its answer",
    chat.UNKNOWN: "call the roles user and assistant",
}
PROMPT = re.compile(
    r"^\s*(?:(?:Human|User|Q|Question): |### ?(?:Instruction|Question|Human|Input)\b|\[INST\]|<\|im_start\|>|<\|start_header_id\|>|<s>)"
)
"""Beginnings of questions that are already a complete prompt."""
UNREADABLE = "give JSON, JSON Lines, CSV, parquet or xlsx with a question and an answer in each row"


@dataclass(frozen=True)
class QaFile:
    """The rows read, and a description of the file."""

    source: str
    """As given: a path, or `hub:...`."""
    rows: list[Row]
    shape: str
    """Shape of the rows: `alpaca`, `question and answer`, `messages`, ..."""
    container: str
    """File format: `JSON Lines`, `CSV separated by commas`, `parquet`, ..."""
    mapping: str
    """The shape and the column mapping in words."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> number of rows."""

    @cached_property
    def summary(self) -> str:
        """The one line that says what was recognised."""
        unanswerable = sum(not row.answerable for row in self.rows)
        entities = sum(bool(ENTITY.search(row.question) or ENTITY.search(row.answer)) for row in self.rows)
        parts = [f"{self.mapping} ({self.container})", "1 row" if len(self.rows) == 1 else f"{len(self.rows):,} rows"]
        parts += [f"{count:,} {why} left out" for why, count in self.left_out.items()]
        parts += [f"{unanswerable:,} unanswerable"] if unanswerable else []
        missing = [row.answer for row in self.rows if row.answer.casefold() in MISSING]
        parts += [f"{len(missing):,} with the answer {missing[0]!r}, kept unchanged"] if missing else []
        prompts = [found[0].strip() for row in self.rows if (found := PROMPT.match(row.question))]
        if prompts:
            parts.append(f"{len(prompts):,} that begin like a prompt ({prompts[0]!r}), asked as they are")
        systems = sum(row.system is not None for row in self.rows)
        parts += [f"{systems:,} with their own system line, which goes before prompt.system"] if systems else []
        parts += [f"{entities:,} with HTML entities (like &amp;), left as they are"] if entities else []
        return "; ".join(parts)

    def described(self, role: str, sha256: str) -> SourceFile:
        """For `SplitManifest.files`."""
        return {
            "path": self.source,
            "summary": self.summary,
            "rows": len(self.rows),
            "left_out": self.left_out,
            "role": role,
            "sha256": sha256,
        }


def locate(path: Path | str) -> Path:
    """Returns the path of a readable file of a sensible size, or raises DataError."""
    path = Path(path)
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise DataError("is a folder", "name the QA file in it", file=path)
        # A pipe or a device may never end or never deliver data.
        if not stat.S_ISREG(found.st_mode):
            raise DataError("is not a regular file", "save the rows into a file", file=path)
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise DataError(
            "no such file",
            "check the path given as data.qa, data.test or data.trained_on (--qa, --test, --trained-on)",
            file=path,
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be opened: {error}", "check the path and its permissions", file=path) from None
    if found.st_size == 0:
        raise DataError("is empty", "give it rows with a question and an answer", file=path)
    if found.st_size > MAX_BYTES:
        raise DataError(
            f"is {found.st_size / 1e6:,.0f} MB", f"keep a QA file under {MAX_BYTES / 1e6:.0f} MB", file=path
        )
    return path


def source_sha256(source: str) -> str:
    """Hash of a file, or of the rows of a hub data set; DataError if it cannot be reached."""
    if hub.is_hub(source):
        return sha256_json([values for _, values in _hub_rows(source)[0]])
    return sha256_file(locate(source))


def load(path: Path | str) -> list[Row]:
    """The rows of a QA file, recognised automatically: `read` with the defaults."""
    return read(path, Data()).rows


def read(source: Path | str, data: Data) -> QaFile:
    """Reads a QA file or hub data set, in file order.

    Args:
        data: `columns`, `turns` and `unanswerable` of it decide where the file leaves something open.

    Raises:
        DataError: naming the file, the row or columns, and the fix, at the first thing that cannot be used.
    """
    source = str(source)
    if hub.is_hub(source):
        rows, container = _hub_rows(source)
        return _read_rows(iter(rows), container, source, data, cells=False)
    path = locate(source)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error}", "check the file and its permissions", file=path) from None
    rows, container, cells = _open(content, path)
    return _read_rows(rows, container, source, data, cells=cells)


@cache
def _hub_rows(source: str) -> tuple[list[tuple[int, dict[str, Any]]], str]:
    """The rows as (number, values), loaded once per process, and their description."""
    rows, split = hub.read(source)
    return list(rows), f"hub data set, {split}"


def _open(content: bytes, path: Path) -> tuple[Iterator[tuple[int, Any]], str, bool]:
    """The rows as (number, values), the container, and whether the values are cells of a table."""
    packed = ""
    if content.startswith(containers.GZIP):
        content, packed = containers.gunzip(content, path), ", gzip"
    containers.refuse_others(content, path)
    if content.startswith(containers.PARQUET):
        return containers.read_parquet(content, path), f"parquet{packed}", False
    if content.startswith(containers.ZIP):
        sheet, note = containers.read_xlsx(content, path)
        return table.read_rows(sheet, path), f"xlsx, {note}{packed}", True
    text = containers.decode(content, path)
    if text.lstrip()[:1] in ("[", "{") or _suffix(path) in (".json", *json_documents.JSON_LINES):
        rows, how = json_documents.read(text, path)
        return rows, f"{how}{packed}", False
    rows, how = table.read_csv(text, path)
    return rows, f"CSV {how}{packed}", True


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix.lower() in (".gz", ".gzip") else path).suffix.lower()


def _read_rows(found: Iterator[tuple[int, Any]], container: str, source: str, data: Data, *, cells: bool) -> QaFile:
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    shape: Shape | None = None
    checker = Checker(source, {}, cells=cells)
    seen: tuple[str, ...] | None = None
    for number, values in found:
        if len(rows) + left_out.total() == MAX_ROWS:
            raise DataError(f"has more than {MAX_ROWS:,} rows", "sample it, or split it into files", file=source)
        if cells and not values:
            left_out[BLANK_ROWS] += 1
            continue
        if chat.is_conversation(values):
            values = {"messages": values}
        if not isinstance(values, dict):
            raise DataError(
                f"is {kind_of(values)}, not an object",
                'write it as {"question": ..., "answer": ...}',
                file=source,
                row=number,
            )
        if shape is None:
            shape = shapes.detect(values, data.columns, source, number)
            checker = Checker(source, shape.columns, cells=cells)
        elif (names := tuple(values)) != seen and (extended := shape.extended(values)) is not shape:
            shape = extended
            checker = Checker(source, shape.columns, cells=cells)
        else:
            seen = names  # The same columns extend nothing.
        try:
            converted = shape.convert(values, data.unanswerable, last_turn=data.turns == "last")
        except LeftOut as why:
            left_out[str(why)] += 1
            continue
        except KeyError as column:
            shapes.lacks(values, column.args[0], shape, source, number)
        if cells:
            converted = _cells(converted, checker, number)
        rows.append(checker.check(converted, number))
    if not rows:
        reasons = ", ".join(f"{count:,} {why}" for why, count in left_out.items())
        raise DataError(
            f"has no usable rows ({reasons} left out)" if left_out else "has no rows",
            NO_ROWS_HINTS.get(left_out.most_common(1)[0][0], UNREADABLE) if left_out else UNREADABLE,
            file=source,
        )
    mapping = shape.summary if shape else ""
    return QaFile(source, with_ids(rows, source), shape.name if shape else "", container, mapping, dict(left_out))


def _cells(values: dict[str, Any], checker: Checker, number: int) -> dict[str, Any]:
    """The values of a table's row: empty cells are dropped, except for question and answer, where they are reported as errors."""
    answer = values.get("answer")
    if isinstance(answer, str) and PYTHON_ANSWER.match(answer):
        checker.number = number
        checker.fail(f"{checker.name('answer')} is a Python dict written as text", "save the file as parquet or JSON")
    kept = {key: value for key, value in values.items() if value not in (None, "")}
    return {"question": values.get("question") or "", "answer": "" if answer is None else answer} | kept
