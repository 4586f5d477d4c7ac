"""Normalised questions and answers, each worked out once in a stage that asks for the same texts many times.

Grouping, the sides and their account all compare normalised texts. `remembered` keeps those of a stage: at most as much as the QA files hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from harness.metrics.normalize import normalize_question

SYMBOL = re.compile(r"[%$+<=>*/\\|&^~@#]")
INITIAL = re.compile(r"\.[A-Za-z]")
DIGIT = re.compile(r"[0-9]")
NUMBER = re.compile(r"[.:,-][0-9]|[0-9](?:-| [A-Z])")
"""Without these four an ASCII text has no token but runs of letters and digits (`normalize_question`)."""
LETTERS = {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}

_known: ContextVar[dict[str, str] | None] = ContextVar("normalised texts", default=None)


def normalised(text: str) -> str:
    """`normalize_question` of a text, remembered inside `remembered`."""
    known = _known.get()
    if known is None:
        return _normalised(text)
    found = known.get(text)
    if found is None:
        found = known[text] = _normalised(text)
    return found


def _normalised(text: str) -> str:
    """`normalize_question`, in a tenth of its time where a text is plain words."""
    plain = (
        text.isascii()
        and not SYMBOL.search(text)
        and not ("." in text and INITIAL.search(text))
        and not (DIGIT.search(text) and NUMBER.search(text))
    )
    return (plain and " ".join(text.translate(LETTERS).split())) or normalize_question(text)


@contextmanager
def remembered() -> Iterator[None]:
    """Within it every normalised text is kept; all are forgotten at its end."""
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)
