"""GGUF files: their types, and how one is opened by llama.cpp."""

from __future__ import annotations

from pathlib import Path

from harness import variants
from harness.backends import Execution, Generation, Source
from harness.backends.llamacpp import LlamaCppBackend


def load(path: Path, slots: int = 1) -> LlamaCppBackend:
    return LlamaCppBackend(Source(path), Generation(16, (), 0), Execution(slots=slots, threads=1))


def gguf_types() -> list[str]:
    """Every GGUF type that export can write, without its prefix: `q8_0`."""
    return [name.removeprefix(variants.GGUF) for name in variants.VARIANTS if variants.is_gguf(name)]
