"""Metrics and backends by name, with the facts about each from which lists elsewhere are derived.

A new metric is one class in `harness/metrics/` and one entry of `METRICS`; a new backend is one class in `harness/backends/` and one entry of
`BACKENDS`. This module imports nothing, so that a config can be checked without loading any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class MetricFacts:
    """Facts about a metric, available without importing it."""

    implementation: str
    """`module:Class`."""
    label: str
    """The label at the start of a line."""
    default: bool = True
    """In `score.metrics` unless the config names others."""
    summary: bool = False
    """One of the few that are shown on a terminal and in the breakdowns."""
    headline: int | None = None
    """Rank among the metrics that the verdict may be about, 1 first; None: never. The gate's default metrics are those that are also in the summary."""
    binary: bool = False
    """Every score is 0 or 1: the mean is a rate."""
    requires: Mapping[str, str] = field(default_factory=dict)
    """Argument of the class -> key of the config's `score` section that gives it; setting them all adds the metric."""
    reads: str | None = None
    """Column of the QA file that holds what it scores against; None: the answer and its references."""
    normalized: bool = False
    """Its class takes the `normalizer` of the config's `score` section."""
    only_for: str | None = None
    """The one normalizer with which it is a default metric; None: with any."""

    @property
    def inline(self) -> str:
        """The label within a sentence: `token F1`, `ROUGE-L`."""
        return self.label if self.label[1:2].isupper() else self.label[:1].lower() + self.label[1:]


METRICS: dict[str, MetricFacts] = {
    "exact_match": MetricFacts("harness.metrics.match:ExactMatch", "Exact match, raw", headline=2, binary=True),
    "exact_match_normalized": MetricFacts(
        "harness.metrics.match:ExactMatchNormalized",
        "Exact match",
        headline=1,
        summary=True,
        binary=True,
        normalized=True,
    ),
    "token_f1": MetricFacts("harness.metrics.match:TokenF1", "Token F1", headline=3, summary=True, normalized=True),
    "rouge1": MetricFacts("harness.metrics.rouge:Rouge1", "ROUGE-1"),
    "rouge2": MetricFacts("harness.metrics.rouge:Rouge2", "ROUGE-2"),
    "rougeL": MetricFacts("harness.metrics.rouge:RougeL", "ROUGE-L", headline=4, summary=True),
    "rougeLsum": MetricFacts("harness.metrics.rouge:RougeLsum", "ROUGE-Lsum"),
    "citation_f1": MetricFacts("harness.metrics.citations:CitationF1", "Citation F1", summary=True, only_for="legal"),
    "list_f1": MetricFacts("harness.metrics.lists:ListF1", "List F1", default=False, normalized=True),
    "point_recall": MetricFacts(
        "harness.metrics.points:PointRecall", "Point recall", default=False, summary=True, reads="must_mention"
    ),
    "semantic_similarity": MetricFacts(
        "harness.metrics.semantic:SemanticSimilarity",
        "Semantic similarity",
        default=False,
        requires={"model": "semantic_model"},
    ),
}


def default_metrics(normalizer: str = "plain") -> list[str]:
    """What is scored by default with that `score.normalizer`, and what the no-model baselines are scored with."""
    return [name for name, facts in METRICS.items() if facts.default and facts.only_for in (None, normalizer)]


def summary_metrics() -> list[str]:
    """The few metrics for a terminal and the breakdowns."""
    return [name for name, facts in METRICS.items() if facts.summary]


def headline_metrics() -> list[str]:
    """The metrics that a verdict may be about, the preferred one first."""
    ranked = [(facts.headline, name) for name, facts in METRICS.items() if facts.headline is not None]
    return [name for _, name in sorted(ranked)]


def gate_metrics() -> list[str]:
    """What the gate judges by default."""
    return [name for name in headline_metrics() if METRICS[name].summary]


def graded_metrics() -> list[str]:
    """Headline metrics with scores between 0 and 1: with these a near miss is a small loss."""
    return [name for name in headline_metrics() if not METRICS[name].binary]


def metric_label(name: str) -> str:
    """A metric's name as people write it; of an unknown one the name itself."""
    return METRICS[name].label if name in METRICS else name


def metric_inline(name: str) -> str:
    """`metric_label` within a sentence."""
    return METRICS[name].inline if name in METRICS else name


def metric_order(name: str) -> tuple[int, str]:
    """Sort key: known metrics in the order of `METRICS`, then all others by name."""
    known = list(METRICS)
    return (known.index(name), "") if name in METRICS else (len(known), name)


IN_PLAIN_WORDS = {
    "exact_match": "the answer is the reference, character by character",
    "exact_match_normalized": "the answer equals the reference, apart from what the normaliser drops, such as case and punctuation",
    "token_f1": "the share of words that answer and reference have in common",
    "rouge1": "words in common, however they are ordered",
    "rouge2": "pairs of neighbouring words in common",
    "rougeL": "the longest run of words, gaps allowed, that both have in this order",
    "rougeLsum": "the same, sentence by sentence",
    "citation_f1": "the provisions that are cited are those that the reference cites",
    "list_f1": "the items of a list that answer and reference have in common, in any order",
    "point_recall": "the points of the reference that the answer makes",
    "semantic_similarity": "how near the meanings are, by a sentence model",
    "human": "people marked the answer as right",
}
"""Metrics -> what a high value means."""

BASELINE_LABELS = {
    "nearest_train_copy": "Nearest training answer",
    "rule_answer": "Rule by template",
    "constant_answer": "Constant answer",
}
"""The no-model baselines (`harness.questions.no_model_baselines`) -> their names as people read them."""


@dataclass(frozen=True)
class BackendFacts:
    """Facts about a backend, available without importing it."""

    implementation: str
    """`module:Class`."""
    address: Literal["path", "url"] = "path"
    """What `predict.extra.NAME.path` is for it: something on this disk, or the URL of a server."""
    packages: tuple[str, ...] = ()
    """Distributions whose versions decide its numbers."""
    logprobs: bool = False
    """Its class has `logprobs` (`harness.backends.LogprobBackend`): divergences and noise are measured."""
    varied: Literal["max_batch", "slots"] = "max_batch"
    """The field of `Execution` that sets its batch size, which is varied to measure noise."""
    in_process: bool = False
    """Runs in the calling process: a server has its own process, and Python objects cannot leave theirs."""
    uses_gpu: bool = False
    """Runs on the config's device through PyTorch, in one process for each GPU."""


BACKENDS: dict[str, BackendFacts] = {
    "transformers": BackendFacts(
        "harness.backends.transformers:TransformersBackend",
        packages=("torch", "transformers", "peft", "bitsandbytes"),
        logprobs=True,
        uses_gpu=True,
    ),
    "llamacpp": BackendFacts(
        "harness.backends.llamacpp:LlamaCppBackend", packages=("xllamacpp",), logprobs=True, varied="slots"
    ),
    "endpoint": BackendFacts("harness.backends.endpoint:EndpointBackend", address="url", in_process=True),
    "replay": BackendFacts("harness.backends.replay:ReplayBackend"),
    "python": BackendFacts("harness.backends.python:PythonBackend", in_process=True),
}
