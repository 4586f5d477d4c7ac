"""JSON: a list of rows, JSON Lines, and the objects that rows come wrapped in; each row as (number, values).

A list and JSON Lines are read row by row: the first that cannot be used ends it, whatever comes after. An object is read as a whole, if it is
not too large for that: wrappers (`{"data": [...]}`), columns (`{"question": [...], "answer": [...]}`), what pandas' `to_json` writes in each
orientation, SQuAD's nesting, and an object of questions and answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from harness.errors import DataError
from harness.questions.readers import chat, shapes, squad
from harness.questions.readers.limits import MAX_ROW_CHARACTERS, MAX_VALUES, SHOWN, shown
from harness.questions.readers.names import are_sentences
from harness.questions.rows import MAX_DEPTH, kind_of
from harness.storage import strict_json

Rows = Iterator[tuple[int, Any]]
SPACE = re.compile(r"[ \t\n\r]*")
STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
NEXT_LINE = re.compile(r"[ \t\r]*\n[ \t\n\r]*")
PYTHON = re.compile(r"\s*\[?\s*\{\s*'")
JSON_LINES = (".jsonl", ".ndjson")
ARTICLE_ROWS = 20
"""An article of SQuAD is one element of a list and holds many rows: it may be this many times as long as a row."""


def read(text: str, path: Path) -> tuple[Rows, str]:
    """The rows of a JSON text, and the kind of document it is."""
    at = _skip(text, 0)
    if text.startswith(("[", "{"), at):
        if _is_lines(text, path, at):
            rows, how = _lines(text, path), "JSON Lines"
        elif text.startswith("[", at):
            rows, how = _list(text, path, at), "JSON"
        elif (value := _whole(text, path)) is None:
            rows, how = _stream(text, path, at), "JSON objects one after another"
        else:
            rows, how = _rows_of_object(value, path)
        return squad.flattened(_named(rows, path)), how
    value = _parse(text, path, 1, at)[0]
    raise DataError(
        f"is {kind_of(value)}, not a list of objects", "put the rows into one list: [{...}, {...}]", file=path
    )


def _is_lines(text: str, path: Path, at: int) -> bool:
    """Whether each line is an object, or a list: the first ends with one, and the next begins another."""
    end = text.find("\n", at)
    if end < 0:
        return path.suffix.lower() in JSON_LINES and len(text) > MAX_ROW_CHARACTERS
    following = NEXT_LINE.match(text, at + len(text[at:end].rstrip()))
    begins_another = bool(following and text.startswith(text[at], following.end()))
    ends = text[at:end].rstrip().endswith("}" if text[at] == "{" else "]")
    if text[at] == "[":
        return ends and begins_another
    named = path.suffix.lower() in JSON_LINES and text[at:end].strip() != "{"
    has_more = bool(following and following.end() < len(text))
    return (ends and begins_another) or (named and has_more)


# ----------------------------------------------------------------------------------------------------- row by row


def _list(text: str, path: Path, at: int) -> Rows:
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


def _lines(text: str, path: Path) -> Rows:
    for number, line in enumerate(_split_lines(text), 1):
        if line.strip():
            _check_extent(line, 0, path, number)
            yield number, _parse(line, path, number, line=number)[0]


def _stream(text: str, path: Path, at: int) -> Rows:
    number = 0
    while at < len(text):
        number += 1
        _check_extent(text, at, path, number)
        value, end = _parse(text, path, number, at)
        yield number, value
        at = _skip(text, end)
        if at < len(text) and text[at] != "{":
            _not_json(json.JSONDecodeError("Extra data", text, at), path)


def _named(rows: Rows, path: Path) -> Rows:
    """The rows as objects: lists get their columns' names from the first of them, or are pairs of question and answer; wrappers are taken off."""
    header: list[str] | None = None
    for number, row in rows:
        if number == 1 and isinstance(row, list) and row and all(isinstance(each, str) for each in row):
            header = row if shapes.names_columns(row) else ["question", "answer"] if len(row) == 2 else None
            if header is row:
                continue
        if isinstance(row, list) and header and not chat.is_conversation(row):
            yield number, _zip(header, row, path)
        elif isinstance(row, dict) and len(row) == 1 and isinstance(inner := next(iter(row.values())), dict):
            yield number, inner if shapes.looks_like_a_row(inner) else row
        else:
            yield number, row


def _split_lines(text: str) -> Iterator[str]:
    # str.splitlines would also cut at U+2028 and its like, which may be inside a JSON string.
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end + 1


def _skip(text: str, at: int) -> int:
    space = SPACE.match(text, at)
    return space.end() if space else at


def _check_extent(text: str, at: int, path: Path, number: int) -> None:
    """Refuses a row that is too long or nested too deeply before it is parsed."""
    depth, room = 0, MAX_ROW_CHARACTERS
    if len(text) - at <= room and text.count("[", at) + text.count("{", at) <= MAX_DEPTH:
        return  # Too few brackets, those in strings included.
    if squad.ARTICLE.match(text, at):
        room *= ARTICLE_ROWS
    for found in STRING_OR_BRACKET.finditer(text, at, at + room):
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
    if len(text) - at > room:
        raise DataError(
            f"has more than {room:,} characters", "check the quotes and brackets, or shorten it", file=path, row=number
        )


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
    doc, at = error.doc, error.pos
    hint = "correct it there"
    if PYTHON.match(doc):
        hint = "it is written as Python, with single quotes; write it with json.dump"
    elif doc[at : at + 1] in ("]", "}") and doc[:at].rstrip().endswith(","):
        hint = "remove the comma before it"
    elif error.msg == "Extra data" and doc[at] == ",":
        hint = "leave out the comma behind the row" if line else "put the rows into one list: [{...}, {...}]"
    elif at >= len(doc) or error.msg.startswith("Unterminated string"):
        hint = "a quotation mark is missing there, or the file ends early: copy or download it again"
    elif not doc[:at].strip() and not line:
        hint = f"it begins with {doc[at : at + 20]!r}; if it is a table, name it .csv"
    raise DataError(f"is not JSON: {error.msg.lower()} ({where})", hint, file=path) from None


