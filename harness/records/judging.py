"""What a judge model says of two answers, and how far people agree with it."""

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
    """Questions on which the two answered otherwise, and the judge could be read in both orders."""
    for_left: int
    for_right: int
    neither: int
    """It said so, or preferred the one in one order and the other in the other."""
    swayed: int
    """Of `neither`: it preferred the same place in both orders."""
    unclear: int
    """Questions whose reply could not be read, or failed; in none of the counts above."""
    delta: float | None
    """Share for left minus share for right."""
    ci95: Interval | None
    p: float | None
    kappa: float | None
    """Cohen's, with people, on the questions where both preferred one; None: people have not judged enough of them."""
    kappa_ci95: Interval | None
    n_people: int
    """Questions that `kappa` rests on."""
