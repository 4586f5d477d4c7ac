"""Several trainings of one recipe as one variant, and the part of two runs' difference that is due to their seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness import storage
from harness.analysis import seeds, statistics
from harness.analysis.scored import Scored
from harness.analysis.seeds import SeedVariance
from harness.config import Config
from harness.records import MetricValue
from harness.variants import UNTUNED

Known = Mapping[tuple[str, str], tuple[float, int]]
"""(variant, metric) -> standard deviation of the means of a recipe's trainings, and how many there are."""


@dataclass(frozen=True)
class KnownSpread:
    """The spread between trainings of a recipe, as recorded in a baseline."""

    split_id: str
    signatures: Mapping[str, str]
    """Metric -> signature."""
    spread: Known

    def of(self, split_id: str, signatures: Mapping[str, str]) -> Known:
        """What is known for these held-out questions and metric versions."""
        if self.split_id != split_id:
            return {}
        return {
            (variant, metric): known
            for (variant, metric), known in self.spread.items()
            if self.signatures[metric] == signatures.get(metric)
        }


def pooled(trainings: Sequence[Scored], config: Config) -> Scored:
    """The mean over trainings, question by question, with the interval of questions and seeds together.

    Args:
        trainings: of one variant, asked and scored in the same way; the run's own first.
    """
    first = trainings[0]
    values = seeds.average([training.values for training in trainings])
    found = statistics.mean_intervals(values, first.groups, resamples=config.score.resamples, seed=config.score.seed)
    variances = [
        seeds.of_trainings([training.values[:, k] for training in trainings], first.groups)
        for k in range(len(first.metrics))
    ]
    metrics = {}
    for metric, estimate, variance in zip(first.metrics, found, variances, strict=True):
        e = seeds.widened_mean(estimate, variance, len(trainings))
        metrics[metric] = MetricValue(
            value=e.value,
            ci95=e.ci95,
            n=e.n,
            n_unscored=len(values) - e.n,
            signature=first.manifest.metrics[metric].signature,
            interval=e.method,
        )
    texts = [training.texts_sha256 for training in trainings]
    return replace(
        first,
        values=values,
        manifest=first.manifest.model_copy(update={"metrics": metrics}),
        texts_sha256=storage.sha256_json(texts) if all(texts) else "",
        seed_variances=variances,
        means={t.seed: {m: value.value for m, value in t.manifest.metrics.items()} for t in trainings},
        own_metrics=first.manifest.metrics,
    )


def between(left: Scored, right: Scored, k: int, known: Known) -> tuple[SeedVariance | None, tuple[int, int], str]:
    """What other seeds add to the difference of two runs' variants on metric k: (variance or None, trainings a side, a sentence)."""
    counts = (left.n_trainings, right.n_trainings)
    variant, metric = left.name.rpartition("/")[2], left.metrics[k]
    if variant in UNTUNED:
        return None, counts, ""
    parts: list[SeedVariance | None] = []
    from_baseline = 0
    for side in (left, right):
        if side.n_trainings > 1:
            parts.append(side.seed_variances[k])
        elif (variant, metric) in known:
            deviation, from_baseline = known[variant, metric]
            parts.append(seeds.of_known_spread(deviation, from_baseline))
        else:
            parts.append(None)
    one = "one training a side" if counts == (1, 1) else f"{counts[0]} and {counts[1]} trainings"
    if not parts[0] or not parts[1]:
        return None, counts, f"{one}: {UNKNOWN}"
    variance = parts[0].plus(parts[1])
    if from_baseline:
        return (
            variance,
            counts,
            f"{one}: the interval allows for other seeds by the spread of the baseline's {from_baseline} trainings",
        )
    return variance, counts, f"{one}: the interval is over questions and seeds together"


UNKNOWN = "the interval is over questions only, and another seed may move a score by more; train each recipe several times (harness run --seeds 3)"


def within(left: Scored, right: Scored, k: int) -> tuple[SeedVariance | None, tuple[int, int] | None, str]:
    """The same within one run. Formats of the same trainings keep the interval over questions; for a trained variant against the base it is widened."""
    if (left.n_trainings > 1) == (right.n_trainings > 1):
        return None, None, ""
    several = left if left.n_trainings > 1 else right
    note = f"mean over {several.n_trainings} trainings: the interval is over questions and seeds together"
    return several.seed_variances[k], (left.n_trainings, right.n_trainings), note
