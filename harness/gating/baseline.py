"""The committed baseline: what a run scored, question by question, so that a later run is compared with it pairwise.

A run and a baseline are the same record (`snapshot` makes it, rounding included), so that the gate compares values of the same precision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from harness import storage
from harness.analysis.resampling import Floats
from harness.analysis.trainings import KnownSpread
from harness.config import Config
from harness.errors import ArtifactError, ConfigError, IncomparableError
from harness.gating.likeness import differs, losses_against
from harness.gating.noninferiority import NOT_KNOWN, SeedBound
from harness.records import Baseline, BaselineQuestion, BaselineVariant, Comparison, Provenance, Question, Score
from harness.report.headline import points
from harness.storage import RunFolder
from harness.variants import UNTUNED

DEFAULT = Path("reports") / "baseline.json"
DIGITS = 4
"""Decimals of a stored score. Both sides of a difference are rounded, so equal scores stay equal."""
NOTICEABLE = 1e-6
"""Differences of means below this are rounding."""
MIN_KIND = 15
"""Questions of a kind from which further trainings' means on it are kept."""
KEPT = ("git", "packages", "machine", "seeds", "split")
"""Keys of the provenance that a baseline keeps."""


def snapshot(run: RunFolder, config: Config) -> Baseline:
    """A run's scores on the gated metrics, all variants.

    Raises:
        ArtifactError: scores or comparison are missing, damaged, or do not belong together; ConfigError: a gated metric was not scored.
    """
    comparison = storage.read_record(run.comparison_json, Comparison)
    questions = storage.read_split(run)[1]
    if not questions:
        raise ArtifactError(
            "holds no question", "hold out more with data.heldout, and run the stages again", file=run.heldout_jsonl
        )
    manifests = {variant: storage.read_scored(run, variant, comparison) for variant in comparison.variants}
    unknown = [m for m in config.gate.metrics if any(m not in manifest.metrics for manifest in manifests.values())]
    if unknown:
        raise ConfigError(
            f"gate.metrics: {unknown[0]!r} was not scored",
            "add it to score.metrics and run harness score, or leave it out",
        )
    metrics = sorted(config.gate.metrics)
    scores = {variant: _scores(run, variant, questions, metrics) for variant in manifests}
    first = next(iter(manifests.values()))
    weights = comparison.provenance.get("variants", {})
    return Baseline(
        run=run.name,
        saved=datetime.now(UTC).isoformat(timespec="seconds"),
        split_id=comparison.split_id,
        prompts_sha256=first.prompts_sha256,
        generation=first.generation,
        metrics={metric: first.metrics[metric].signature for metric in metrics},
        variants={
            variant: BaselineVariant(
                prediction_key=manifest.prediction_key,
                weights_sha256=weights.get(variant, {}).get("weights_sha256", ""),
                backend=" ".join(filter(None, (manifest.backend, weights.get(variant, {}).get("backend_version")))),
                means={metric: manifest.metrics[metric].value for metric in metrics},
            )
            for variant, manifest in manifests.items()
        },
        config=config.model_dump(mode="json"),
        provenance=_kept(comparison.provenance),
        questions=[
            BaselineQuestion(
                id=q.id,
                group=q.group,
                sha256=_content(q),
                scores={variant: scores[variant][i] for variant in scores},
                kind=q.kind,
            )
            for i, q in enumerate(questions)
        ],
    )


def _kept(found: Provenance) -> Provenance:
    """What a baseline keeps of a run's provenance."""
    return cast(Provenance, {key: value for key, value in found.items() if key in KEPT})


def with_trainings(first: Baseline, others: Sequence[Baseline]) -> Baseline:
    """The same baseline with the scores of further trainings of its recipe, with other seeds.

    Raises:
        IncomparableError: they were not asked and scored in the same way; ArtifactError: two are one training.
    """
    trained: dict[str, str] = {}
    for run in (first, *others):
        if unlike := list(differs(first, run, first.variants, first.metrics)):
            raise IncomparableError(
                f"runs {first.run} and {run.run} differ: {unlike[0]}", "name runs of one recipe and one split"
            )
        weights = storage.sha256_json(
            {v: value.weights_sha256 for v, value in run.variants.items() if v in first.variants}
        )
        if weights in trained:
            raise ArtifactError(
                f"runs {trained[weights]} and {run.run} are one training", "train each with a different train.seed"
            )
        trained[weights] = run.run

    def means(variant: str) -> dict[str, list[float]]:
        found = {metric: [other.variants[variant].means[metric] for other in others] for metric in first.metrics}
        return {metric: [mean for mean in values if mean is not None] for metric, values in found.items()}

    def means_by_kind(variant: str) -> dict[str, dict[str, list[float]]]:
        by_kind = kinds(first, MIN_KIND)
        found = {metric: [column(other, variant, metric) for other in others] for metric in first.metrics}
        return {
            kind: {
                metric: [float(np.nanmean(c[rows])) for c in columns if not np.isnan(c[rows]).all()]
                for metric, columns in found.items()
            }
            for kind, rows in by_kind.items()
        }

    variants = {
        variant: value.model_copy(
            update={"trainings": means(variant), "trainings_by_kind": means_by_kind(variant) if others else {}}
        )
        for variant, value in first.variants.items()
    }
    return first.model_copy(update={"variants": variants})


