"""What compare decides from its own numbers: whether to ship, and which file."""

from __future__ import annotations

from typing import Literal

from harness.records.base import Interval, Name, Record

ShipCheckKind = Literal["gain", "loss", "size", "speed", "kind", "alarm"]
ShipVerdict = Literal["pass", "fail", "unknown"]


class ShipCheck(Record):
    """One limit that a variant was checked against."""

    kind: ShipCheckKind
    verdict: ShipVerdict
    message: str
    """What was found, to be read after the variant's name: `loses at most 2.7 points ...`."""
    further_questions: int | None = None
    """About how many more held-out questions would decide it four times in five, if the measured difference is the true one.

    For `unknown`: whether the limit is kept. For a loss that passes but may exceed `compare.margin`: whether it is below that.
    """


class ShipCandidate(Record):
    """One variant that could be shipped."""

    variant: Name
    verdict: ShipVerdict
    """Pass: it keeps every limit. Fail: it surely breaks one. Unknown: anything else."""
    gain: float | None = None
    """Mean of the primary metric minus the base's, on the questions that both scored."""
    gain_ci95: Interval | None = None
    loss_at_most: float | None = None
    """The most it may lose against `Shipping.reference`, by the 95% interval; None for the reference, and where it is unknown."""
    allowed_loss: float | None = None
    checks: list[ShipCheck]


class Shipping(Record):
    """Whether to ship, which variant, the reasons, and the next step."""

    decision: Literal["ship", "do not ship", "cannot tell"]
    variant: Name | None = None
    """What to ship."""
    title: str
    """`Ship: yes, as GGUF Q8_0`, `Do not ship` or `Cannot tell yet`."""
    reason: str
    """One sentence."""
    next_step: str
    """One sentence."""
    further_questions: int | None = None
    """The number in `next_step`, where it is about more questions."""
    limits: str
    """The limits that decided, in words, and whether they are defaults."""
    base: str | None = None
    """The variant that gains are measured against; None: no base answered."""
    reference: str | None = None
    """The variant that losses are measured against."""
    candidates: list[ShipCandidate] = []


class ReportTitle(Record):
    """`reports/<run>/title.json`: the user's own title and note for a run."""

    title: str = ""
    note: str = ""
