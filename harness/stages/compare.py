"""Compare: paired differences between variants, their verdicts, and alarms.

Reads `scores/`, `predictions/`, `split/` and, if it is there, `run.json`; writes `reports/<run>/comparison.json`. Results that were not asked the
same questions, in the same tokens, with the same parameters, and scored by the same metrics, are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from harness import provenance, registry, storage
from harness.analysis import (
    against_few_shot,
    against_no_model,
    alarms,
    buckets,
    contracts,
    fidelity_steps,
    figures,
    paired,
    statistics,
    trainings,
)
from harness.analysis.primary import primary_metric
from harness.analysis.scored import Scored
from harness.config import Config
from harness.errors import ArtifactError, IncomparableError
from harness.gating import shipping
from harness.records import (
    Breakdown,
    Comparison,
    Figure,
    Pair,
    Prediction,
    PredictionManifest,
    Provenance,
    Question,
    Score,
    ScoreSet,
    SeedRuns,
    SplitIdentity,
    SplitManifest,
    TaughtScores,
    VariantIdentity,
    VariantResult,
)
from harness.storage import RunFolder
from harness.variants import ADAPTER, UNTUNED, is_exported, pairs

log = logging.getLogger(__name__)

LATER_STAGES = ("compare", "report", "gate")


def run(run: RunFolder, config: Config, *, force: bool = False) -> Comparison:
    """Compares the variants of a run, each with what `harness.variants` says.

    Raises:
        ArtifactError: scores are missing, damaged, or of other predictions; IncomparableError: two variants differ in split, prompts, metric
        signatures or generation parameters.
    """
    split = storage.read_record(run.split_json, SplitManifest)
    storage.check_written(run.heldout_jsonl, split.heldout_sha256, "split")
    names = storage.read_record(run.score_json, ScoreSet).variants
    fingerprint = _fingerprint(run, config, names)
    if not force and (old := storage.up_to_date(run.comparison_json, Comparison, fingerprint, lambda _: True)):
        log.info("compare: scores are unchanged")
        return old
    variants = _comparable(run, names, split, config)
    tested = pairs(list(variants), {*config.predict.extra})
    log.info(f"compare: {len(variants)} variants, {len(tested)} pairs, {config.compare.resamples} resamples")
    questions = storage.read_records(run.heldout_jsonl, Question)
    first = next(iter(variants.values()))
    primary, reason = primary_metric(
        first.metrics, ([q.answer, *q.references] for q in questions), config.compare.primary
    )
    results = {name: _result(scored) for name, scored in variants.items()}
    differences = paired.differences([(variants[left], variants[right]) for left, right in tested], config, primary)
    manifests, tuned = {v: s.manifest for v, s in variants.items()}, _fine_tuned(variants, config)
    comparison = Comparison(
        run=run.name,
        split_id=split.split_id,
        n=first.manifest.n,
        n_groups=first.manifest.n_groups,
        variants=results,
        pairs=differences,
        primary=primary,
        primary_reason=reason,
        baselines=split.baselines.get("grouped", {}),
        baseline_pairs=against_no_model.pairs(run, list(variants.values()), primary, config.compare),
        against_few_shot=list(against_few_shot.find(run, results, differences, primary)),
        examples=[found for left, right in tested if (found := paired.examples(variants[left], variants[right]))],
        alarms=list(alarms.find(run, manifests, questions, tuned, config.compare)),
        breakdowns=list(_breakdowns(questions, list(variants.values()))),
        figures=_figures(run, questions, list(variants.values()), primary, config),
        fidelity=fidelity_steps.rows(run, config, list(variants)),
        noise={name: scored.noise for name, scored in variants.items() if scored.noise},
        fingerprint=fingerprint,
        provenance=_provenance(run, split, names),
    )
    columns = {name: scored.values[:, scored.metrics.index(primary)] for name, scored in variants.items()}
    decided = shipping.decide(comparison, columns, first.groups, config)
    comparison = comparison.model_copy(update={"shipping": decided})
    storage.write_json(run.comparison_json, comparison)
    return comparison


def compare_runs(
    run_a: RunFolder, run_b: RunFolder, config: Config | None = None, *, spread: trainings.KnownSpread | None = None
) -> list[Pair]:
    """Pairs each variant that both runs scored, `A/variant` minus `B/variant`; nothing is written.

    A run of several trainings is their mean, and the interval is of questions and seeds together. Of one training the spread between seeds is the
    baseline's, where that is of the same questions; else `Pair.seed_note` says that the interval does not cover seeds.

    Args:
        spread: how far trainings differ, as the gate's baseline knows it (`harness.gating.baseline.known_spread`).

    Raises:
        ArtifactError: scores are missing, or the runs have no variant in common; IncomparableError as in `run`.
    """
    config = config or Config()
    loaded: list[dict[str, Scored]] = []
    for folder in (run_a, run_b):
        split = storage.read_record(folder.split_json, SplitManifest)
        names = storage.read_record(folder.score_json, ScoreSet).variants
        scored = {name: _load(folder, name, split, shown=f"{folder.name}/{name}") for name in names}
        loaded.append(_with_seeds(folder, scored, split, config))
    left, right = loaded
    common = [name for name in left if name in right]
    if not common:
        raise ArtifactError(
            f"runs {run_a.name} and {run_b.name} have no variant in common",
            "let predict.variants of both name at least one and the same",
        )
    contracts.refuse_incomparable([side[name] for name in common for side in loaded])
    questions = storage.read_records(run_a.heldout_jsonl, Question)
    primary, _ = primary_metric(
        left[common[0]].metrics, ([q.answer, *q.references] for q in questions), config.compare.primary
    )
    first = left[common[0]].manifest
    signatures = {name: value.signature for name, value in first.metrics.items()}
    known = spread.of(first.split_id, signatures) if spread else {}
    return paired.differences([(left[name], right[name]) for name in common], config, primary, known=known)


def _comparable(run: RunFolder, names: list[str], split: SplitManifest, config: Config) -> dict[str, Scored]:
    """The scored variants of a run, at least one, that may be compared with each other."""
    if not names:
        raise ArtifactError(
            "no variant was scored",
            "name one in predict.variants, then run harness predict and score",
            file=run.score_json,
        )
    variants = _with_seeds(run, {name: _load(run, name, split) for name in names}, split, config)
    contracts.refuse_incomparable(list(variants.values()))
    return variants


def _fine_tuned(names: Iterable[str], config: Config) -> list[str]:
    """The variants that training made: here, or elsewhere as an adapter."""
    extra = config.predict.extra
    return [
        name
        for name in names
        if (extra[name].adapter is not None if name in extra else name == ADAPTER or is_exported(name))
    ]


def _with_seeds(run: RunFolder, variants: dict[str, Scored], split: SplitManifest, config: Config) -> dict[str, Scored]:
    """The variants, each that further runs trained with other seeds (`seeds.json`) as the mean over all trainings."""
    if not run.seeds_json.exists():
        return variants
    listed = storage.read_record(run.seeds_json, SeedRuns)
    found = dict(variants)
    for name, own in variants.items():
        of_seeds = [replace(own, seed=str(listed.seed))]
        for seed, other in listed.further.items():
            folder = RunFolder(other, run.root)
            if folder.score(name)[1].exists():
                of_seeds.append(replace(_load(folder, name, split, shown=f"{other}/{name}"), seed=seed))
        if len(of_seeds) > 1 and name not in UNTUNED:
            contracts.refuse_incomparable(of_seeds)
            found[name] = trainings.pooled(of_seeds, config)
    return found


# ---------------------------------------------------------------------------------------------------------- breakdowns


def _breakdowns(questions: list[Question], variants: Sequence[Scored]) -> Iterator[Breakdown]:
    first = variants[0]
    shown = registry.summary_metrics()
    chosen = [k for k, metric in enumerate(first.metrics) if metric in shown] or list(range(len(first.metrics)))
    values = np.hstack([scored.values[:, chosen] for scored in variants])
    names = [(scored.name, first.metrics[k]) for scored in variants for k in chosen]
    groups = np.unique(np.asarray(first.groups), return_inverse=True)[1]
    for by, bucket, rows in buckets.buckets(questions):
        estimates = statistics.mean_intervals(values[rows], groups[rows], resamples=0, seed=0)
        for (variant, metric), e in zip(names, estimates, strict=True):
            yield Breakdown(by=by, bucket=bucket, variant=variant, metric=metric, value=e.value, ci95=e.ci95, n=e.n)


def _figures(
    run: RunFolder, questions: list[Question], variants: Sequence[Scored], primary: str, config: Config
) -> list[Figure]:
    """Figures that the averages hide, and those of the second held-out side where the split has one."""
    answers = [_said(run, scored) for scored in variants]
    found = figures.find(questions, answers, primary, config.compare.easy_kinds)
    if run.taught_json.exists():
        found += figures.taught(storage.read_record(run.taught_json, TaughtScores), primary)
    return found


def _said(run: RunFolder, scored: Scored) -> figures.Answers:
    texts = {
        found.id: None if found.finish_reason == "error" else found.text
        for found in storage.iter_records(run.prediction(scored.name)[0], Prediction)
    }
    scores = {metric: scored.values[:, k] for k, metric in enumerate(scored.metrics)}
    return figures.Answers(scored.name, [texts.get(name) for name in scored.ids], scores)


# ------------------------------------------------------------------------------------------------------ files and hashes


def _load(run: RunFolder, name: str, split: SplitManifest, *, shown: str | None = None) -> Scored:
    """A variant's scores, checked to be complete, of this split, and of the predictions beside them."""
    path, manifest_path = run.score(name)
    manifest = storage.read_scored(run, name)
    if manifest.split_id != split.split_id:
        raise IncomparableError(
            f"{shown or name} and the split differ in split: {manifest.split_id[:12]} against {split.split_id[:12]}",
            "run harness predict and score again",
            file=manifest_path,
        )
    asked = storage.read_record(run.prediction(name)[1], PredictionManifest)
    metrics = list(manifest.metrics)
    ids, groups = [], []
    values = np.empty((manifest.n, len(metrics)))
    for i, row in enumerate(storage.iter_records(path, Score)):
        ids.append(row.id)
        groups.append(row.group)
        values[i] = [np.nan if (score := row.scores[m]) is None else score for m in metrics]
    texts = [[row.id, row.text] for row in storage.iter_records(run.prediction(name)[0], Prediction)]
    return Scored(
        name=shown or name,
        manifest=manifest,
        metrics=metrics,
        ids=ids,
        groups=groups,
        values=values,
        texts_sha256=storage.sha256_json(texts),
        noise=asked.noise,
        tokenizer_sha256=asked.tokenizer_sha256,
        own=asked.asked == "own",
    )


