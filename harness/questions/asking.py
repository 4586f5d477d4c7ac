"""The text that is asked: a question with the passage it is about."""

from __future__ import annotations

from typing import Protocol


class HasContext(Protocol):
    """What `asked` reads: a row of a QA file, or a question of a split."""

    @property
    def question(self) -> str: ...  # noqa: D102

    @property
    def context(self) -> str | None: ...  # noqa: D102


def asked(question: HasContext) -> str:
    """The context, a blank line and the question; the question alone where there is no context."""
    return f"{question.context}\n\n{question.question}" if question.context else question.question
