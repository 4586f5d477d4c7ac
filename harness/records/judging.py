"""A judge model's preference between two answers, and its agreement with people."""

from __future__ import annotations

from typing import Literal

from harness.records.base import SCHEMA_VERSION, Interval, Manifest, Name, Record, SchemaVersion

Reply = Literal["first", "second", "neither", "unclear"]


class JudgeReply(Record):
    """A line of `runs/<run>/judge.jsonl`: the judge's reply to one question with two answers in one order."""

    key: str
    """sha256 of the judge's model, the prompt, the question, its reference and both answers in their order."""
    id: str
    reply: Reply


class JudgeResult(Manifest):
    """`reports/<run>/judge.json`: a judge model between two variants, each question asked in both orders."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    run: str
    split_id: str
    signature: str
    """Model, version and hash of the prompt, orders."""
    left: Name
    right: Name
    n: int
    """Questions with different answers for which the judge's replies could be read in both orders."""
    for_left: int
    for_right: int
    neither: int
    """The judge said so, or its preference changed with the order."""
    swayed: int
    """Of `neither`: it preferred the same position in both orders."""
    unclear: int
    """Questions whose reply could not be read, or failed; in none of the counts above."""
    delta: float | None
    """Share for left minus share for right."""
    ci95: Interval | None
    p: float | None
    kappa: float | None
    """Cohen's kappa with people, on the questions where both have a preference; None: people have not judged enough of them."""
    kappa_ci95: Interval | None
    n_people: int
    """Questions that `kappa` rests on."""
