"""The pieces of a streamed answer, and the protocol of backends that can stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from harness.records import FinishReason


@dataclass(frozen=True)
class Piece:
    """One step of a streamed answer: a token or, from a server that gives no token ids, a piece of text; the last one holds the finish reason."""

    token: int | None = None
    """Never an end token."""
    logprob: float | None = None
    """Natural logarithm of the token's probability when it was chosen; None: the backend does not give it."""
    text: str = ""
    """Only from backends that do not give ids."""
    end: FinishReason | None = None
    """Set on the last piece, which holds no token."""
    error: str | None = None


@runtime_checkable
class StreamingBackend(Protocol):
    """A backend that can stream its answers."""

    def stream(self, prompt: Any) -> Iterator[Piece]:
        """The answer to one prompt of the form that the backend takes, by the same arithmetic as `answer`; closing it early ends the work.

        The last piece has `end`. A question that fails ends with `end="error"`; an error of the whole model raises ModelError.
        """
        ...
