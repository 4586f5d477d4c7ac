"""Data sets of the Hugging Face hub, or folders laid out like one: `hub:owner/name[/config][:split]`, through `datasets`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from harness.errors import DataError
from harness.questions.readers.containers import plain
from harness.questions.readers.limits import MAX_COLUMNS, MAX_ROWS, SHOWN, shown

PREFIX = "hub:"
DEFAULT_SPLIT = "train"


def is_hub(source: str) -> bool:
    """Whether a source names a data set of the hub."""
    return source.startswith(PREFIX)


def read(source: str) -> tuple[Iterator[tuple[int, dict[str, Any]]], str]:
    """The rows of `hub:owner/name[/config][:split]` as (number, values), and which split they are; `train`, or the only one, by default.

    Raises:
        DataError: `datasets` is not installed; the data set is out of reach, has no such split, or too many rows.
    """
    name, _, split = source.removeprefix(PREFIX).partition(":")
    if not name:
        raise DataError("names no data set", "write it as hub:owner/name or hub:owner/name:split", file=source)
    try:
        found = _load(name)
    except ImportError:
        raise DataError("needs the package datasets", "pip install datasets, or give a file", file=source) from None
    except Exception as error:  # of a dozen packages: network, hub, file formats
        raise _not_loaded(error, name, source) from None
    if not split:
        if DEFAULT_SPLIT not in found and len(found) > 1:
            raise DataError(
                f"has several splits: {shown(found)}",
                f"name one, as in {PREFIX}{name}:{next(iter(found))}",
                file=source,
            )
        split = DEFAULT_SPLIT if DEFAULT_SPLIT in found else next(iter(found))
    if split not in found:
        raise DataError(f"has no split {split[:60]!r}: found {shown(found)}", "name one of these", file=source)
    rows = found[split]
    if len(rows) > MAX_ROWS:
        raise DataError(
            f"has {len(rows):,} rows, more than {MAX_ROWS:,}", "save a sample of it into a file", file=source
        )
    if len(rows.column_names) > MAX_COLUMNS:
        raise DataError(f"has {len(rows.column_names):,} columns", "save those that matter into a file", file=source)
    numbered = ((number, {key: plain(value) for key, value in row.items()}) for number, row in enumerate(rows, 1))
    return numbered, f"split {split}"


@cache
def _load(name: str) -> Any:
    """Every split of a data set, loaded once in a process: a training and a test side are often two splits of one."""
    import datasets

    path, config = name, None
    if not Path(name).exists() and name.count("/") == 2:
        path, _, config = name.rpartition("/")
    # It warns of each try of five; the outcome is reported once.
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return datasets.load_dataset(path, config)
    finally:
        logger.setLevel(before)


def _not_loaded(error: Exception, name: str, source: str) -> DataError:
    said = (str(error).splitlines() or [""])[0][:160]
    if "Config name is missing" in said:
        names = ", ".join(re.findall(r"'([^']{1,60})'", str(error))[:SHOWN]) or "see its page on the hub"
        hint = f"name one, as in {PREFIX}{name}/CONFIG"
        return DataError(f"has several configs: {names}", hint, file=source)
    return DataError(
        f"cannot be loaded from the hub ({type(error).__name__}: {said})",
        "check the name, the network and, for a gated data set, HF_TOKEN; or save it as a file",
        file=source,
    )
