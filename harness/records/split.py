"""What split writes: questions and the account of how they were divided."""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict

from harness.records.base import SCHEMA_VERSION, Manifest, Record, SchemaVersion


class Question(Record):
    """One question with its reference answer: a line of `split/train.jsonl`, `split/dev.jsonl` or `split/heldout.jsonl`."""

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
    """Free-form by design: the user's own columns of the QA file, kept unchanged."""
    nearest_train: float | None = None
    """Held-out rows: similarity (5-gram Jaccard, 0..1) to the nearest training question."""


class SourceFile(TypedDict, total=False):
    """A file that split read."""

    path: str
    summary: str
    """What was recognised, in words (for the first line)."""
    rows: int
    left_out: dict[str, int]
    """Why -> rows."""
    role: str
    """`qa`, `test`, `trained_on` or `taught`."""
    sha256: str


class MergedPair(TypedDict, total=False):
    """Two similar questions, and whether they were grouped."""

    reason: str
    left: str
    right: str
    similarity: float | None
    """Jaccard, 0..1; None: another reason than similarity."""


class SimilarityMethod(TypedDict, total=False):
    """How near-duplicates were found, and how many."""

    method: str
    nearest: str
    ngram: int
    threshold: float
    long_answer_words: int
    datasketch: str
    """Its version."""
    pairs_compared: int
    window: int
    rows_with_more_look_alikes_than_window: int
    rows_with_stock_answers: int
    chains_cut: int
    kept_apart: int
    kept_apart_examples: list[MergedPair]


class LargeGroup(TypedDict, total=False):
    """One of the largest groups."""

    example: str
    """A question of it."""
    group: str
    rows: int
    share: float
    """Of all rows, 0..1."""
    side: str


class Conflict(TypedDict, total=False):
    """One question with several different answers."""

    question: str
    answers: list[str]
    rows: list[int]


class LeakExample(TypedDict):
    """A held-out question and the training question that leaks it."""

    heldout: str
    train: str


class Leakage(TypedDict, total=False):
    """Leakage from the training and dev rows (or those of `data.trained_on`) to the held-out side."""

    checked: bool
    """False: there are no such rows, and the fields below mean nothing."""
    questions_in_train: int
    """Held-out rows."""
    near_duplicates_in_train: int
    """Held-out rows."""
    train_rows: int
    """Rows that leak."""
    dropped: int
    """Rows left out by `data.drop_leaks`; the counts are then of what is left."""
    examples: list[LeakExample]
    answers_in_train: int
    """Held-out rows whose answer is also one in train."""
    long_answers_in_train: int
    max_similarity: float
    similarity_histogram: dict[str, int]
    """Tenth (`0.4-0.5`) -> held-out rows."""


class SplitManifest(Manifest):
    """`split/split.json`, written last."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    fingerprint: str
    """Hash of everything the stage read: QA file, split settings, code."""
    split_id: str
    """Hash of every row's content and side: equal ids mean equal splits."""
    source: str
    """The QA file, as given; the test file where nothing is trained on."""
    source_sha256: str
    files: list[SourceFile] = []
    """What was read."""
    n_train: int
    n_dev: int = 0
    n_heldout: int
    n_trained_on: int = 0
    """Rows of `data.trained_on`."""
    n_taught: int = 0
    """Questions of the second held-out side: paraphrases of training questions."""
    n_groups_train: int
    n_groups_dev: int = 0
    n_groups_heldout: int
    heldout_requested: float | int | None
    """The share or count asked for; None: a test file was given."""
    dev_requested: float | int = 0
    """The share or count asked for."""
    seed: int
    similarity: SimilarityMethod
    """Method and thresholds of near-duplicate detection."""
    largest_groups: list[LargeGroup]
    """The ten largest."""
    merges: dict[str, int]
    """How many links each reason made: `group`, `duplicate_question`, `near_duplicate`, `long_answer`."""
    merge_examples: list[MergedPair]
    """A few links of each reason."""
    conflicts: list[Conflict]
    """Questions with several different answers."""
    leakage: Leakage
    baselines: dict[str, dict[str, dict[str, float]]]
    """{`grouped`, `random`} -> {`nearest_train_copy`, `rule_answer`, `constant_answer`} -> metric -> value (0..1); empty without training rows, and without
    `random` where a test file was given."""
    train_sha256: str = ""
    """Of train.jsonl."""
    dev_sha256: str = ""
    """Of dev.jsonl."""
    trained_on_sha256: str = ""
    """Of trained_on.jsonl; empty: there is none."""
    taught_sha256: str = ""
    """Of taught.jsonl; empty: there is none."""
    heldout_sha256: str = ""
    """Of heldout.jsonl: a damaged file is neither asked nor scored."""
    warnings: list[str] = []
    seconds: float
