"""Bytes -> text, a table or records: gzip, encodings, parquet and xlsx, told apart by their first bytes."""

from __future__ import annotations

import codecs
import datetime
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import DataError
from harness.questions.readers.limits import MAX_BYTES, MAX_COLUMNS
from harness.questions.rows import BLANK

ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # UTF-32's little-endian mark begins with UTF-16's, so it is looked for first.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
GZIP, PARQUET, ZIP, OLE = b"\x1f\x8b", b"PAR1", b"PK\x03\x04", b"\xd0\xcf\x11\xe0"
OTHERS = (
    (b"BZh", "is packed with bzip2", "unpack it first, or pack it with gzip"),
    (b"\xfd7zXZ\x00", "is packed with xz", "unpack it first, or pack it with gzip"),
    (b"\x28\xb5\x2f\xfd", "is packed with zstd", "unpack it first, or pack it with gzip"),
    (OLE, "is an Excel file of the old kind (.xls)", "save it as .xlsx or CSV"),
    (b"ARROW1", "is an Arrow file", "save it as parquet: Dataset.to_parquet(...)"),
    (b"SQLite format 3", "is an SQLite database", "export the table as CSV"),
    (b"\x80\x03", "is a Python pickle, which may run code", "write it again with to_parquet or to_json"),
    (b"\x80\x04", "is a Python pickle, which may run code", "write it again with to_parquet or to_json"),
    (b"\x80\x05", "is a Python pickle, which may run code", "write it again with to_parquet or to_json"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself", "fetch the file with git lfs pull"),
    (b"%PDF", "is a PDF", "give a table or JSON of questions and answers"),
)
PARQUET_ROWS = 64
"""Rows that are decoded at once: a column of one repeated long text is much larger unpacked than in the file."""


def gunzip(data: bytes, path: Path) -> bytes:
    """The unpacked bytes; DataError if they are damaged, or more than a file may have."""
    parts, size = [], 0
    while data:
        unpacker = zlib.decompressobj(wbits=31)
        try:
            part = unpacker.decompress(data, MAX_BYTES - size + 1)
        except zlib.error as error:
            raise DataError(f"is not whole gzip ({error})", "pack it again", file=path) from None
        size += len(part)
        if size > MAX_BYTES:
            raise DataError(
                f"has more than {MAX_BYTES / 1e6:.0f} MB when unpacked", "sample it, or split it into files", file=path
            )
        if not unpacker.eof:
            raise DataError("is not whole gzip (it ends early)", "pack it again", file=path)
        parts.append(part)
        data = unpacker.unused_data.lstrip(b"\0")
    return b"".join(parts)


def refuse_others(data: bytes, path: Path) -> None:
    """Raises DataError, by name, for the kinds of file that are known and not read."""
    for magic, problem, hint in OTHERS:
        if data.startswith(magic):
            raise DataError(problem, hint, file=path)


def decode(data: bytes, path: Path) -> str:
    """The text of a file in UTF-8 or, by its byte order mark, UTF-16 or UTF-32."""
    encoding = next((name for mark, name in ENCODINGS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data[:4]:
        raise DataError("looks like UTF-16 without a byte order mark", "save it as UTF-8", file=path)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"is not {encoding.upper()} (byte {data[error.start]:#04x} on line {line})",
            "save it as UTF-8 (in Excel: as CSV UTF-8)",
            file=path,
        ) from None
    if text.lstrip().startswith("<"):
        raise DataError("is HTML or XML", "give JSON, JSON Lines, CSV, parquet or xlsx", file=path)
    if BLANK.fullmatch(text):
        raise DataError("is blank", "give it rows with a question and an answer", file=path)
    return text


def read_parquet(data: bytes, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a parquet file as (number, values).

    Raises:
        DataError: pyarrow is not installed, or the file is damaged or unpacks to more than a file may have.
    """
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise DataError("is parquet, which needs pyarrow", "pip install pyarrow", file=path) from None
    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        if len(file.schema_arrow.names) > MAX_COLUMNS:
            raise DataError(f"has {len(file.schema_arrow.names):,} columns", f"keep {MAX_COLUMNS:,} at most", file=path)
        number = size = 0
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, use_threads=False):
            size += batch.nbytes
            if size > MAX_BYTES:
                raise DataError(
                    f"has more than {MAX_BYTES / 1e6:.0f} MB when unpacked",
                    "sample it, or keep the columns of questions and answers only",
                    file=path,
                )
            for values in batch.to_pylist():
                number += 1
                yield number, {key: plain(value) for key, value in values.items()}
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"is not a whole parquet file ({str(error).splitlines()[0][:120]})", "write it again", file=path
        ) from None


def read_xlsx(data: bytes, path: Path) -> tuple[Iterator[list[Any]], str]:
    """The rows of an Excel file's first sheet that has any, as lists of cells, and which sheet that is.

    Raises:
        DataError: openpyxl is not installed, it is another ZIP file, or it unpacks to more than a file may have.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError):
        raise DataError("is not a whole xlsx or ZIP file", "save it again", file=path) from None
    if "xl/workbook.xml" not in {entry.filename for entry in entries}:
        raise DataError("is a ZIP file", "unpack it, and name the QA file in it", file=path)
    if sum(entry.file_size for entry in entries) > MAX_BYTES:
        raise DataError(f"has more than {MAX_BYTES / 1e6:.0f} MB when unpacked", "save it as CSV", file=path)
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise DataError("is xlsx, which needs openpyxl", "pip install openpyxl, or save it as CSV", file=path) from None
    try:
        _refuse_entities(archive, entries, path)
        book = load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # what the file says of its size may be anything
            if any(cell not in (None, "") for row in sheet.iter_rows(max_row=100, values_only=True) for cell in row):
                others = len(book.worksheets) - 1
                note = f"sheet {sheet.title!r}{f', {others} further not read' if others else ''}"
                return _sheet_rows(sheet, path), note
    except DataError:
        raise
    except Exception as error:  # openpyxl raises whatever its XML leads to
        raise _damaged_xlsx(error, path) from None
    raise DataError("has no rows", "give it rows with a question and an answer", file=path)


def _refuse_entities(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], path: Path) -> None:
    for entry in entries:
        if entry.filename.endswith((".xml", ".rels")):
            with archive.open(entry) as part:
                if b"<!DOCTYPE" in part.read(65_536):
                    raise DataError("holds XML with a DOCTYPE, which Excel does not write", "save it again", file=path)


def _sheet_rows(sheet: Any, path: Path) -> Iterator[list[Any]]:
    try:
        for row in sheet.iter_rows(values_only=True):
            cells = [plain(cell) for cell in row]
            while cells and cells[-1] in (None, ""):
                cells.pop()
            if len(cells) > MAX_COLUMNS:
                raise DataError(f"has {len(cells):,} columns", f"keep {MAX_COLUMNS:,} at most", file=path)
            yield cells
    except DataError:
        raise
    except Exception as error:  # as above
        raise _damaged_xlsx(error, path) from None


def _damaged_xlsx(error: Exception, path: Path) -> DataError:
    said = (str(error).splitlines() or [""])[0][:120]
    return DataError(f"is not a whole xlsx file ({type(error).__name__}: {said})", "save it again", file=path)


def plain(value: Any) -> Any:
    """A value of a typed table as JSON has it; None for what JSON cannot hold."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()  # how a sheet keeps a day
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    return None if isinstance(value, bytes | bytearray) else str(value)
