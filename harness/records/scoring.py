"""What score writes."""

from __future__ import annotations

from harness.records.base import SCHEMA_VERSION, Fraction, Interval, Manifest, Name, Parameters, Record, SchemaVersion
from harness.records.prediction import Cost


class Score(Record):
    """A line of `scores/<variant>.jsonl`: one question's scores."""

    id: str
    group: str
    scores: dict[str, Fraction | None]
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
    n_failed: int = 0
    """Questions that the metric would score and whose answer failed: among `n_unscored`."""
    failures_as_wrong: float | None = None
    """Mean over the scored questions and the failed ones, which count as 0; None where none failed: it would be `value`."""
    failures_as_wrong_ci95: Interval | None = None


class ScoreManifest(Manifest):
    """`scores/<variant>.json`, written last."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    fingerprint: str
    variant: Name
    split_id: str
    prediction_key: str
    prompts_sha256: str
    generation: Parameters
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


class NoModelScores(Manifest):
    """`scores/_no_model.json`, written last: the baselines that need no model, question by question."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    fingerprint: str
    lines_sha256: str
    names: list[str]


class NoModelScore(Record):
    """A line of `scores/_no_model.jsonl`: what the baselines answered to one question, and how that scored."""

    id: str
    answers: dict[str, str]
    """Baseline -> answer."""
    scores: dict[str, dict[str, Fraction | None]]
    """Baseline -> metric -> 0..1; None: the metric reads no such question."""


class TaughtScores(Manifest):
    """`scores/_taught.json`: the second held-out side, trained questions in words that were not trained on."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    fingerprint: str
    n: int
    n_groups: int
    variants: dict[Name, dict[str, MetricValue]]
    """Variant -> metric -> its mean over these questions."""
    nearest_train_copy: dict[str, float]
    """Metric -> what the answer of the nearest training question scores here, 0..1."""


class ScoreSet(Manifest):
    """`scores/manifest.json`, written last: the variants that were scored."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    fingerprint: str
    """Over the variants' fingerprints."""
    variants: list[Name]
