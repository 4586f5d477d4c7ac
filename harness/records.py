"""What crosses a stage: one class per line or file, a docstring under each field.

Every record is a pydantic model, so that a damaged or hand-edited file is found when it is read, not when it is used.
Imports neither torch nor numpy.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Interval = tuple[float, float]
FinishReason = Literal["stop", "length", "error"]
Verdict = Literal["better", "worse", "tied", "undecided"]
SCHEMA_VERSION = 1


class Record(BaseModel):
    """The base of every record: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


# ------------------------------------------------------------------------------------------------------------- split


class Question(Record):
    """One question with its reference answer: a line of `split/train.jsonl` or `split/heldout.jsonl`."""

    id: str
    """Unique in the file; the row's own `id`, or `q` and a hash of question and answer."""
    row: int
    """Position in the QA file, counted from 1."""
    question: str
    answer: str
    references: list[str] = []
    """Further accepted answers, besides `answer`."""
    group: str
    """The group that keeps this row and its near-duplicates on one side of the split; the unit of the bootstrap."""
    article: str | None = None
    part: str | None = None
    kind: str | None = None
    extra: dict[str, Any] = {}
    """Unknown keys of the QA file, kept as they were."""
    nearest_train: float | None = None
    """Held-out rows: similarity (5-gram Jaccard, 0..1) to the nearest training question."""


class SplitManifest(Record):
    """`split/split.json`, written last."""

    schema_version: int = SCHEMA_VERSION
    fingerprint: str
    """Hash of everything the stage read: QA file, split settings, code."""
    split_id: str
    """Hash of every row's content and side: equal ids mean equal splits."""
    source: str
    """The QA file, as given."""
    source_sha256: str
    n_train: int
    n_heldout: int
    n_groups_train: int
    n_groups_heldout: int
    heldout_requested: float | int
    """The share or count asked for."""
    seed: int
    similarity: dict[str, Any]
    """Method and thresholds of near-duplicate detection."""
    largest_groups: list[dict[str, Any]]
    """The ten largest: `group`, `rows`, `share`, `side`, `example`."""
    merges: dict[str, int]
    """How many links each reason made: `group`, `duplicate_question`, `near_duplicate`, `long_answer`."""
    merge_examples: list[dict[str, Any]]
    """A few links of each reason: `reason`, `left`, `right` (questions), `similarity`."""
    conflicts: list[dict[str, Any]]
    """Questions with several different answers: `question`, `answers`, `rows`."""
    leakage: dict[str, Any]
    """What is left on both sides: `answers_in_train` (held-out rows whose answer stands verbatim in train),
    `long_answers_in_train`, `max_similarity`, `similarity_histogram`."""
    baselines: dict[str, dict[str, dict[str, float]]]
    """{`grouped`, `random`} -> {`nearest_train_copy`, `constant_answer`} -> metric -> value (0..1)."""
    warnings: list[str] = []
    seconds: float


# ------------------------------------------------------------------------------------------------------------- train


class HistoryPoint(Record):
    """A line of `history.jsonl`: what was logged at one optimiser step. Absent values were not measured then."""

    step: int
    epoch: float
    seconds: float
    """Since training began."""
    loss: float | None = None
    heldout_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens: int | None = None
    """Tokens trained on so far, prompts included, padding not."""
    tokens_per_second: float | None = None


class TrainManifest(Record):
    """`train.json`, written last."""

    schema_version: int = SCHEMA_VERSION
    fingerprint: str
    split_id: str
    engine: Literal["unsloth", "peft"]
    device: str
    base: dict[str, Any]
    """`path`, `weights_sha256`, `tokenizer_sha256`, `parameters`."""
    adapter_sha256: str
    trainable_parameters: int
    trainable_share: float
    steps: int
    epochs: float
    rows: int
    rows_cut: int
    """Rows whose answer was cut at the maximum length."""
    rows_without_labels: int
    """Rows with no labelled token: they teach nothing."""
    labelled_token_share: float
    tokens: int
    final_loss: float | None
    """Mean of the last twenty logged losses: one batch's says little."""
    final_heldout_loss: float | None
    wandb: dict[str, Any]
    """`mode`, `run_id`, `url` (online runs), `error` (when W&B failed)."""
    seconds: float
    peak_memory_bytes: int
    resumed_from: int = 0
    """The step of the checkpoint that training went on from; 0: from the start."""


# ------------------------------------------------------------------------------------------------------------ export


