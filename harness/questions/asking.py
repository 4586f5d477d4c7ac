"""A row as it is asked and grouped: a question with the passage it is about."""

from __future__ import annotations

from typing import Any

from harness.questions.rows import Row


def text_of(row: Row) -> str:
    """The context, a blank line and the question; the question alone where there is no context."""
    return f"{row.context}\n\n{row.question}" if row.context else row.question


def kept(row: Row) -> dict[str, Any]:
    """`Question.extra`: unknown columns, and what the file says beyond question and answer."""
    extra = dict(row.extra)
    if row.context is not None:
        extra["context"] = row.context
    if row.system is not None:
        extra["system"] = row.system
    return extra if row.answerable else extra | {"answerable": False}
