"""The evidence about a server and about one question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Way = Literal["plain", "greedy", "exact"]
"""How a server is asked. `plain`: text or messages as a client sends them, with the server's own defaults. `greedy`: the same, with every sampling
parameter sent. `exact`: greedy, and the prompt past the server's template (token ids, or Ollama's raw text)."""
WAYS: tuple[Way, ...] = ("plain", "greedy", "exact")
TOP = 20
"""Tokens whose log-probabilities are asked for at each position; OpenAI's and Ollama's limit."""

Listed = tuple[tuple[str, int | None, float], ...]
"""The most probable tokens of one position: (text, id where the server gives it, natural log-probability)."""


@dataclass(frozen=True)
class ServerFacts:
    """What a server reports about itself."""

    kind: str
    """`llama.cpp`, `Ollama` or `OpenAI-compatible`."""
    model: str
    context: int | None = None
    """Tokens of one request's prompt and answer."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Sampling parameters that apply where a request names none; empty: not reported."""
    template: str | None = None
    """Ollama's template, in Go's language."""


@dataclass(frozen=True)
class Put:
    """One question as it can be sent."""

    question: str
    text: str
    """The whole prompt, rendered; of a chat without what the server's template adds: empty."""
    messages: list[dict[str, str]]
    ids: list[int]
    """The prompt's token ids in our own answers."""


@dataclass(frozen=True)
class Reply:
    """A server's answer to one request."""

    text: str = ""
    finish: Literal["stop", "length", "error"] = "stop"
    prompt_tokens: int | None = None
    tokens: int | None = None
    ids: tuple[int, ...] | None = None
    """Generated token ids, end token included, where the server gives them."""
    listed: tuple[Listed, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Expected:
    """Our own answer to one question."""

    id: str
    prompt_ids: list[int]
    answer_ids: list[int]
    text: str
    is_whole: bool
    """It ended by an end token, not at the limit."""


@dataclass(frozen=True)
class Observed:
    """The server's replies to one question, by way of asking; a way that was not needed is missing."""

    replies: Mapping[Way, Reply]
    prompt_ids: list[int] | None = None
    """Of the plain way, where the server can be asked for them."""


class Server(Protocol):
    """A running server."""

    def facts(self) -> ServerFacts:
        """What it reports about itself; ModelError if it cannot be reached or does not serve the model."""
        ...

    def ask(self, put: Put, way: Way) -> Reply:
        """One answer; a request that fails is a reply with an error."""
        ...

    def prompt_ids(self, put: Put) -> list[int] | None:
        """The token ids of a question asked in the plain way, by the server's tokenizer; None: not reported."""
        ...

    def close(self) -> None:
        """Closes the connections."""
        ...
