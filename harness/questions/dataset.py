"""QA files in, checked.

JSON (a list of objects), JSON Lines, and CSV with the same columns: `question` and `answer`, optionally `id`, `article`, `part`, `kind`,
`group` and `references` (a list; separated by `|` in CSV). Everything else is kept in `extra`. UTF-8 or, by its byte order mark, UTF-16
or UTF-32. Whatever cannot be used is refused with the file, the row and the hint; nothing is dropped or repaired in silence.

A file is untrusted: it is read row by row, and every limit below is there so that no file takes memory or time without end.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from harness.errors import DataError
from harness.storage import sha256_json, strict_json

MAX_BYTES = 100_000_000
MAX_ROWS = 1_000_000
MAX_ROW_CHARACTERS = 1_000_000
MAX_COLUMNS = 1_000
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
SPACE = re.compile(r"[ \t\n\r]*")
STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


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
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise DataError("is a folder", "name the QA file in it", file=path)
        # A pipe or a device may have no end, or never begin.
        if not stat.S_ISREG(found.st_mode):
            raise DataError("is not a regular file", "save the rows into a file", file=path)
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise DataError("no such file", "check the path given as data.qa or --qa", file=path) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be opened: {error}", "check the path and its permissions", file=path) from None
    if found.st_size == 0:
        raise DataError("is empty", "give it rows with a question and an answer", file=path)
    if found.st_size > MAX_BYTES:
        raise DataError(
            f"is {found.st_size / 1e6:,.0f} MB", f"keep a QA file under {MAX_BYTES / 1e6:.0f} MB", file=path
        )
    return path


def load(path: Path | str) -> list[Row]:
    """Reads a QA file, in file order.

    The format is that of the ending (`.jsonl`, `.ndjson`, `.csv`); any other is read as JSON.

    Raises:
        DataError: naming the file, the row and the hint, at the first thing that cannot be used.
    """
    path = locate(path)
    text = _decode(path)
    read = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".csv": _read_csv}.get(path.suffix.lower(), _read_json)
    rows: list[Row] = []
    for number, values in read(text, path):
        if len(rows) == MAX_ROWS:
            raise DataError(f"has more than {MAX_ROWS:,} rows", "sample it, or split it into files", file=path)
        rows.append(_check(values, number, path))
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
    """The elements of a list one by one: the first that cannot be used ends it, whatever comes after."""
    at = _skip(text, 0)
    if text[at] != "[":
        is_object = text[at] == "{"
        value = {} if is_object else _parse(text, path, 1, at)[0]
        hint = ", or name it .jsonl if it holds one object a line" if is_object else ""
        raise DataError(
            f"is {_name(value)}, not a list of objects",
            f"put the rows into one list: [{{...}}, {{...}}]{hint}",
            file=path,
        )
    at = _skip(text, at + 1)
    number, more = 0, not text.startswith("]", at)
    while more:
        number += 1
        _check_extent(text, at, path, number)
        value, end = _parse(text, path, number, at)
        yield number, value
        end = _skip(text, end)
        more = text.startswith(",", end)
        if not more and not text.startswith("]", end):
            _not_json(json.JSONDecodeError("Expecting ',' delimiter", text, end), path)
        at = _skip(text, end + 1) if more else end
    if (rest := _skip(text, at + 1)) < len(text):
        _not_json(json.JSONDecodeError("Extra data", text, rest), path)


def _skip(text: str, at: int) -> int:
    space = SPACE.match(text, at)
    return space.end() if space else at


def _check_extent(text: str, at: int, path: Path, number: int) -> None:
    """Refuses a row that is too long or nested too deeply before it is parsed."""
    depth = 0
    for found in STRING_OR_BRACKET.finditer(text, at, at + MAX_ROW_CHARACTERS):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if depth > MAX_DEPTH:
            raise DataError(
                f"has more than {MAX_DEPTH} levels of nesting",
                "a row holds texts, and little else",
                file=path,
                row=number,
            )
        if depth <= 0:
            return
    if len(text) - at > MAX_ROW_CHARACTERS:
        raise DataError(
            f"has more than {MAX_ROW_CHARACTERS:,} characters",
            "check the quotes and brackets, or shorten it",
            file=path,
            row=number,
        )


def _read_jsonl(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_lines(text), 1):
        if line.strip():
            _check_extent(line, 0, path, number)
            yield number, _parse(line, path, number, line=number)[0]


def _lines(text: str) -> Iterator[str]:
    # str.splitlines would also cut at U+2028 and its like, which may stand inside a JSON string.
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end + 1


def _read_csv(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(MAX_ROW_CHARACTERS)
    reader = csv.DictReader(_csv_lines(text, path), strict=True)
    try:
        if len(reader.fieldnames or []) > MAX_COLUMNS:
            raise DataError(f"has {len(reader.fieldnames or []):,} columns", f"keep {MAX_COLUMNS:,} at most", file=path)
        columns = [name.strip() for name in reader.fieldnames or []]
        for name in ("question", "answer"):
            if name not in columns:
                separated = (
                    " (is it separated by semicolons or tabs?)"
                    if len(columns) == 1 and re.search(r"[;\t]", columns[0])
                    else ""
                )
                raise DataError(
                    f"has no column {name!r}{separated}",
                    "name the columns in the first line, separated by commas",
                    file=path,
                )
        if len(set(columns)) < len(columns):
            raise DataError("has two columns of one name", "name each column once", file=path)
        reader.fieldnames = columns
        for number, values in enumerate(reader, 1):
            if None in values:
                raise DataError(
                    "has more fields than there are columns",
                    "put a field that contains commas into quotes",
                    file=path,
                    row=number,
                )
            # An empty cell is an absent value, but for the two texts, where it is a mistake to be told.
            yield number, {key: value for key, value in values.items() if key in ("question", "answer") or value}
    except csv.Error as error:
        raise DataError(
            f"is not CSV ({error}, near line {reader.line_num})", "check the quotes there", file=path
        ) from None


def _csv_lines(text: str, path: Path) -> Iterator[str]:
    for number, line in enumerate(io.StringIO(text, newline=""), 1):
        if len(line) > MAX_ROW_CHARACTERS:
            raise DataError(
                f"has {len(line):,} characters on line {number}", "put each row on a line of its own", file=path
            )
        yield line


def _parse(text: str, path: Path, number: int, at: int = 0, *, line: int | None = None) -> tuple[Any, int]:
    """(value, where it ends) of the JSON at a position; of all the text, if it is a `line` of a file."""
    try:
        return (
            strict_json.DECODER.raw_decode(text, at) if line is None else (strict_json.DECODER.decode(text), len(text))
        )
    except json.JSONDecodeError as error:
        _not_json(error, path, line)
    except ValueError as error:
        raise DataError(f"is not usable JSON: {error}", "correct that", file=path, row=number) from None


def _not_json(error: json.JSONDecodeError, path: Path, line: int | None = None) -> NoReturn:
    where = f"line {line or error.lineno}, column {error.colno}"
    raise DataError(f"is not JSON: {error.msg.lower()} ({where})", "correct it there", file=path) from None


# --------------------------------------------------------------------------------------------------------------- rows


def _check(values: Any, number: int, path: Path) -> Row:
    """One row without a derived id (`id` is empty if the row has none)."""

    def fail(problem: str, hint: str) -> NoReturn:
        raise DataError(problem, hint, file=path, row=number)

    if not isinstance(values, dict):
        fail(f"is {_name(values)}, not an object", 'write it as {"question": ..., "answer": ...}')
    try:
        strict_json.check(values, max_depth=MAX_DEPTH)
    except ValueError as error:
        fail(f"has {error}", "a row holds texts, and little else")

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
        if "\0" in value:
            fail(f"{key} contains a NUL character", "remove it: text has none")
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


def _with_ids(rows: list[Row], path: Path) -> list[Row]:
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
            # Question and answer twice over: the second is told from the first by their order.
            stem = "q" + sha256_json([row.question, row.answer])[:16]
            copies[stem] += 1
            while (name := stem if copies[stem] == 1 else f"{stem}-{copies[stem]}") in taken:
                copies[stem] += 1
            taken[name] = row.row
        named.append(replace(row, id=name))
    return named


def _name(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    return {int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}.get(
        type(value), type(value).__name__
    )
