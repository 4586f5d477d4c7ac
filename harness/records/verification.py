"""What verify writes: how a running server's answers compare with the run's, and what is wrong with it."""

from __future__ import annotations

from typing import Literal

from harness.records.base import SCHEMA_VERSION, Fraction, Manifest, Name, Parameters, Record, SchemaVersion

CulpritCode = Literal["bos", "template", "stop", "context", "sampling", "weights"]


class Culprit(Record):
    """One reason why a server answers otherwise than was measured."""

    code: CulpritCode
    message: str
    """What is wrong, with what shows it."""
    hint: str
    """What to change."""
    questions: int
    """How many of the asked ones show it; all of them for a setting of the server's."""


class ServedAnswer(Record):
    """One question as the server answered it."""

    id: str
    ours: str
    plain: str
    """Asked as a client asks, with the server's own defaults."""
    same: bool
    error: str = ""


class Verification(Manifest):
    """`verification/<variant>.json`, written last."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    variant: Name
    server: str
    """Its address without secrets, or `ollama:NAME`."""
    kind: str
    model: str
    api: Literal["completions", "chat"]
    context: int | None
    defaults: Parameters
    """Sampling parameters of the server, where it reports them."""
    n: int
    agreement: Fraction
    """Share of the answered questions with the same text."""
    answered: int
    mean_kl: float | None
    """Nats, ours from the server's, over its listed tokens and the rest taken together: a lower bound; None: no log-probabilities."""
    max_kl: float | None
    positions: int
    """Next-token distributions that were compared."""
    culprits: list[Culprit]
    passed: bool
    answers: list[ServedAnswer]
