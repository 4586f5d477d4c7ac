"""Which files the process opens."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_watching: list[set[str]] = []
"""What is being filled; an audit hook cannot be taken out again."""
_hooked: list[bool] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _watching and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.fsdecode(arguments[0])
        for opened in _watching:
            opened.add(path)


@contextmanager
def opened_files() -> Iterator[set[str]]:
    """The paths of all files that Python code of this process opens in the meantime, as they were given."""
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked.append(True)
    opened: set[str] = set()
    _watching.append(opened)
    try:
        yield opened
    finally:
        _watching.remove(opened)
