"""Score: every answer against its references, and every mean with its interval.

Reads `predictions/` and `split/heldout.jsonl`; writes `scores/<variant>.jsonl`, `scores/<variant>.json` and, last, `scores/manifest.json`. Pure CPU,
and never generates: touching a metric scores the same answers again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from harness import store
from harness.analysis import statistics
from harness.config import Config
from harness.errors import ArtifactError, IncomparableError
from harness.metrics import Metric, find
from harness.records import (
    MetricValue,
    Prediction,
    PredictionManifest,
    PredictionSet,
    Question,
    Score,
    ScoreManifest,
    ScoreSet,
    SplitManifest,
)
from harness.store import RunFolder

SOURCES = ("metrics", "analysis/resampling.py", "analysis/statistics.py", "stages/score.py")
PREDICT_AGAIN = "run harness predict again"


def run(run: RunFolder, config: Config, *, progress: Callable[[str], None] = lambda _: None, force: bool = False) -> ScoreSet:
    """Scores every variant that answered; variants whose answers, metrics and settings are unchanged are kept.

    Raises:
        ArtifactError: predictions are missing, damaged, or not of the held-out questions; IncomparableError: they are of another split;
        ConfigError: an unknown metric.
    """
    metrics = [find(name) for name in config.score.metrics]
    split = store.read_record(run.split_json, SplitManifest)
    answered = store.read_record(run.predict_json, PredictionSet).variants
    common = [
        store.sha256_file(run.heldout_jsonl),
        config.score.model_dump(),
        [m.signature for m in metrics],
        store.source_sha256(*SOURCES),
    ]
    questions: list[Question] = []
    prints: list[str] = []
    for variant in answered:
        fingerprint = store.sha256_json([*common, split.split_id, *map(store.sha256_file, run.prediction(variant))])
        prints.append(fingerprint)
        if not force and _is_scored(run, variant, fingerprint):
            progress(f"{variant}: scores are unchanged")
            continue
        questions = questions or store.read_records(run.heldout_jsonl, Question)
        run.score_json.unlink(missing_ok=True)
        manifest = _score_variant(run, config, metrics, split, questions, variant, fingerprint)
        progress(f"{variant}: {_summary(manifest)}")
    scored = ScoreSet(fingerprint=store.sha256_json(prints), variants=answered)
    # Written even if nothing changed: make goes by its time.
    store.write_json(run.score_json, scored)
    return scored


def _is_scored(run: RunFolder, variant: str, fingerprint: str) -> bool:
    lines, manifest = run.score(variant)
    if not (lines.exists() and manifest.exists()):
        return False
    try:
        old = store.read_record(manifest, ScoreManifest)
    except ArtifactError:
        return False  # damaged, or of another version: scored again
    return old.fingerprint == fingerprint and old.lines_sha256 == store.sha256_file(lines)


def _score_variant(
    run: RunFolder, config: Config, metrics: list[Metric], split: SplitManifest, questions: list[Question], variant: str, fingerprint: str
) -> ScoreManifest:
    answers = run.prediction(variant)[0]
    asked = store.read_record(run.prediction(variant)[1], PredictionManifest)
    if asked.split_id != split.split_id:
        raise IncomparableError(
            f"{variant} answered split {asked.split_id[:12]}, and the split is {split.split_id[:12]}", PREDICT_AGAIN, file=answers
        )
    if asked.lines_sha256 and asked.lines_sha256 != store.sha256_file(answers):
        raise ArtifactError("is not what predict wrote", PREDICT_AGAIN, file=answers)

    rows, empty = [], 0
    for question, prediction in _matched(answers, questions):
        failed = prediction.finish_reason == "error"
        empty += not failed and not prediction.text.strip()
        references = [question.answer, *question.references]
        scores = {m.name: None if failed else m.score_one(prediction.text, references) for m in metrics}
        rows.append(Score(id=question.id, group=question.group, scores=scores, unscored=(prediction.error or "failed") if failed else None))

    lines, manifest_path = run.score(variant)
    manifest_path.unlink(missing_ok=True)
    store.write_jsonl(lines, rows)
    manifest = ScoreManifest(
        fingerprint=fingerprint,
        variant=variant,
        split_id=split.split_id,
        prediction_key=asked.key,
        prompts_sha256=asked.prompts_sha256,
        generation=asked.generation,
        backend=asked.backend,
        lines_sha256=store.sha256_file(lines),
        n=len(rows),
        n_groups=len({row.group for row in rows}),
        metrics=_means(rows, metrics, config),
        finish=asked.finish,
        empty_answers=empty,
        prompts_cut=asked.prompts_cut,
        cost=asked.cost,
    )
    store.write_json(manifest_path, manifest)
    return manifest


def _matched(path: Path, questions: list[Question]) -> list[tuple[Question, Prediction]]:
    """Each question with its answer, in the order of the split; ArtifactError if the two files are not about the same questions."""
    found: dict[str, Prediction] = {}
    for number, prediction in enumerate(store.iter_records(path, Prediction), 1):
        if prediction.id in found:
            raise ArtifactError(f"answers question {prediction.id!r} twice", PREDICT_AGAIN, file=path, row=number)
        # The token ids are most of a line and no metric reads them.
        found[prediction.id] = prediction.model_copy(update={"prompt_ids": [], "answer_ids": []})
    missing = [q.id for q in questions if q.id not in found]
    if missing:
        raise ArtifactError(f"lacks the answer to {len(missing)} held-out questions, {missing[0]!r} first", PREDICT_AGAIN, file=path)
    if len(found) > len(questions):
        unknown = min(found.keys() - {q.id for q in questions})
        raise ArtifactError(
            f"answers {len(found) - len(questions)} questions that are not held out, {unknown!r} among them", PREDICT_AGAIN, file=path
        )
    return [(question, found[question.id]) for question in questions]


def _means(rows: list[Score], metrics: list[Metric], config: Config) -> dict[str, MetricValue]:
    values = np.array([[row.scores[m.name] for m in metrics] for row in rows], dtype=np.float64)  # None becomes NaN
    groups = [row.group for row in rows]
    estimates = statistics.mean_intervals(values, groups, resamples=config.score.resamples, seed=config.score.seed)
    return {
        metric.name: MetricValue(
            value=e.value, ci95=e.ci95, n=e.n, n_unscored=len(rows) - e.n, signature=metric.signature, interval=e.method
        )
        for metric, e in zip(metrics, estimates, strict=True)
    }


def _summary(manifest: ScoreManifest) -> str:
    shown = [f"{name} {m.value:.3f}" if m.value is not None else f"{name} unscored" for name, m in manifest.metrics.items()]
    failed = manifest.finish.get("error", 0)
    return f"{', '.join(shown)}" + (f"; {failed} of {manifest.n} failed and are unscored" if failed else "")
