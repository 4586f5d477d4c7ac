"""A benchmarking harness for fine-tuned question answering models."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["Run", "evaluate", "load"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: `harness --help` must not wait for it.
    if name in __all__:
        from harness import api

        return getattr(api, name)
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
