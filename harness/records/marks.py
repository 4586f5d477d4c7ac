"""People's marks and blind votes on answers, and what follows from them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.records.base import SCHEMA_VERSION, Interval, Manifest, Name, Record, SchemaVersion, Verdict
from harness.records.scoring import MetricValue


class Mark(Record):
    """A line of `marks.jsonl`: right, wrong or unsure, of one answer; or a blind vote between two. Saved by the report's page."""

    kind: Literal["mark", "vote"]
    split_id: str
    id: str
    """The question."""
    answer: str
    """The text that was judged; of a vote the answer of `variant`."""
    variant: Name
    """The variant that gave it; variants with the same text get the same mark."""
    mark: Literal["right", "wrong", "unsure"] | None = None
    note: str = Field(default="", max_length=10_000)
    other: Name | None = None
    """Vote: the other variant, `other_answer` its text."""
    other_answer: str | None = None
    prefers: Literal["variant", "other", "neither"] | None = None


class HumanPair(Record):
    """Two variants by people's marks, on the questions on which both were marked right or wrong: left minus right."""

    left: Name
    right: Name
    delta: float | None
    ci95: Interval | None
    p: float | None
    """Two-sided, by sign flips of whole groups."""
    verdict: Verdict
    n: int
    wins: int
    losses: int


class Votes(Record):
    """Blind votes between two variants."""

    left: Name
    right: Name
    for_left: int
    for_right: int
    neither: int
    p: float | None
    """Two-sided, for equal preference, by sign flips of whole groups."""


class Agreement(Record):
    """How far a metric agrees with people: a score of at least 0.5 counts as `right`."""

    metric: str
    kappa: float | None
    """Cohen's kappa; 1: perfect agreement, 0: no more than chance. None: people, or the metric, gave one verdict only."""
    ci95: Interval | None
    agreement: float
    """Share of the answers on which both agree."""
    n: int


class MarksResult(Manifest):
    """`reports/<run>/marks.json`: the metric `human`, and how the other metrics agree with it."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    run: str
    split_id: str
    marks: int
    """Marks in use, `unsure` ones included; `votes` likewise."""
    votes: int
    left_out: dict[str, int] = {}
    """Reason -> number of marks that are not used."""
    human: dict[Name, MetricValue]
    pairs: list[HumanPair]
    preferences: list[Votes]
    agreements: list[Agreement]