def _result(scored: Scored) -> VariantResult:
    manifest = scored.manifest
    return VariantResult(
        metrics=manifest.metrics,
        cost=manifest.cost,
        backend=manifest.backend,
        finish=manifest.finish,
        empty_answers=manifest.empty_answers,
        own=scored.own_metrics,
        trainings=scored.means,
    )


def _fingerprint(run: RunFolder, config: Config, names: list[str]) -> str:
    files = [
        run.split_json,
        run.heldout_jsonl,
        *(path for name in names for path in (*run.score(name), *run.prediction(name))),
    ]
    files += [file for file in (*run.no_model, run.taught_json) if file.exists()]
    if run.seeds_json.exists():
        others = storage.read_record(run.seeds_json, SeedRuns).further.values()
        scored = [path for other in others for name in names for path in RunFolder(other, run.root).score(name)]
        files += [run.seeds_json, *(path for path in scored if path.exists())]
    gate = config.gate.model_dump(include={"fidelity", "alarms"})
    settings = [config.compare.model_dump(), config.ship.model_dump(), gate, sorted(config.predict.extra)]
    settings += [config.score.resamples, config.score.seed]
    return storage.sha256_json(
        [[storage.sha256_file(file) for file in files], settings, names, storage.code_sha256("harness.stages.compare")]
    )


def _provenance(run: RunFolder, split: SplitManifest, names: list[str]) -> Provenance:
    """The content of run.json, without compare and later stages, and what identifies the split and the models."""
    recorded = provenance.read(run)
    stages = {verb: stage for verb, stage in recorded.get("stages", {}).items() if verb not in LATER_STAGES}
    asked = {name: storage.read_record(run.prediction(name)[1], PredictionManifest) for name in names}
    return recorded | Provenance(
        stages=stages,
        commands=provenance.commands(recorded),
        split=SplitIdentity(**split.model_dump(include=set(SplitIdentity.__annotations__))),
        variants={
            name: VariantIdentity(**manifest.model_dump(include=set(VariantIdentity.__annotations__)))
            for name, manifest in asked.items()
        },
    )
