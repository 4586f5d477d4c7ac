"""What split writes: questions and the account of how they were divided."""

from __future__ import annotations

from typing import Any

from harness.records.base import SCHEMA_VERSION, Manifest, Record, SchemaVersion


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


class SplitManifest(Manifest):
    """`split/split.json`, written last."""

    schema_version: SchemaVersion = SCHEMA_VERSION
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
    """{`grouped`, `random`} -> {`nearest_train_copy`, `rule_answer`, `constant_answer`} -> metric -> value (0..1)."""
    train_sha256: str = ""
    """Of train.jsonl."""
    heldout_sha256: str = ""
    """Of heldout.jsonl: a damaged file is neither asked nor scored."""
    warnings: list[str] = []
    seconds: float
