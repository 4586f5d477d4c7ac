"""A row as it is asked and grouped: a question with the passage it is about, and its own system line."""

from __future__ import annotations

from typing import Any

from harness.questions.rows import Row
from harness.records import Question


def text_of(row: Row) -> str:
    """The context, a blank line and the question; the question alone where there is no context."""
    return f"{row.context}\n\n{row.question}" if row.context else row.question


def system_of(question: Question) -> str | None:
    """The question's own system line, which stands in the place of `prompt.system`; None: it has none."""
    system = question.extra.get("system")
    return system if isinstance(system, str) and system.strip() else None


def kept(row: Row) -> dict[str, Any]:
    """`Question.extra`: unknown columns, and what the file says beyond question and answer."""
    extra = dict(row.extra)
    if row.context is not None:
        extra["context"] = row.context
    if row.system is not None:
        extra["system"] = row.system
    return extra if row.answerable else extra | {"answerable": False}
