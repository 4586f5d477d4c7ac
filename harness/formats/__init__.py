"""What is exported: one writer per format, found by name without importing the others.

A writer takes the sources, a path that does not exist yet, and its own name; it writes the artifact there, opens it again, and tells what it found.
A new format is one function and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from harness.config import GGUF_TYPES
from harness.errors import ConfigError

FORMATS: dict[str, str] = {
    "merged_16bit": "harness.formats.merged:export_16bit",
    "merged_4bit": "harness.formats.merged:export_4bit",
    **{f"gguf_{type}": "harness.formats.gguf:export" for type in GGUF_TYPES},
}
"""Format name -> `module:function` of its writer."""


@dataclass(frozen=True)
class Sources:
    """What formats are made from."""

    base: Path
    adapter: Path
    merged_16bit: Path
    """Written first: every other format is made from it."""
    threads: int = 0
    llama_cpp: Path | None = None
    progress: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class Checked:
    """What a writer found when it opened its artifact again."""

    tensors: int
    checks: list[str]
    """What was verified, in words."""


Writer = Callable[[Sources, Path, str], Checked]


def find(name: str) -> Writer:
    """The writer of that format, imported only now; ConfigError if there is none."""
    if name not in FORMATS:
        raise ConfigError(f"no format {name!r}", f"use one of {', '.join(FORMATS)}")
    module, _, attribute = FORMATS[name].partition(":")
    return getattr(import_module(module), attribute)
