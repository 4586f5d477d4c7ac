"""QA files in, checked.

JSON (a list of objects), JSON Lines, and CSV with the same columns: `question` and `answer`, optionally `id`, `article`, `part`, `kind`,
`group` and `references` (a list; separated by `|` in CSV). Everything else is kept in `extra`. UTF-8 or, by its byte order mark, UTF-16
or UTF-32. Whatever cannot be used is refused with the file, the row and the mend; nothing is dropped or repaired in silence.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from harness.errors import DataError
from harness.store import sha256_json

MAX_BYTES = 1_000_000_000
MAX_CHARACTERS = 32_000
"""Of one text: far more than a model's context holds, and little enough for metrics that are quadratic in the length."""
MAX_DEPTH = 32
"""Of lists and objects within a row: what every JSON writer down the line can still write."""
LABELS = ("article", "part", "kind", "group")
FIELDS = ("id", "question", "answer", "references", *LABELS)
ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # UTF-32's little-endian mark begins with UTF-16's, so it is looked for first.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
BLANK = re.compile(r"[\s\u200b-\u200f\u2060\ufeff]*")
SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a QA file; texts are stripped of surrounding white space."""

    id: str
    """The row's own, or `q` and a hash of question and answer: the same wherever the row stands and whatever is added."""
    row: int
    """Position in the file, counted from 1; the line of a JSON Lines file."""
    question: str
    answer: str
    references: tuple[str, ...] = ()
    group: str | None = None
    article: str | None = None
    part: str | None = None
    kind: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def locate(path: Path | str) -> Path:
    """Returns the path of a readable file of a sensible size, or raises DataError."""
    path = Path(path)
    try:
        if path.is_dir():
            raise DataError("is a folder", "name the QA file in it", file=path)
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise DataError("no such file", "check the path given as data.qa or --qa", file=path) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be opened: {error}", "check the path and its permissions", file=path) from None
    if size == 0:
        raise DataError("is empty", "give it rows with a question and an answer", file=path)
    if size > MAX_BYTES:
        raise DataError(f"is {size / 1e9:.1f} GB", f"keep a QA file under {MAX_BYTES / 1e9:.0f} GB", file=path)
    return path


def load(path: Path | str) -> list[Row]:
    """Reads a QA file, in file order.

    The format is that of the ending (`.jsonl`, `.ndjson`, `.csv`); any other is read as JSON.

    Raises:
        DataError: naming the file, the row and the mend, at the first thing that cannot be used.
    """
    path = locate(path)
    text = _decode(path)
    read = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".csv": _read_csv}.get(path.suffix.lower(), _read_json)
    rows = [_check(values, number, path) for number, values in read(text, path)]
    if not rows:
        raise DataError("has no rows", "give it rows with a question and an answer", file=path)
    return _with_ids(rows, path)


# ------------------------------------------------------------------------------------------------------------ formats


