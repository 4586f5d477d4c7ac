"""The scores of one variant as arrays, the input of every comparison."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.analysis.resampling import Floats
from harness.analysis.seeds import SeedVariance
from harness.records import MetricValue, ScoreManifest
from harness.records.prediction import Noise


@dataclass(frozen=True)
class Scored:
    """One variant's scores, ready to be paired."""

    name: str
    manifest: ScoreManifest
    metrics: list[str]
    ids: list[str]
    groups: list[str]
    values: Floats
    """Shape (questions, metrics); NaN: unscored."""
    texts_sha256: str = ""
    """Hash of the answers' texts, question by question: equal where two variants gave the same text everywhere."""
    noise: Noise = field(default_factory=Noise)
    """As in PredictionManifest."""
    tokenizer_sha256: str = ""
    own: bool = False
    """It was asked by its own tokenizer and prompt, not by the run's."""
    seed: str = ""
    """Seed of the training, where a run holds several."""
    seed_variances: list[SeedVariance | None] = field(default_factory=list)
    """Of several trainings: for each metric what other seeds would add to the variance of its mean."""
    means: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Of several trainings: seed -> metric -> mean."""
    own_metrics: dict[str, MetricValue] = field(default_factory=dict)
    """Of several trainings: the metrics of the run's own."""

    @property
    def n_trainings(self) -> int:
        """Trainings that the scores are the mean of."""
        return len(self.means) or 1

    @property
    def flip_rate(self) -> float:
        """Share of answers that change when only the batch size does; 0 if that was not measured."""
        return self.noise.get("flip_rate", 0.0)
