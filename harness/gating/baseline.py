"""The committed baseline: what a run scored, question by question, so that a later run is compared with it pairwise.

A run and a baseline are the same record (`snapshot` makes it, rounding included), so that the gate holds like against like.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from harness import storage
from harness.analysis.resampling import Floats
from harness.config import Config
from harness.errors import ArtifactError, ConfigError, IncomparableError
from harness.records import Baseline, BaselineQuestion, BaselineVariant, Comparison, Interval, Question, Score
from harness.report.headline import percent, points
from harness.storage import RunFolder
from harness.variants import BASE

DEFAULT = Path("reports") / "baseline.json"
DIGITS = 4
"""Decimals of a stored score. Both sides of a difference are rounded, so equal scores stay equal."""
KEPT = ("git", "packages", "machine", "seeds", "split")
SCORE_NEUTRAL_SECTIONS = ("gate", "ship", "compare", "wandb", "description")
"""Sections of the config that cannot change a score."""


def snapshot(run: RunFolder, config: Config) -> Baseline:
    """A run's scores on the gated metrics, all variants.

    Raises:
        ArtifactError: scores or comparison are missing, damaged, or not of each other; ConfigError: a gated metric was not scored.
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
        provenance={key: comparison.provenance[key] for key in KEPT if key in comparison.provenance},
        questions=[
            BaselineQuestion(
                id=q.id, group=q.group, sha256=_content(q), scores={variant: scores[variant][i] for variant in scores}
            )
            for i, q in enumerate(questions)
        ],
    )


def with_trainings(first: Baseline, others: Sequence[Baseline]) -> Baseline:
    """The same baseline, knowing what further trainings of its recipe, with other seeds, scored.

    Raises:
        IncomparableError: they were not asked and scored alike; ArtifactError: two are one training.
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
                f"runs {trained[weights]} and {run.run} are one training", "train each with a train.seed of its own"
            )
        trained[weights] = run.run

    def means(variant: str) -> dict[str, list[float]]:
        found = {metric: [other.variants[variant].means[metric] for other in others] for metric in first.metrics}
        return {metric: [mean for mean in values if mean is not None] for metric, values in found.items()}

    variants = {
        variant: value.model_copy(update={"trainings": means(variant)}) for variant, value in first.variants.items()
    }
    return first.model_copy(update={"variants": variants})


def seed_spread(baseline: Baseline, variant: str, metric: str) -> Interval:
    """How far below (<= 0) and above (>= 0) the baseline's own mean its further trainings came out; zeros without any."""
    value = baseline.variants[variant]
    own = value.means[metric]
    apart = [] if own is None else [mean - own for mean in value.trainings.get(metric, [])]
    return (min([0.0, *apart]), max([0.0, *apart]))


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
        raise ArtifactError(f"is damaged (question {twice[:80]!r} stands twice)", hint, file=path)
    return found


def save(path: Path, new: Baseline, config: Config, *, confirm: Callable[[list[str]], bool]) -> Baseline:
    """Writes the gated variants of a snapshot as the baseline, and returns what was written.

    Args:
        confirm: asked with what the present baseline has better; whether to save all the same.

    Raises:
        ConfigError: the run lacks a gated variant; ArtifactError: it has none, one without any score, or the present baseline is better and `confirm` says no.
    """
    missing = [variant for variant in config.gate.variants if variant not in new.variants]
    if missing:
        raise ConfigError(
            f"gate.variants: {missing[0]!r} was not answered in run {new.run}",
            "add it to predict.variants, or leave it out",
        )
    new = of_variants(new, config.gate.variants or [variant for variant in new.variants if variant != BASE])
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
    if path.exists():
        try:
            worse = losses_against(read(path), new)
        except ArtifactError:
            worse = [f"{path} cannot be read, so that nobody knows what it held"]
        if worse and not confirm(worse):
            raise ArtifactError(
                f"holds a better baseline: {'; '.join(worse[:3])}{' ...' if len(worse) > 3 else ''}",
                "add --force to save over it",
                file=path,
            )
    storage.write_text(path, _text(new))
    return new


def _text(baseline: Baseline) -> str:
    """Canonical JSON with a line for each question: small, and a commit shows which questions changed."""
    head = {key: value for key, value in storage.sealed(baseline).items() if key != "questions"}
    lines = ",\n".join(f"  {storage.dumps(question)}" for question in baseline.questions)
    return storage.dumps(head, indent=1).removesuffix("\n}") + f',\n "questions": [\n{lines}\n ]\n}}\n'


