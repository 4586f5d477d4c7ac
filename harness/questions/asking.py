"""A row as it is asked and grouped: a question with the passage it is about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.metrics.normalize import normalize_question
from harness.questions.rows import Row
from harness.storage import sha256_json


def text_of(row: Row) -> str:
    """The context, a blank line and the question; the question alone where there is no context."""
    return f"{row.context}\n\n{row.question}" if row.context else row.question


def by_passage(row: Row) -> Row:
    """The row with its passage as group label, if it has a passage and no label: questions on one passage stay on one side."""
    if row.context is None or row.group is not None:
        return row
    return replace(row, group=f"context-{sha256_json(normalize_question(row.context))[:12]}")


def kept(row: Row) -> dict[str, Any]:
    """`Question.extra`: unknown columns, and what the file says beyond question and answer."""
    extra = dict(row.extra)
    if row.context is not None:
        extra["context"] = row.context
    if row.system is not None:
        extra["system"] = row.system
    return extra if row.answerable else extra | {"answerable": False}