# -------------------------------------------------------------------------------------------------------- as a whole


def _whole(text: str, path: Path) -> dict[str, Any] | None:
    """The object that a text is; None if another follows it."""
    if text.count(",") + text.count("[") + text.count("{") > MAX_VALUES:
        raise DataError(
            f"is one object of more than {MAX_VALUES:,} values", "write it as JSON Lines, a row a line", file=path
        )
    try:
        return strict_json.loads(text, max_depth=MAX_DEPTH)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.startswith("{", error.pos):
            return None
        _not_json(error, path)
    except ValueError as error:
        raise DataError(f"is not usable JSON: {error}", "correct that", file=path) from None


def _rows_of_object(value: dict[str, Any], path: Path) -> tuple[Rows, str]:
    """The rows in an object, and what kind of object it is."""
    lists = {key: inner for key, inner in value.items() if isinstance(inner, list) and _holds(inner, dict)}
    if {"columns", "data"} <= value.keys() and _holds(value["columns"], str) and _holds(value["data"], list):
        return _numbered(_zip(value["columns"], row, path) for row in value["data"]), "JSON of pandas (split)"
    if not shapes.names_columns(value) and are_sentences(value) and all(map(_is_answer, value.values())):
        pairs = ({"question": question, "answer": answer} for question, answer in value.items())
        return _numbered(pairs), "JSON of questions and answers"
    columns = {key: inner for key, inner in value.items() if isinstance(inner, list) and not _holds(inner, dict)}
    if not lists and len(columns) > 1:
        return _numbered(_columns(columns, path)), "JSON by columns"
    if shapes.looks_like_a_row(value):
        return _numbered([value]), "JSON"
    if lists:
        return _under_a_key(lists, path)
    nested = {key: inner for key, inner in value.items() if isinstance(inner, dict)}
    if len(nested) > 1 and len(nested) == len(value):
        return _pandas(nested, path)
    if len(nested) == 1:
        key, inner = next(iter(nested.items()))
        rows, how = _rows_of_object(inner, path)
        return rows, f"{how} in {key[:40]!r}"
    if len(value) > 1 and all(isinstance(each, str) for each in value.values()):
        pairs = ({"question": question, "answer": answer} for question, answer in value.items())
        return _numbered(pairs), "JSON of questions and answers"
    return _numbered([value]), "JSON"


def _is_answer(value: Any) -> bool:
    return isinstance(value, str | int | float) or (_holds(value, str) and all(isinstance(each, str) for each in value))


def _under_a_key(lists: dict[str, list[Any]], path: Path) -> tuple[Rows, str]:
    """The rows in the one list that has any."""
    lists = {
        key: [row["row"] if isinstance(row, dict) and isinstance(row.get("row"), dict) else row for row in rows]
        for key, rows in lists.items()
    }
    found = {key: rows for key, rows in lists.items() if shapes.looks_like_a_row(rows[0])}
    key, rows = next(iter((found or lists).items()))
    if len(found or lists) > 1:
        raise DataError(
            f"holds several lists of rows: {shown(found or lists)}",
            "keep one, or put each into a separate file",
            file=path,
        )
    return _numbered(rows), f"JSON under {key[:40]!r}"


def _pandas(nested: dict[str, dict[str, Any]], path: Path) -> tuple[Rows, str]:
    """The rows of what pandas writes as an object of objects: by columns, or by rows."""
    first = next(iter(nested.values()))
    keys = list(first)
    scalars = bool(first) and all(not isinstance(each, dict) for each in first.values())
    numbered = all(key.isdigit() for key in keys) or shapes.names_columns(nested)
    if scalars and numbered and all(list(inner) == keys for inner in nested.values()):
        return _numbered(_columns({key: list(inner.values()) for key, inner in nested.items()}, path)), "JSON of pandas"
    return _numbered(nested.values()), "JSON of pandas (index)"


def _holds(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], kind)


def _columns(columns: dict[str, list[Any]], path: Path) -> Iterator[dict[str, Any]]:
    lengths = {key: len(inner) for key, inner in columns.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{key[:40]} {count:,}" for key, count in list(lengths.items())[:SHOWN])
        raise DataError(f"has columns of different lengths ({counts})", "give each column as many values", file=path)
    for row in zip(*columns.values(), strict=True):
        yield dict(zip(columns, row, strict=True))


def _zip(columns: list[str], row: Any, path: Path) -> dict[str, Any]:
    if not isinstance(row, list) or len(row) != len(columns):
        raise DataError(f"has a row that is not {len(columns)} values, one a column", "write it again", file=path)
    return dict(zip(columns, row, strict=True))


def _numbered(rows: Iterable[Any]) -> Rows:
    return iter(enumerate(rows, 1))