# ------------------------------------------------------------------------------------------------------- two baselines


def differs(old: Baseline, new: Baseline, variants: Collection[str], metrics: Collection[str]) -> Iterator[str]:
    """What must be equal for scores to be comparable, and is not; nothing if they are.

    The held-out questions must be the same, not the rows that were trained on: other training data is a change like any other.
    """
    for variant in variants:
        for name, side in (("baseline", old), ("run", new)):
            if variant not in side.variants:
                yield f"variant {variant} is not in the {name}"
    for metric in metrics:
        if metric not in old.metrics:
            yield f"metric {metric} is not in the baseline"
        elif old.metrics[metric] != new.metrics[metric]:
            yield f"metric signature: {old.metrics[metric]} in the baseline, {new.metrics[metric]} in the run"
    before, after = ({question.id: question.sha256 for question in side.questions} for side in (old, new))
    changed = [id_ for id_ in before if id_ in after and before[id_] != after[id_]]
    gone, added = [id_ for id_ in before if id_ not in after], [id_ for id_ in after if id_ not in before]
    if changed or gone or added:
        yield f"held-out questions: {len(gone)} gone, {len(added)} new, {len(changed)} reworded; split {old.split_id[:12]} in the baseline, {new.split_id[:12]} in the run"
    elif list(before) != list(after):
        yield "held-out questions: the same in another order"
    elif old.prompts_sha256 != new.prompts_sha256:
        yield f"prompts: {old.prompts_sha256[:12]} in the baseline, {new.prompts_sha256[:12]} in the run (template, tokenizer, or special tokens)"
    for line in _unequal(old.generation, new.generation):
        yield f"generation: {line}"


def changes(old: Baseline, new: Baseline) -> list[str]:
    """What is not as it was and may be the cause: settings, training rows, package versions, weights."""
    settings = [{k: v for k, v in side.config.items() if k not in SCORE_NEUTRAL_SECTIONS} for side in (old, new)]
    found = [f"setting {line}" for line in _unequal(*map(_flat, settings))]
    if old.split_id != new.split_id:
        found.append("training or held-out rows")
    found += [f"package {line}" for line in _unequal(*(side.provenance.get("packages", {}) for side in (old, new)))]
    found += [f"machine {line}" for line in _unequal(*(side.provenance.get("machine", {}) for side in (old, new)))]
    for variant in (v for v in old.variants if v in new.variants):
        for what in ("backend", "weights_sha256"):
            a, b = (getattr(side.variants[variant], what) for side in (old, new))
            if a != b:
                found.append(f"{variant} {what} {a[:20]} -> {b[:20]}")
    commits = [side.provenance.get("git", {}).get("commit") or "unknown" for side in (old, new)]
    return found + ([f"commit {commits[0][:12]} -> {commits[1][:12]}"] if commits[0] != commits[1] else [])


def losses_against(old: Baseline, new: Baseline) -> list[str]:
    """What `old` has and `new` lacks: variants, metrics, and any part of a mean, comparable or not. Small losses saved one after another add up."""
    found = [f"{variant} is not in run {new.run}" for variant in old.variants if variant not in new.variants]
    found += [f"{metric} is not gated any more" for metric in old.metrics if metric not in new.metrics]
    for variant, before in old.variants.items():
        for metric, mean in before.means.items():
            after = new.variants[variant].means.get(metric) if variant in new.variants else None
            if (
                mean is not None
                and after is not None
                and after < mean
                and old.metrics[metric] == new.metrics.get(metric)
            ):
                found.append(
                    f"{variant} {metric} would go from {percent(mean)} to {percent(after)} ({points(after - mean)} points)"
                )
    return found


def describe(baseline: Baseline) -> list[str]:
    """A baseline in lines of text."""
    git = baseline.provenance.get("git", {})
    commit = (
        f"{git['commit'][:12]}{' with uncommitted changes' if git.get('dirty') else ''}"
        if git.get("commit")
        else "unknown"
    )
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


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def _unequal(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(old.keys() | new.keys()):
        before, after = (side.get(key, "absent") for side in (old, new))
        if before != after:
            yield f"{key} {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
