"""What verify writes: a running server's answers compared with the run's, and the causes of differences."""

from __future__ import annotations

from typing import Literal

from harness.records.base import SCHEMA_VERSION, Fraction, Manifest, Name, Parameters, Record, SchemaVersion

CulpritCode = Literal["bos", "template", "stop", "context", "sampling", "weights"]


class Culprit(Record):
    """One reason why a server's answers differ from the measured ones."""

    code: CulpritCode
    message: str
    """What is wrong, with the evidence."""
    hint: str
    """What to change."""
    questions: int
    """Number of questions that show it; all of them for a setting of the server."""


class ServedAnswer(Record):
    """One question as the server answered it."""

    id: str
    ours: str
    plain: str
    """Asked like a client, with the server's own defaults."""
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