def kinds(baseline: Baseline, at_least: int) -> dict[str, NDArray[np.intp]]:
    """Kind of question -> the positions of its questions, for kinds of so many or more; none where all are of one kind."""
    found: dict[str, list[int]] = {}
    for at, question in enumerate(baseline.questions):
        if question.kind is not None:
            found.setdefault(question.kind, []).append(at)
    many = {kind: np.array(rows) for kind, rows in sorted(found.items()) if len(rows) >= at_least}
    return {kind: rows for kind, rows in many.items() if len(rows) < len(baseline.questions)}


def seed_bound(baseline: Baseline, variant: str, metric: str, kind: str | None = None) -> SeedBound:
    """The range in which one more training of the recipe would score, on all questions or on those of a kind; zeros without further trainings."""
    value = baseline.variants[variant]
    if kind is None:
        own, further = value.means[metric], value.trainings.get(metric, [])
    else:
        scores = column(baseline, variant, metric)[[question.kind == kind for question in baseline.questions]]
        own = None if np.isnan(scores).all() else float(np.nanmean(scores))
        further = value.trainings_by_kind.get(kind, {}).get(metric, [])
    return NOT_KNOWN if own is None else SeedBound.of([own, *further])


def known_spread(path: Path = DEFAULT) -> KnownSpread | None:
    """The spread of the trainings in a baseline; None if there is no readable baseline."""
    if not path.exists():
        return None
    try:
        found = read(path)
    except ArtifactError:
        return None  # The gate reports what is wrong with it.
    spread = {}
    for variant, value in found.variants.items():
        for metric, further in value.trainings.items():
            own = value.means.get(metric)
            if own is not None and further:
                spread[variant, metric] = (float(np.std([own, *further], ddof=1)), 1 + len(further))
    return KnownSpread(found.split_id, found.metrics, spread)


def centre(baseline: Baseline, variant: str, metric: str) -> float | None:
    """The mean over all trainings in the baseline; None: not scored."""
    value = baseline.variants[variant]
    own = value.means[metric]
    return None if own is None else float(np.mean([own, *value.trainings.get(metric, [])]))


def best(baseline: Baseline, variant: str, metric: str) -> float | None:
    """The best mean of this baseline and of those that it replaced; None: not scored."""
    known = (baseline.variants[variant].best.get(metric), centre(baseline, variant, metric))
    return max((mean for mean in known if mean is not None), default=None)


def with_best(new: Baseline, old: Baseline | None) -> Baseline:
    """The same baseline that remembers the best means of `old`, where both were asked and scored in the same way.

    A baseline that is renewed after every small loss would drift down with the model; the best means stay.
    """

    def remembered(variant: str, metric: str) -> float | None:
        known = [best(new, variant, metric)]
        if (
            old
            and variant in old.variants
            and metric in old.metrics
            and not any(differs(old, new, [variant], [metric]))
        ):
            known.append(best(old, variant, metric))
        return max((mean for mean in known if mean is not None), default=None)

    variants = {}
    for variant, value in new.variants.items():
        means = {metric: remembered(variant, metric) for metric in new.metrics}
        kept = {metric: round(mean, DIGITS + 2) for metric, mean in means.items() if mean is not None}
        variants[variant] = value.model_copy(update={"best": kept})
    return new.model_copy(update={"variants": variants})


def of_variants(baseline: Baseline, variants: Collection[str]) -> Baseline:
    """The same baseline with only these variants."""
    kept = {variant: value for variant, value in baseline.variants.items() if variant in variants}
    questions = [q.model_copy(update={"scores": {v: q.scores[v] for v in kept}}) for q in baseline.questions]
    return baseline.model_copy(update={"variants": kept, "questions": questions})


def column(baseline: Baseline, variant: str, metric: str) -> Floats:
    """One variant's scores on one metric in the order of the questions, shape (n,); NaN: unscored."""
    at = sorted(baseline.metrics).index(metric)  # JSON keeps no order of keys
    return np.array(
        [question.scores[variant][at] for question in baseline.questions], dtype=np.float64
    )  # None becomes NaN


# -------------------------------------------------------------------------------------------------------------- files


