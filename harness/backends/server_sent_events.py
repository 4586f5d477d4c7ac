"""Streams of OpenAI-compatible servers: lines of server-sent events in, pieces of an answer out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from harness.backends.pieces import Piece
from harness.storage import strict_json

LONGEST_LINE = 1_000_000
MOST_LINES = 1_000_000
"""Limit of one answer: a server might never stop."""


def pieces(lines: Iterable[str]) -> Iterator[Piece]:
    """The pieces of one answer of `/completions` or `/chat/completions` with `stream: true`.

    Comments, empty lines and other fields than `data` are passed over, as the standard has it (WHATWG HTML, server-sent events).

    Raises:
        ValueError: a line is not JSON, or longer than any token's; KeyError, TypeError, AttributeError: an event has another shape.
    """
    reason = None
    for number, line in enumerate(lines):
        if number > MOST_LINES or len(line) > LONGEST_LINE:
            raise ValueError("the answer does not end")
        field, _, value = line.partition(":")
        if field != "data":
            continue
        if (value := value.removeprefix(" ")) == "[DONE]":
            break
        event = strict_json.loads(value)
        if (error := event.get("error")) is not None:
            message = error.get("message", error) if isinstance(error, dict) else error
            yield Piece(end="error", error=" ".join(str(message).split())[:200])
            return
        for choice in event.get("choices") or []:
            yield from _of_choice(choice)
            reason = choice.get("finish_reason") or reason
    if reason is None:
        yield Piece(end="error", error="the server broke off")
    else:
        yield Piece(end="length" if reason == "length" else "stop")


def _of_choice(choice: dict[str, Any]) -> Iterator[Piece]:
    text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
    chances = _chances(choice.get("logprobs") or {})
    if text or chances:
        yield Piece(text=str(text or ""), logprob=sum(chances) / len(chances) if chances else None)


def _chances(found: dict[str, Any]) -> list[float]:
    """Log-probabilities of an event's tokens, in the form of either route."""
    entries = found.get("content")
    values = [e.get("logprob") for e in entries] if isinstance(entries, list) else found.get("token_logprobs") or []
    return [float(v) for v in values if isinstance(v, int | float)]
