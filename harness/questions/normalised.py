"""Normalised questions and answers, each worked out once in a stage that asks for the same texts many times.

Grouping, the sides and their account all compare normalised texts. `remembered` keeps those of a stage: at most as much as the QA files hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from harness.metrics.normalize import normalize_question

_known: ContextVar[dict[str, str] | None] = ContextVar("normalised texts", default=None)


def normalised(text: str) -> str:
    """`normalize_question` of a text, remembered inside `remembered`."""
    known = _known.get()
    if known is None:
        return normalize_question(text)
    found = known.get(text)
    if found is None:
        found = known[text] = normalize_question(text)
    return found


@contextmanager
def remembered() -> Iterator[None]:
    """Within it every normalised text is kept; all are forgotten at its end."""
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)
