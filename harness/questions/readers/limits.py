"""Limits on untrusted files, which must not exhaust memory or time."""

from collections.abc import Iterable

MAX_BYTES = 100_000_000
"""Of a file, packed and unpacked."""
MAX_ROWS = 1_000_000
MAX_ROW_CHARACTERS = 1_000_000
MAX_COLUMNS = 1_000
MAX_VALUES = 5_000_000
"""Of a JSON document that is read as a whole (an object, not a list of rows), counted by its commas and brackets."""
SHOWN = 12
"""Columns that a message names."""


def shown(names: Iterable[str]) -> str:
    """Names for a message, cut where they are many or long."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name[:60] for name in names[:SHOWN]) + more
