"""Score: every answer against its references, and every mean with its interval.

Reads `predictions/` and `split/heldout.jsonl`; writes `scores/<variant>.jsonl`, `scores/<variant>.json` and, last, `scores/manifest.json`; of the
second held-out side (`data.taught`) `scores/_taught.json`. Pure CPU, and never generates: changing a metric scores the same answers again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness import storage
from harness.analysis import statistics
from harness.config import Config
from harness.errors import ArtifactError, IncomparableError
from harness.metrics import METRICS, Metric, configured, find
from harness.questions import no_model_baselines
from harness.records import (
    MetricValue,
    NoModelScore,
    NoModelScores,
    Prediction,
    PredictionManifest,
    PredictionSet,
    Question,
    Score,
    ScoreManifest,
    ScoreSet,
    SplitManifest,
    TaughtScores,
)
from harness.storage import RunFolder

log = logging.getLogger(__name__)

NO_ANSWER = ""
PREDICT_AGAIN = "run harness predict again"
CHUNK = 128
"""Questions that one metric scores before the next does, so that the tokens of a text are still cached."""


def run(run: RunFolder, config: Config, *, force: bool = False) -> ScoreSet:
    """Scores every variant that answered; variants whose answers, metrics and settings are unchanged are kept.

    Raises:
        ArtifactError: predictions are missing, damaged, or not of the held-out questions; IncomparableError: they are of another split;
        ConfigError: an unknown metric, or one whose package is missing; ModelError: the semantic model cannot be used.
    """
    metrics = _metrics(config)
    split = storage.read_record(run.split_json, SplitManifest)
    storage.check_written(run.heldout_jsonl, split.heldout_sha256, "split")
    answered = storage.read_record(run.predict_json, PredictionSet).variants
    common = [
        storage.sha256_file(run.heldout_jsonl),
        config.score.model_dump(),
        [m.signature for m in metrics],
        storage.code_sha256("harness.stages.score"),
    ]
    questions: list[Question] = []
    prints: list[str] = []
    for variant in answered:
        fingerprint = storage.sha256_json([*common, split.split_id, *map(storage.sha256_file, run.prediction(variant))])
        prints.append(fingerprint)
        if not force and _is_scored(run, variant, fingerprint):
            log.info(f"{variant}: scores are unchanged")
            continue
        questions = questions or storage.read_records(run.heldout_jsonl, Question)
        run.score_json.unlink(missing_ok=True)
        manifest = _score_variant(run, config, metrics, split, questions, variant, fingerprint)
        log.info(f"{variant}: {_summary(manifest)}")
    _score_no_model(run, config, metrics, split, common)
    _score_taught(run, config, metrics, split, common, answered)
    scored = ScoreSet(fingerprint=storage.sha256_json(prints), variants=answered)
    if not storage.up_to_date(run.score_json, ScoreSet, scored.fingerprint, lambda old: old.variants == answered):
        storage.write_json(run.score_json, scored)
    return scored


def _score_no_model(
    run: RunFolder, config: Config, metrics: list[Metric], split: SplitManifest, common: list[object]
) -> None:
    """The no-model baselines, question by question, so that a variant can be compared with them pairwise; none without a training side.

    Only metrics that need no model are applied. Large held-out sides are sampled as in `split.json`.
    """
    lines, path = run.no_model
    if not split.train_sha256 or not run.train_jsonl.exists() or not run.train_jsonl.stat().st_size:
        path.unlink(missing_ok=True)
        lines.unlink(missing_ok=True)
        return
    fingerprint = storage.sha256_json([*common, split.split_id, split.train_sha256, config.data.ngram])
    if storage.up_to_date(path, NoModelScores, fingerprint, lambda m: storage.is_written(lines, m.lines_sha256)):
        return
    train, heldout = (storage.read_records(file, Question) for file in (run.train_jsonl, run.heldout_jsonl))
    asked = [heldout[at] for at in no_model_baselines.sample(list(range(len(heldout))))]
    found = no_model_baselines.answers(train, asked, config.data.ngram)
    references = [[question.answer, *question.references] for question in asked]
    plain = [metric for metric in metrics if not METRICS[metric.name].requires]
    scores = {name: {m.name: m.score_all(texts, references) for m in plain} for name, texts in found.items()}
    storage.write_jsonl(
        lines,
        (
            NoModelScore(
                id=question.id,
                answers={name: texts[at] for name, texts in found.items()},
                scores={name: {m: column[at] for m, column in columns.items()} for name, columns in scores.items()},
            )
            for at, question in enumerate(asked)
        ),
    )
    storage.write_json(
        path, NoModelScores(fingerprint=fingerprint, lines_sha256=storage.sha256_file(lines), names=list(found))
    )


def _score_taught(
    run: RunFolder,
    config: Config,
    metrics: list[Metric],
    split: SplitManifest,
    common: list[object],
    answered: Sequence[str],
) -> None:
    """The second held-out side, in a separate file, so that it enters no mean of the first. Nothing without `data.taught`."""
    questions = storage.read_taught(run, split)
    found = {v: run.taught_prediction(v) for v in answered if _answered_taught(run, v, split)}
    if not questions or not found:
        run.taught_json.unlink(missing_ok=True)
        return
    files = [storage.sha256_file(file) for both in found.values() for file in both]
    fingerprint = storage.sha256_json([*common, split.split_id, split.train_sha256, split.taught_sha256, files])
    if storage.up_to_date(run.taught_json, TaughtScores, fingerprint, lambda old: old.variants.keys() == found.keys()):
        return
    means = {}
    for variant, (lines, _) in found.items():
        matched = _matched(lines, questions)
        means[variant] = _means(list(_rows(matched, metrics)), matched, metrics, config)
    train = storage.read_records(run.train_jsonl, Question)
    copied = no_model_baselines.answers(train, questions, config.data.ngram)["nearest_train_copy"]
    nearest = {}
    for metric in (metric for metric in metrics if not METRICS[metric.name].requires):
        scores = metric.score_all(copied, [expected(metric.name, question) for question in questions])
        if scored := [score for score in scores if score is not None]:
            nearest[metric.name] = sum(scored) / len(scored)
    storage.write_json(
        run.taught_json,
        TaughtScores(
            fingerprint=fingerprint,
            n=len(questions),
            n_groups=len({question.group for question in questions}),
            variants=means,
            nearest_train_copy=nearest,
        ),
    )


def _answered_taught(run: RunFolder, variant: str, split: SplitManifest) -> bool:
    """Whether a variant answered the second held-out side of this split."""
    manifest = run.taught_prediction(variant)[1]
    return manifest.exists() and storage.read_record(manifest, PredictionManifest).split_id == split.split_id


def _metrics(config: Config) -> list[Metric]:
    """The metrics of the config, ready to score."""
    further = {
        name: {argument: getattr(config.score, key) for argument, key in facts.requires.items()}
        for name, facts in METRICS.items()
        if facts.requires
    }
    plain = [configured(name, config.score.normalizer) for name in config.score.metrics if name not in further]
    return plain + [find(name, **given) for name, given in further.items() if None not in given.values()]


def _is_scored(run: RunFolder, variant: str, fingerprint: str) -> bool:
    lines, manifest = run.score(variant)
    return bool(
        storage.up_to_date(manifest, ScoreManifest, fingerprint, lambda m: storage.is_written(lines, m.lines_sha256))
    )


def _score_variant(
    run: RunFolder,
    config: Config,
    metrics: list[Metric],
    split: SplitManifest,
    questions: list[Question],
    variant: str,
    fingerprint: str,
) -> ScoreManifest:
    answers = run.prediction(variant)[0]
    asked = storage.read_record(run.prediction(variant)[1], PredictionManifest)
    if asked.split_id != split.split_id:
        raise IncomparableError(
            f"{variant} answered split {asked.split_id[:12]}, and the split is {split.split_id[:12]}",
            PREDICT_AGAIN,
            file=answers,
        )
    if asked.lines_sha256 and asked.lines_sha256 != storage.sha256_file(answers):
        raise ArtifactError("is not what predict wrote", PREDICT_AGAIN, file=answers)

    matched = _matched(answers, questions)
    rows = [row for start in range(0, len(matched), CHUNK) for row in _rows(matched[start : start + CHUNK], metrics)]

    lines, manifest_path = run.score(variant)
    manifest_path.unlink(missing_ok=True)
    storage.write_jsonl(lines, rows)
    manifest = ScoreManifest(
        fingerprint=fingerprint,
        variant=variant,
        split_id=split.split_id,
        prediction_key=asked.key,
        prompts_sha256=asked.prompts_sha256,
        generation=asked.generation,
        backend=asked.backend,
        lines_sha256=storage.sha256_file(lines),
        n=len(rows),
        n_groups=len({row.group for row in rows}),
        metrics=_means(rows, matched, metrics, config),
        finish=asked.finish,
        empty_answers=sum(p.finish_reason != "error" and not p.text.strip() for _, p in matched),
        prompts_cut=asked.prompts_cut,
        cost=asked.cost,
    )
    storage.write_json(manifest_path, manifest)
    return manifest


def _matched(path: Path, questions: list[Question]) -> list[tuple[Question, Prediction]]:
    """Each question with its answer, in the order of the split; ArtifactError if the two files are not about the same questions."""
    found: dict[str, Prediction] = {}
    for number, prediction in enumerate(storage.iter_records(path, Prediction), 1):
        if prediction.id in found:
            raise ArtifactError(f"answers question {prediction.id!r} twice", PREDICT_AGAIN, file=path, row=number)
        # The token ids are most of a line and no metric reads them.
        found[prediction.id] = prediction.model_copy(update={"prompt_ids": [], "answer_ids": []})
    missing = [q.id for q in questions if q.id not in found]
    if missing:
        raise ArtifactError(
            f"lacks the answer to {len(missing)} held-out questions, {missing[0]!r} first", PREDICT_AGAIN, file=path
        )
    if len(found) > len(questions):
        unknown = min(found.keys() - {q.id for q in questions})
        raise ArtifactError(
            f"answers {len(found) - len(questions)} questions that are not held out, {unknown!r} among them",
            PREDICT_AGAIN,
            file=path,
        )
    return [(question, found[question.id]) for question in questions]


def _rows(matched: list[tuple[Question, Prediction]], metrics: list[Metric]) -> Iterator[Score]:
    answered = [(question, prediction) for question, prediction in matched if prediction.finish_reason != "error"]
    texts = [prediction.text for _, prediction in answered]
    asked = [question for question, _ in answered]
    columns = {m.name: iter(m.score_all(texts, [expected(m.name, question) for question in asked])) for m in metrics}
    for question, prediction in matched:
        failed = prediction.finish_reason == "error"
        scores = {name: None if failed else next(column) for name, column in columns.items()}
        yield Score(
            id=question.id,
            group=question.group,
            scores=scores,
            unscored=(prediction.error or "failed") if failed else None,
        )


def expected(metric: str, question: Question) -> list[str]:
    """What a metric scores an answer against: the right answers, or the texts of the column that it reads."""
    column = METRICS[metric].reads
    if column is None:
        return [question.answer, *question.references]
    given = question.extra.get(column)
    return [text for text in (given if isinstance(given, list) else [given]) if isinstance(text, str)]


def _means(
    rows: list[Score], matched: list[tuple[Question, Prediction]], metrics: list[Metric], config: Config
) -> dict[str, MetricValue]:
    values = np.array([[row.scores[m.name] for m in metrics] for row in rows], dtype=np.float64)  # None becomes NaN
    groups = [row.group for row in rows]
    settings = {"resamples": config.score.resamples, "seed": config.score.seed}
    estimates = statistics.mean_intervals(values, groups, **settings)
    failed = _failed(rows, matched, metrics)
    as_wrong = (
        statistics.mean_intervals(np.where(failed, 0.0, values), groups, **settings) if failed.any() else estimates
    )
    return {
        metric.name: MetricValue(
            value=e.value,
            ci95=e.ci95,
            n=e.n,
            n_unscored=len(rows) - e.n,
            signature=metric.signature,
            interval=e.method,
            n_failed=n_failed,
            failures_as_wrong=wrong.value if n_failed else None,
            failures_as_wrong_ci95=wrong.ci95 if n_failed else None,
        )
        for metric, e, wrong, n_failed in zip(metrics, estimates, as_wrong, failed.sum(axis=0).tolist(), strict=True)
    }


def _failed(rows: list[Score], matched: list[tuple[Question, Prediction]], metrics: list[Metric]) -> NDArray[np.bool_]:
    """Which answers failed where the metric would have scored one, shape (n, metrics): what it scores depends on the references alone."""
    failed = np.zeros((len(rows), len(metrics)), dtype=bool)
    for at, (row, (question, _)) in enumerate(zip(rows, matched, strict=True)):
        if row.unscored is not None:
            failed[at] = [
                metric.score_one(NO_ANSWER, expected(metric.name, question)) is not None for metric in metrics
            ]
    return failed


def _summary(manifest: ScoreManifest) -> str:
    shown = [
        f"{name} {m.value:.3f}" if m.value is not None else f"{name} unscored" for name, m in manifest.metrics.items()
    ]
    failed = manifest.finish.get("error", 0)
    if not failed:
        return ", ".join(shown)
    wrong = [
        f"{name} {m.failures_as_wrong:.3f}" for name, m in manifest.metrics.items() if m.failures_as_wrong is not None
    ]
    return f"{', '.join(shown)}; {failed} of {manifest.n} failed and are unscored; counted as wrong: {', '.join(wrong)}"