class Artifact(Record):
    """One exported format, as written and checked."""

    format: str
    """`adapter`, `merged_16bit`, `merged_4bit`, `gguf_f16`, ..."""
    path: str
    """Relative to the run folder."""
    sha256: str
    """Of the file, or of the sorted list of (name, sha256) of a folder."""
    size_bytes: int
    """Of the weights on disk."""
    tensors: int
    seconds: float
    checks: list[str]
    """What was verified after writing, in words."""


class ExportManifest(Record):
    """`export.json`, written last."""

    schema_version: int = SCHEMA_VERSION
    fingerprint: str
    artifacts: dict[str, Artifact]
    seconds: float


# ----------------------------------------------------------------------------------------------------------- predict


class Prediction(Record):
    """A line of `predictions/<variant>.jsonl`: one answer."""

    id: str
    prompt_hash: str
    """sha256 of the prompt's token ids: equal across backends."""
    prompt_ids: list[int]
    answer_ids: list[int]
    """Generated token ids, without the end token."""
    text: str
    finish_reason: FinishReason
    prompt_cut: bool = False
    """The prompt was longer than the context and was not asked in full."""
    seconds: float
    """Wall time of the batch or request divided by its questions."""
    error: str | None = None
    """Set when `finish_reason` is `error`: the answer is unscored, never 0."""


class Cost(Record):
    """What a variant took to answer the held-out questions."""

    tokens_per_second: float | None
    """Generated tokens over generation seconds (loading left out)."""
    seconds: float
    """Generation, loading left out."""
    load_seconds: float
    generated_tokens: int
    peak_memory_bytes: int | None
    """Peak resident memory of the answering process on the CPU; peak allocated device memory on a GPU."""
    size_bytes: int
    """Weights on disk that this variant needs."""


class PredictionManifest(Record):
    """`predictions/<variant>.json`, written last."""

    schema_version: int = SCHEMA_VERSION
    variant: str
    key: str
    """Hash of weights, tokenizer, prompts, generation parameters and backend version: equal keys, equal predictions."""
    split_id: str
    backend: str
    backend_version: str
    """As the loaded backend tells it."""
    packages: dict[str, str] = {}
    """Installed versions of the packages that decide its numbers."""
    weights_sha256: str
    tokenizer_sha256: str
    prompts_sha256: str
    """Over the prompt hashes of all questions, in order."""
    lines_sha256: str = ""
    """Of the file of answers beside this one: a damaged file is never scored."""
    generation: dict[str, Any]
    """Every parameter of generation that was sent, defaults included."""
    execution: dict[str, Any] = {}
    """What may differ without changing what is asked: batch size, slots, threads, device."""
    n: int
    finish: dict[str, int]
    """Count of each finish reason."""
    prompts_cut: int
    cost: Cost
    warnings: list[str] = []
    measured: str = ""
    """Hash of the questions and references that the two fields below were measured on; empty: not measured."""
    logprobs_sha256: str = ""
    """Of the file of log-probabilities beside this one."""
    noise: dict[str, Any] = {}
    """`flip_rate` (0..1), `n`, `how`: the share of a subset's texts that changed when it was answered in another batch size."""


class PredictionSet(Record):
    """`predictions/manifest.json`, written last: the variants that answered."""

    schema_version: int = SCHEMA_VERSION
    fingerprint: str
    """Over the variants' keys."""
    variants: list[str]


# ------------------------------------------------------------------------------------------------------------- score


class Score(Record):
    """A line of `scores/<variant>.jsonl`: one question's scores."""

    id: str
    group: str
    scores: dict[str, float | None]
    """Metric -> 0..1; None: unscored."""
    unscored: str | None = None
    """Why there is no score."""


class MetricValue(Record):
    """One number with everything needed to trust it."""

    value: float | None
    """Mean over scored questions; None if none was scored."""
    ci95: Interval | None
    n: int
    """Scored questions."""
    n_unscored: int
    signature: str
    """Metric, version, normaliser, tokenizer, stemmer: unequal signatures are not compared."""
    interval: str = ""
    """The method of the interval."""


class ScoreManifest(Record):
    """`scores/<variant>.json`, written last."""

    schema_version: int = SCHEMA_VERSION
    fingerprint: str
    variant: str
    split_id: str
    prediction_key: str
    prompts_sha256: str
    generation: dict[str, Any]
    backend: str
    lines_sha256: str
    """Of the file of scores beside this one."""
    n: int
    n_groups: int
    metrics: dict[str, MetricValue]
    finish: dict[str, int]
    empty_answers: int
    prompts_cut: int
    cost: Cost


