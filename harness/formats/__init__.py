"""Export formats: one writer each, found by name without importing the others.

A writer takes the sources, a path that does not exist yet, and its own name; it writes the artifact there, opens it again, and returns what it
found. A new format is one function and one entry of `harness.variants.VARIANTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from harness import variants
from harness.errors import ConfigError


@dataclass(frozen=True)
class Sources:
    """The inputs of the writers."""

    base: Path
    adapter: Path
    merged_16bit: Path
    """Written first: every other format is made from it."""
    threads: int = 0
    llama_cpp: Path | None = None
    importance: Callable[[], Mapping[str, Any] | None] = lambda: None
    """Measures the importance matrix, or reads it where it was measured (`harness.formats.importance`)."""
    without_bos: bool = False
    """Prompts are chats that begin without BOS, whatever the tokenizer adds to a text."""


@dataclass(frozen=True)
class Checked:
    """The result of reloading and checking an artifact."""

    tensors: int
    checks: list[str]
    """What was verified, in words."""


Writer = Callable[[Sources, Path, str], Checked]


def find(name: str) -> Writer:
    """The writer of that format, imported on demand; ConfigError if there is none."""
    if name not in variants.exported():
        raise ConfigError(f"no format {name!r}", f"use one of {', '.join(variants.exported())}")
    module, _, attribute = variants.VARIANTS[name].writer.partition(":")
    return getattr(import_module(module), attribute)
