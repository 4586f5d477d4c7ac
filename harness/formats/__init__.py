"""What is exported: one module per family, found by format name without importing the others.

Every entry writes one artifact and is reached through `find`; a new format is one function and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from harness.config import GGUF_TYPES
from harness.errors import ConfigError

FORMATS: dict[str, str] = {
    # Adapter and merged models: their lines stand here.
    **{f"gguf_{type}": "harness.formats.gguf:write" for type in GGUF_TYPES},
}
"""Format name -> `module:function` of its writer."""


def find(name: str) -> Callable[..., Any]:
    """The writer of that format, imported only now; ConfigError if there is none."""
    if name not in FORMATS:
        raise ConfigError(f"no format {name!r}", f"use one of {', '.join(FORMATS)}")
    module, _, attribute = FORMATS[name].partition(":")
    return getattr(import_module(module), attribute)