def read(path: Path) -> Baseline:
    """Reads a baseline; ArtifactError if it is missing, damaged, or of another version of the harness."""
    hint = "make one with harness baseline save, and commit it"
    try:
        found = storage.read_record(path, Baseline)
    except ArtifactError as error:
        raise ArtifactError(error.problem, hint, file=path) from None
    scored = {len(scores) for question in found.questions for scores in question.scores.values()}
    variants = {frozenset(question.scores) for question in found.questions}
    if not found.questions or scored != {len(found.metrics)} or variants != {frozenset(found.variants)}:
        raise ArtifactError("is damaged (questions, variants and scores do not fit together)", hint, file=path)
    twice = next(
        (id_ for id_, count in Counter(question.id for question in found.questions).items() if count > 1), None
    )
    if twice is not None:
        raise ArtifactError(f"is damaged (question {twice[:80]!r} occurs twice)", hint, file=path)
    return found


def save(
    path: Path, new: Baseline, config: Config, *, confirm: Callable[[list[str]], bool], forget_best: bool = False
) -> Baseline:
    """Writes the gated variants of a snapshot as the baseline, and returns what was written.

    Args:
        forget_best: do not keep the best means of the baseline that is replaced.
        confirm: called with the scores that would get worse; returns whether to save anyway.

    Raises:
        ConfigError: the run lacks a gated variant; ArtifactError: it has none, one without any score, or the present baseline is better and `confirm` says no.
    """
    missing = [variant for variant in config.gate.variants if variant not in new.variants]
    if missing:
        raise ConfigError(
            f"gate.variants: {missing[0]!r} was not answered in run {new.run}",
            "add it to predict.variants, or leave it out",
        )
    new = of_variants(new, config.gate.variants or [v for v in new.variants if v not in UNTUNED])
    if not new.variants:
        raise ArtifactError(f"run {new.run} has no variant to gate", "let predict.variants name one besides base")
    unscored = [
        (variant, metric)
        for variant, value in new.variants.items()
        for metric, mean in value.means.items()
        if mean is None
    ]
    if unscored:
        raise ArtifactError(
            f"{unscored[0][0]} of run {new.run} has no {unscored[0][1]}: no answer was scored",
            "run harness predict and score again",
        )
    old = None
    if path.exists():
        try:
            old = read(path)
            worse = losses_against(old, new)
        except ArtifactError:
            worse = [f"{path} cannot be read, so that nobody knows what it held"]
        if worse and not confirm(worse):
            raise ArtifactError(
                f"holds a better baseline: {'; '.join(worse[:3])}{' ...' if len(worse) > 3 else ''}",
                "add --force to save over it",
                file=path,
            )
    new = with_best(new, None if forget_best else old)
    storage.write_text(path, _text(new))
    return new


def _text(baseline: Baseline) -> str:
    """Canonical JSON with a line for each question: small, and a commit shows which questions changed."""
    head = {key: value for key, value in storage.sealed(baseline).items() if key != "questions"}
    lines = ",\n".join(f"  {storage.dumps(question)}" for question in baseline.questions)
    return storage.dumps(head, indent=1).removesuffix("\n}") + f',\n "questions": [\n{lines}\n ]\n}}\n'


def describe(baseline: Baseline) -> list[str]:
    """A baseline in lines of text."""
    git = baseline.provenance.get("git", {})
    commit = git.get("commit", "")[:12] or "unknown"
    if git.get("dirty"):
        commit += " with uncommitted changes"
    groups = len({question.group for question in baseline.questions})
    lines = [
        f"run {baseline.run}, saved {baseline.saved}, commit {commit}",
        f"{len(baseline.questions)} questions in {groups} groups, split {baseline.split_id[:12]}, prompts {baseline.prompts_sha256[:12]}",
        *(f"{metric}: {signature}" for metric, signature in baseline.metrics.items()),
    ]
    for variant, value in baseline.variants.items():
        means = ", ".join(
            f"{metric} {'unscored' if mean is None else f'{mean:.3f}'}" for metric, mean in value.means.items()
        )
        lines.append(f"{variant} ({value.backend}, weights {value.weights_sha256[:12]}): {means}")
        for metric, others in value.trainings.items():
            lines.append(f"  {metric} of further trainings: {', '.join(f'{mean:.3f}' for mean in others)}")
        for metric in value.means:
            ever, now = best(baseline, variant, metric), centre(baseline, variant, metric)
            if ever is not None and now is not None and ever > now + NOTICEABLE:
                lines.append(f"  {metric} was {ever:.3f} in a baseline before: {points(now - ever)} points since")
    return lines


# ------------------------------------------------------------------------------------------------------------ plumbing


def _scores(run: RunFolder, variant: str, questions: list[Question], metrics: list[str]) -> list[list[float | None]]:
    path = run.score(variant)[0]
    rows = storage.read_records(path, Score)
    if [row.id for row in rows] != [question.id for question in questions]:
        raise ArtifactError("is not of the present held-out questions", "run harness score again", file=path)
    return [
        [None if (score := row.scores.get(metric)) is None else round(score, DIGITS) for metric in metrics]
        for row in rows
    ]


def _content(question: Question) -> str:
    return storage.sha256_json([question.question, question.answer, question.references])[:16]
