"""Tables: CSV with commas, semicolons, tabs or bars, Excel's `sep=` line, and the cells of a sheet."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from harness.errors import DataError
from harness.questions.readers.limits import MAX_COLUMNS, MAX_ROW_CHARACTERS

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SEP_LINE = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)
RULE = re.compile(r"\s*:?-{3,}:?\s*")
"""A cell of the line below the header of a Markdown table."""
Rows = Iterator[tuple[int, dict[str, Any]]]


def read_csv(text: str, path: Path) -> tuple[Rows, str]:
    """The rows of a separated text as (number, values), and how they are separated; rows are counted without the header."""
    csv.field_size_limit(MAX_ROW_CHARACTERS)
    lines = _lines(text, path)
    first = next((line for line in lines if line.strip()), "")
    if found := SEP_LINE.fullmatch(first):
        separator = found[1]
    else:
        separator = max(SEPARATORS, key=lambda each: len(next(csv.reader([first], delimiter=each), [])))
        lines = itertools.chain([first], lines)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    how = f"separated by {SEPARATORS.get(separator, repr(separator))}"
    found = _csv_rows(reader, path)
    return read_rows(_markdown(found) if separator == "|" else found, path), how


def _markdown(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """Cells between bars, without the spaces around them, and without the line below a Markdown table's header."""
    for row in rows:
        if not all(RULE.fullmatch(cell) for cell in row if cell.strip()):
            yield [cell.strip() for cell in row]


def _csv_rows(reader: Any, path: Path) -> Iterator[list[Any]]:
    try:
        yield from filter(None, reader)  # a blank line is not a row
    except csv.Error as error:
        raise DataError(
            f"is not CSV ({error}, near line {reader.line_num})", "check the quotes there", file=path
        ) from None


def read_rows(lists: Iterable[list[Any]], path: Path) -> Rows:
    """Lists of cells, the header first, as (number, values); a column without a name is left out, an empty row has no values."""
    cells = iter(lists)
    header = next((row for row in cells if any(cell not in (None, "") for cell in row)), None)
    if header is None:
        raise DataError("has no rows", "give it rows with a question and an answer", file=path)
    names = ["" if name is None else str(name).strip() for name in header]
    if len(names) > MAX_COLUMNS:
        raise DataError(f"has {len(names):,} columns", f"keep {MAX_COLUMNS:,} at most", file=path)
    named = [name for name in names if name]
    if len(set(named)) < len(named):
        twice = next(name for at, name in enumerate(named) if name in named[:at])
        raise DataError(f"has two columns of one name, {twice[:80]!r}", "name each column once", file=path)
    first = dict.fromkeys(named)
    hint = "put a field that contains the separator into quotes"
    if len(named) == 1:
        hint = f"the first line names one column only, {named[0][:60]!r}; write it as question,answer"
    for number, row in enumerate(cells, 1):
        if any(cell not in (None, "") for cell in row[len(names) :]):
            raise DataError(
                "has more fields than there are columns",
                hint,
                file=path,
                row=number,
            )
        values = {name: cell for name, cell in zip(names, row, strict=False) if name}
        yield number, first | values if any(v not in (None, "") for v in row) else {}


def _lines(text: str, path: Path) -> Iterator[str]:
    for number, line in enumerate(io.StringIO(text, newline=""), 1):
        if len(line) > MAX_ROW_CHARACTERS:
            raise DataError(
                f"has {len(line):,} characters on line {number}", "put each row on a separate line", file=path
            )
        yield line
