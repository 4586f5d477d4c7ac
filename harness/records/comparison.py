"""What compare writes: the whole result of a run."""

from __future__ import annotations

from typing import Literal, Required

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from harness.records.base import SCHEMA_VERSION, Contract, Interval, Manifest, Name, Record, SchemaVersion, Verdict
from harness.records.prediction import Cost, Noise
from harness.records.provenance import Provenance
from harness.records.scoring import MetricValue
from harness.records.shipping import Shipping


class Pair(Record):
    """Two variants on one metric, question by question: `delta` is left minus right."""

    left: str
    right: str
    metric: str
    delta: float | None
    ci95: Interval | None
    p: float | None
    """Two-sided, by sign flips of whole groups, of this test alone."""
    p_adjusted: float | None
    """The same, corrected for all tests of the family (step-down max-T)."""
    family: Literal["confirmatory", "secondary"] = "secondary"
    """Confirmatory: the primary metric on the pairs that the headline and the list of formats use; all other tests are secondary."""
    verdict: Verdict
    n: int
    """Questions scored by both."""
    contract: Contract = "same ids"
    margin: float
    """Differences within plus or minus this are equivalent."""
    noise_floor: float = 0.0
    """The larger flip rate of the two sides (0 if it was not measured): a note for the reader, no part of the verdict."""
    mde: float | None = None
    """Minimum detectable effect: the difference that this verdict would find four times in five, the correction included. None: unknown."""
    p_mcnemar: float | None = None
    """Exact McNemar test, for 0/1 metrics."""
    wins: int = 0
    losses: int = 0
    ties: int = 0
    trainings: tuple[int, int] | None = None
    """How many trainings, with their own seeds, left and right are the mean of, where other seeds would move the difference; None: they would not
    (formats of one training)."""
    seed_note: str = ""
    """What the interval says of other seeds, in a sentence; empty where `trainings` is None."""


class Example(Record):
    """One question on which two variants differ: `delta` is left minus right."""

    id: str
    left: float
    right: float
    delta: float


class PairExamples(Record):
    """The questions on which a variant gains and loses most against another, the largest difference first."""

    left: str
    right: str
    metric: str
    wins: list[Example]
    losses: list[Example]


class Alarm(Record):
    """Something that makes the numbers doubtful, shown next to the verdict."""

    code: str
    """`runaway`, `prompts_cut`, `empty_answers`, `unscored`, `adapter_without_effect`, `prompt_mismatch`, `constant_answers`,
    `leakage_unknown`, and those of `Finding`."""
    variant: str | None
    message: str
    value: float | None = None
    limit: float | None = None


class VariantResult(Record):
    """One variant in comparison.json."""

    metrics: dict[str, MetricValue]
    """Of several trainings: the mean over them, with the interval of questions and seeds together."""
    cost: Cost
    backend: str
    finish: dict[str, int]
    empty_answers: int = 0
    own: dict[str, MetricValue] = {}
    """Of several trainings: the metrics of the run's own; empty: `metrics` are."""
    trainings: dict[str, dict[str, float | None]] = {}
    """Of several trainings: seed -> metric -> mean, the run's own first."""


class FidelityStep(TypedDict, total=False):
    """What one step of the export changed: a format, compared with the one it was made from or follows.

    The figures from `mean_kl` on are those of `harness.analysis.fidelity.Divergence`; they are missing where log-probabilities were not measured
    on both sides, and some of them in files of earlier versions.
    """

    left: Required[str]
    """The format."""
    right: Required[str]
    """What it is compared with."""
    identical: Required[float | None]
    """Share of the answers with the same text, 0..1."""
    token_agreement: Required[float | None]
    """Mean share of an answer's tokens before the first difference, 0..1."""
    n: Required[int]
    """Questions answered by both."""
    mean_kl: float
    p99_kl: float
    top1_agreement: float
    positions: int
    median_kl: float
    p999_kl: float
    max_kl: float
    rms_dp: float | None
    intervals: dict[str, Interval]


class Breakdown(Record):
    """One variant's metric on one bucket of the questions."""

    by: str
    """`kind`, `part`, `answer_length`, `answer_type`, `similarity`."""
    bucket: str
    variant: str
    metric: str
    value: float | None
    ci95: Interval | None
    n: int


class Figure(Record):
    """One variant's figure that rests on columns of the QA file (`harness.analysis.figures`); a fraction in 0..1."""

    name: str
    """`without_<kinds>`, `by_answer_type`, `answer_type_<type>`, `correct_abstention`, `false_abstention`, `false_abstention_twins`,
    `consistency`, `all_phrasings_right`, `taught` (the second held-out side)."""
    label: str
    """As people read it."""
    variant: str
    value: float | None
    ci95: Interval | None
    n: int
    """Questions, or facts where facts are counted."""


class AgainstFewShot(Record):
    """Whether fine-tuning is worth it against the same base with few-shot examples."""

    variant: Name
    """The fine-tuned one."""
    answer: Literal["yes", "no", "cannot tell"]
    """Yes: surely better. No: as good or worse. Cannot tell: the questions do not decide."""
    examples: int
    """Training questions in front of each question."""
    metric: str
    text: str
    """In a sentence, with its numbers; the tested pair is among `Comparison.pairs`."""


class Comparison(Manifest):
    """`reports/<run>/comparison.json`: the whole result, versioned and stable. Metrics are fractions in 0..1."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: SchemaVersion = Field(default=SCHEMA_VERSION, alias="schema")
    fingerprint: str = ""
    """Of what compare read: scores, predictions, split, settings and code."""
    run: str
    split_id: str
    n: int
    n_groups: int
    variants: dict[Name, VariantResult]
    pairs: list[Pair]
    primary: str = ""
    """The metric that decides; empty in files of earlier versions."""
    primary_reason: str = ""
    """Why this one, in words."""
    shipping: Shipping | None = None
    """Whether to ship; None in files of earlier versions."""
    baselines: dict[str, dict[str, float]]
    """`nearest_train_copy`, `rule_answer`, `constant_answer` -> metric -> value, on the held-out questions."""
    baseline_pairs: list[Pair] = []
    """Each variant minus each of these on the primary metric, question by question; empty where nothing was trained on here."""
    against_few_shot: list[AgainstFewShot] = []
    """For each fine-tuned variant that was tested against `base_fewshot`; empty where that did not answer."""
    examples: list[PairExamples] = []
    """For each two variants that were tested and differ."""
    alarms: list[Alarm] = []
    breakdowns: list[Breakdown] = []
    figures: list[Figure] = []
    """Figures from the QA file's own columns; empty without them."""
    fidelity: list[FidelityStep] = []
    """Step by step from the adapter to the smallest format; see docs."""
    noise: dict[str, Noise] = {}
    """Of each variant that answered a subset again."""
    provenance: Provenance