class ScoreSet(Record):
    """`scores/manifest.json`, written last: the variants that were scored."""

    schema_version: int = SCHEMA_VERSION
    fingerprint: str
    """Over the variants' fingerprints."""
    variants: list[str]


# ----------------------------------------------------------------------------------------------------------- compare


class Pair(Record):
    """Two variants on one metric, question by question: `delta` is left minus right."""

    left: str
    right: str
    metric: str
    delta: float | None
    ci95: Interval | None
    p: float | None
    p_holm: float | None
    verdict: Verdict
    n: int
    """Questions scored by both."""
    margin: float
    """Differences within plus or minus this are equivalent."""
    mde: float | None = None
    """Minimum detectable effect at this n (80% power, 5% level)."""
    p_mcnemar: float | None = None
    """Exact McNemar test, for 0/1 metrics."""
    wins: int = 0
    losses: int = 0
    ties: int = 0


class Alarm(Record):
    """Something that makes the numbers doubtful, told next to the verdict."""

    code: str
    """`runaway`, `prompts_cut`, `empty_answers`, `unscored`, `adapter_without_effect`, `prompt_mismatch`, ..."""
    variant: str | None
    message: str
    value: float | None = None
    limit: float | None = None


class VariantResult(Record):
    """One variant in comparison.json."""

    metrics: dict[str, MetricValue]
    cost: Cost
    backend: str
    finish: dict[str, int]
    empty_answers: int = 0


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


class Comparison(Record):
    """`reports/<run>/comparison.json`: the whole result, versioned and stable. Metrics are fractions in 0..1."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True)

    schema_: int = Field(default=SCHEMA_VERSION, alias="schema")
    run: str
    split_id: str
    n: int
    n_groups: int
    variants: dict[str, VariantResult]
    pairs: list[Pair]
    baselines: dict[str, dict[str, float]]
    """`nearest_train_copy`, `constant_answer` -> metric -> value, on the held-out questions."""
    alarms: list[Alarm] = []
    breakdowns: list[Breakdown] = []
    fidelity: list[dict[str, Any]] = []
    """Step by step from the adapter to the smallest format; see docs."""
    noise: dict[str, Any] = {}
    """Variant -> `flip_rate`, `n`, `how` of a repeated subset."""
    provenance: dict[str, Any]


# -------------------------------------------------------------------------------------------------------------- gate


class BaselineQuestion(Record):
    """One held-out question in a baseline."""

    id: str
    group: str
    sha256: str
    """First 16 hex digits, of question, answer and references."""
    scores: dict[str, list[float | None]]
    """Variant -> its scores in the alphabetical order of `Baseline.metrics`, rounded; None: unscored."""


class BaselineVariant(Record):
    """One variant in a baseline."""

    prediction_key: str
    weights_sha256: str
    backend: str
    means: dict[str, float | None]
    """Metric -> mean; None if nothing was scored."""


class Baseline(Record):
    """`reports/baseline.json`: what a run scored, question by question, small enough to commit."""

    schema_version: int = SCHEMA_VERSION
    run: str
    saved: str
    """UTC, ISO 8601; the only field that two saves of one run differ in."""
    split_id: str
    prompts_sha256: str
    generation: dict[str, Any]
    metrics: dict[str, str]
    """Metric -> signature."""
    variants: dict[str, BaselineVariant]
    config: dict[str, Any]
    provenance: dict[str, Any]
    """`git`, `packages`, `machine`, `seeds`, `split` of the run's own provenance."""
    questions: list[BaselineQuestion]


GateVerdict = Literal["pass", "improvement", "inconclusive", "regression", "incomparable"]
GateKind = Literal["baseline", "fidelity", "floor", "size", "speed", "alarm"]


class GateCheck(Record):
    """One thing that the gate looked at."""

    kind: GateKind
    name: str
    """Unique in the gate: kind, variant and what was looked at."""
    variant: str
    metric: str | None = None
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
    """Two-sided, of the difference being the one tolerated; corrected for all differences of the gate."""
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


class GateResult(Record):
    """`reports/<run>/gate.json`."""

    schema_version: int = SCHEMA_VERSION
    run: str
    verdict: GateVerdict
    reason: str
    """One sentence."""
    mend: str = ""
    """The command that renews or raises the baseline, if that is called for."""
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
    """What else is not as it was: settings, packages, weights; where a loss may come from."""
    examples: list[GateExample] = []
    notes: list[str] = []
    seconds: float
