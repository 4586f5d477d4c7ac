"""What the gate reads and writes: the committed baseline and the decision."""

from __future__ import annotations

from typing import Literal

from harness.records.base import SCHEMA_VERSION, Fraction, Interval, Manifest, Name, Parameters, Record, SchemaVersion
from harness.records.provenance import Provenance, RecordedConfig


class BaselineQuestion(Record):
    """One held-out question in a baseline."""

    id: str
    group: str
    sha256: str
    """First 16 hex digits, of question, answer and references."""
    scores: dict[str, list[Fraction | None]]
    """Variant -> its scores in the alphabetical order of `Baseline.metrics`, rounded; None: unscored."""
    kind: str | None = None
    """As the split has it; None in baselines of earlier versions too."""


class BaselineVariant(Record):
    """One variant in a baseline."""

    prediction_key: str
    weights_sha256: str
    backend: str
    means: dict[str, float | None]
    """Metric -> mean; None if nothing was scored."""
    trainings: dict[str, list[float]] = {}
    """Metric -> means of further trainings of the recipe, with other seeds: they measure the variance between training seeds."""
    trainings_by_kind: dict[str, dict[str, list[float]]] = {}
    """Kind of question -> the same on the questions of that kind."""
    best: dict[str, float] = {}
    """Metric -> the best mean of this baseline and of those that it replaced, on these questions; empty: this one's own."""


class Baseline(Manifest):
    """`reports/baseline.json`: what a run scored, question by question, small enough to commit."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    run: str
    saved: str
    """UTC, ISO 8601; the only field that two saves of one run differ in."""
    split_id: str
    prompts_sha256: str
    generation: Parameters
    metrics: dict[str, str]
    """Metric -> signature."""
    variants: dict[Name, BaselineVariant]
    config: RecordedConfig
    provenance: Provenance
    """`git`, `packages`, `machine`, `seeds`, `split` of the run's own provenance."""
    questions: list[BaselineQuestion]


GateVerdict = Literal["pass", "improvement", "inconclusive", "regression", "incomparable"]
GateKind = Literal[
    "baseline", "best", "kind", "must_improve", "fidelity", "floor", "size", "speed", "divergence", "alarm", "judge"
]


class GateCheck(Record):
    """One check of the gate."""

    kind: GateKind
    name: str
    """Unique in the gate: kind, variant and metric."""
    variant: str
    metric: str | None = None
    question_kind: str | None = None
    """Of a check on the questions of one kind."""
    verdict: GateVerdict
    message: str
    """The numbers, in words."""
    limit: float
    """Margin, floor, ratio or share."""
    value: float | None = None
    """The run's mean, ratio or share."""
    against: float | None = None
    """The mean of the baseline, or of `merged_16bit`, on the questions that both scored."""
    delta: float | None = None
    ci95: Interval | None = None
    p: float | None = None
    """One-sided, of the difference being the one tolerated; corrected for all differences of the gate."""
    n: int | None = None


class GateExample(Record):
    """A question on which the run lost most."""

    id: str
    variant: str
    metric: str
    before: float
    after: float
    question: str
    expected: str
    answer: str


class GateResult(Manifest):
    """`reports/<run>/gate.json`."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    run: str
    comparison_sha256: str = ""
    """Of the comparison.json that was judged; the verdict holds for no other."""
    verdict: GateVerdict
    reason: str
    """One sentence."""
    hint: str = ""
    """The command that renews or raises the baseline, if that is useful."""
    exit_code: int
    strict: bool
    baseline: str
    """The file."""
    baseline_run: str
    baseline_commit: str | None
    checks: list[GateCheck]
    differs: list[str] = []
    """Incomparable: what must be equal and is not."""
    changes: list[str] = []
    """What else changed (settings, packages, weights) and may explain a loss."""
    examples: list[GateExample] = []
    notes: list[str] = []
    seconds: float