def _decode(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error}", "check the file and its permissions", file=path) from None
    encoding = next((name for mark, name in ENCODINGS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"is not {encoding.upper()} (byte {data[error.start]:#04x} on line {line})", "save it as UTF-8", file=path
        ) from None
    if encoding == "utf-8" and "\0" in text[:4]:
        raise DataError("looks like UTF-16 without a byte order mark", "save it as UTF-8", file=path)
    if BLANK.fullmatch(text):
        raise DataError("is blank", "give it rows with a question and an answer", file=path)
    return text


def _read_json(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    values = _parse(text, path)
    if not isinstance(values, list):
        raise DataError(f"is {_name(values)}, not a list of objects", "put the rows into one list: [{...}, {...}]", file=path)
    yield from enumerate(values, 1)


def _read_jsonl(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    # str.splitlines would also cut at U+2028 and its like, which may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, _parse(line, path, number)


def _read_csv(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(MAX_BYTES)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or []]
        for name in ("question", "answer"):
            if name not in columns:
                separated = " (is it separated by semicolons or tabs?)" if len(columns) == 1 and re.search(r"[;\t]", columns[0]) else ""
                raise DataError(f"has no column {name!r}{separated}", "name the columns in the first line, separated by commas", file=path)
        if len(set(columns)) < len(columns):
            raise DataError("has two columns of one name", "name each column once", file=path)
        reader.fieldnames = columns
        for number, values in enumerate(reader, 1):
            if None in values:
                raise DataError(
                    "has more fields than there are columns", "put a field that contains commas into quotes", file=path, row=number
                )
            # An empty cell is an absent value, but for the two texts, where it is a mistake to be told.
            yield number, {key: value for key, value in values.items() if key in ("question", "answer") or value}
    except csv.Error as error:
        raise DataError(f"is not CSV ({error}, near line {reader.line_num})", "check the quotes there", file=path) from None


def _parse(text: str, path: Path, line: int | None = None) -> Any:
    def refuse(literal: str) -> NoReturn:
        raise ValueError(f"{literal} is not a number that JSON knows")

    def number(literal: str) -> float:
        value = float(literal)
        return value if math.isfinite(value) else refuse(literal[:40])

    try:
        return json.loads(text, parse_constant=refuse, parse_float=number)
    except json.JSONDecodeError as error:
        lines = error.msg == "Extra data" and line is None and text.lstrip().startswith("{")
        mend = "name it .jsonl if it holds one object a line" if lines else "correct it there"
        raise DataError(f"is not JSON: {error.msg.lower()} (line {line or error.lineno}, column {error.colno})", mend, file=path) from None
    except ValueError as error:
        raise DataError(f"is not usable JSON: {error}", "correct that number", file=path, row=line) from None
    except RecursionError:
        raise DataError("is nested too deeply", "a row holds texts, and little else", file=path, row=line) from None


# --------------------------------------------------------------------------------------------------------------- rows


def _check(values: Any, number: int, path: Path) -> Row:
    """One row without a derived id (`id` is empty if the row has none)."""

    def fail(problem: str, mend: str) -> NoReturn:
        raise DataError(problem, mend, file=path, row=number)

    if not isinstance(values, dict):
        fail(f"is {_name(values)}, not an object", 'write it as {"question": ..., "answer": ...}')
    _check_depth_and_unicode(values, fail)

    def text(key: str) -> str:
        if key not in values:
            near = next((k for k in values if k.strip().casefold() == key), None)
            fail(f"has no {key!r}" + (f" (but {near!r})" if near else ""), f"add {key!r}, or remove the row")
        value = values[key]
        if not isinstance(value, str):
            fail(f"{key} is {_name(value)}, not a text", f"write the {key} as a string")
        if BLANK.fullmatch(value):
            fail(f"{key} is {'blank' if value else 'empty'}", f"fill in the {key}, or remove the row")
        return checked(key, value)

    def checked(key: str, value: str) -> str:
        if len(value) > MAX_CHARACTERS:
            fail(f"{key} has {len(value):,} characters", f"keep it under {MAX_CHARACTERS:,}")
        return value.strip()

    def label(key: str) -> str | None:
        value = values.get(key)
        # Numbered articles often come as numbers, and as 14.0 from a table with gaps.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if value is None:
            return None
        if not isinstance(value, str):
            fail(f"{key} is {_name(value)}, not a text", f"write the {key} as a string, or leave it out")
        return checked(key, value) or None

    def references() -> tuple[str, ...]:
        value = values.get("references")
        if isinstance(value, str):
            value = value.split("|") if path.suffix.lower() == ".csv" else [value]
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            fail("references is not a list of texts", 'write them as ["...", "..."]')
        return tuple(checked("references", v) for v in value if not BLANK.fullmatch(v))

    return Row(
        id=label("id") or "",
        row=number,
        question=text("question"),
        answer=text("answer"),
        references=references(),
        **{key: label(key) for key in LABELS},
        extra={key: value for key, value in values.items() if key not in FIELDS},
    )


def _check_depth_and_unicode(values: dict[str, Any], fail: Any) -> None:
    todo: list[tuple[Any, int]] = [(values, 0)]
    while todo:
        value, depth = todo.pop()
        if isinstance(value, str) and SURROGATE.search(value):
            fail("contains half of a surrogate pair, which is no character", "remove the \\ud800 to \\udfff escape")
        elif isinstance(value, dict | list):
            if depth == MAX_DEPTH:
                fail(f"is nested more than {MAX_DEPTH} deep", "a row holds texts, and little else")
            inside = [*value.keys(), *value.values()] if isinstance(value, dict) else value
            todo.extend((v, depth + 1) for v in inside)


def _with_ids(rows: list[Row], path: Path) -> list[Row]:
    taken: dict[str, int] = {}
    for row in rows:
        if row.id and row.id in taken:
            raise DataError(
                f"id {row.id[:80]!r} is also that of row {taken[row.id]}", "give each row its own id, or none", file=path, row=row.row
            )
        if row.id:
            taken[row.id] = row.row
    named = []
    for row in rows:
        name = row.id
        if not name:
            # Question and answer twice over: the second is told from the first by their order.
            stem, count = "q" + sha256_json([row.question, row.answer])[:16], 1
            name = stem
            while name in taken:
                count += 1
                name = f"{stem}-{count}"
            taken[name] = row.row
        named.append(replace(row, id=name))
    return named


def _name(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    return {int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}.get(type(value), type(value).__name__)
