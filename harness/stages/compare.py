"""Compare: paired differences between variants, what may be said of them, and what makes the numbers doubtful.

Reads `scores/`, `predictions/`, `split/` and, if it is there, `run.json`; writes `reports/<run>/comparison.json`. Results that were not asked the
same questions, in the same tokens, with the same parameters, and scored by the same metrics, are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from harness import provenance, registry, storage
from harness.analysis import against_no_model, alarms, buckets, fidelity, figures, seeds, statistics, trainings
from harness.analysis.primary import primary_metric
from harness.analysis.resampling import Floats
from harness.analysis.seeds import SeedVariance
from harness.config import Config
from harness.errors import ArtifactError, IncomparableError
from harness.gating import shipping
from harness.records import (
    Breakdown,
    Comparison,
    Contract,
    Example,
    Figure,
    MetricValue,
    Pair,
    PairExamples,
    Prediction,
    PredictionManifest,
    Question,
    Score,
    ScoreManifest,
    ScoreSet,
    SeedRuns,
    SplitManifest,
    TaughtScores,
    VariantResult,
)
from harness.storage import RunFolder
from harness.variants import ADAPTER, BASE, is_exported, pairs

SCORE_AGAIN = "run harness score again"
LATER_STAGES = ("compare", "report", "gate")
TEXT = "own"
"""In place of a tokenizer's hash: the model got text or messages."""
TOKENS = ("stop_ids", "pad_id")
"""Parameters of generation that are a tokenizer's own."""
EXAMPLES = 10
"""Wins, and losses, of a pair."""


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
    noise: dict[str, Any] = field(default_factory=dict)
    """As in PredictionManifest."""
    tokenizer_sha256: str = ""
    own: bool = False
    """It was asked by its own tokenizer and prompt, not by the run's."""
    seed: str = ""
    """Of the training, where a run holds several."""
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
        """Share of answers that change when nothing but the batch size does; 0 if that was not measured."""
        return self.noise.get("flip_rate", 0.0)


def run(
    run: RunFolder, config: Config, *, progress: Callable[[str], None] = lambda _: None, force: bool = False
) -> Comparison:
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
        progress("compare: scores are unchanged")
        return old
    variants = _with_seeds(run, {name: _load(run, name, split) for name in names}, split, config)
    if not variants:
        raise ArtifactError(
            "no variant was scored",
            "name one in predict.variants, then run harness predict and score",
            file=run.score_json,
        )
    refuse_incomparable(list(variants.values()))

    tested = pairs(list(variants), {*config.predict.extra})
    progress(f"compare: {len(variants)} variants, {len(tested)} pairs, {config.compare.resamples} resamples")
    questions = storage.read_records(run.heldout_jsonl, Question)
    first = next(iter(variants.values()))
    primary, reason = primary_metric(
        first.metrics, ([q.answer, *q.references] for q in questions), config.compare.primary
    )
    tuned = [
        name
        for name in variants
        if (
            extra.adapter is not None
            if (extra := config.predict.extra.get(name))
            else name == ADAPTER or is_exported(name)
        )
    ]
    comparison = Comparison(
        run=run.name,
        split_id=split.split_id,
        n=first.manifest.n,
        n_groups=first.manifest.n_groups,
        variants={name: _result(scored) for name, scored in variants.items()},
        pairs=differences([(variants[left], variants[right]) for left, right in tested], config, primary),
        primary=primary,
        primary_reason=reason,
        baselines=split.baselines.get("grouped", {}),
        baseline_pairs=against_no_model.pairs(run, list(variants.values()), primary, config.compare),
        examples=[found for left, right in tested if (found := examples(variants[left], variants[right]))],
        alarms=list(alarms.find(run, {v: s.manifest for v, s in variants.items()}, questions, tuned, config.compare)),
        breakdowns=list(_breakdowns(questions, list(variants.values()))),
        figures=[
            *figures.find(
                questions, [_said(run, scored) for scored in variants.values()], primary, config.compare.easy_kinds
            ),
            *_taught(run, primary),
        ],
        fidelity=_fidelity(run, config, list(variants)),
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
    baseline's, where that is of the same questions; else `Pair.seed_note` says that the interval knows nothing of seeds.

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
    refuse_incomparable([side[name] for name in common for side in loaded])
    questions = storage.read_records(run_a.heldout_jsonl, Question)
    primary, _ = primary_metric(
        left[common[0]].metrics, ([q.answer, *q.references] for q in questions), config.compare.primary
    )
    first = left[common[0]].manifest
    signatures = {name: value.signature for name, value in first.metrics.items()}
    known = spread.of(first.split_id, signatures) if spread else {}
    return differences([(left[name], right[name]) for name in common], config, primary, known=known)


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
        if len(of_seeds) > 1 and name != BASE:
            refuse_incomparable(of_seeds)
            found[name] = trainings.pooled(of_seeds, config)
    return found


# ------------------------------------------------------------------------------------------------------- comparability


def refuse_incomparable(variants: Sequence[Scored]) -> None:
    """Raises IncomparableError, naming what differs, unless all were asked and scored alike."""
    first, *others = variants
    for other in others:
        found = [(f"{what}: {differs}", hint) for what, differs, hint in _contract(first, other) if differs]
        if found:
            raise IncomparableError(
                f"{first.name} and {other.name} differ in {', and in '.join(what for what, _ in found)}", found[0][1]
            )


def contract_of(a: Scored, b: Scored) -> Contract:
    """What two variants share: `same ids` where tokenizer, prompts and end tokens are equal, else `same question`."""
    same = [
        (side.tokenizer_sha256, side.manifest.prompts_sha256, side.manifest.generation.get("stop_ids"))
        for side in (a, b)
    ]
    tokenised = a.tokenizer_sha256 != TEXT
    return "same ids" if tokenised and same[0] == same[1] else "same question"


def _contract(a: Scored, b: Scored) -> Iterator[tuple[str, str, str]]:
    """(what, how it differs or "", hint) of everything that must be equal.

    Two variants that were asked as the run asks must have the same prompts, token by token; a model that was asked by its own tokenizer, or one of
    another run with another tokenizer, shares the questions.
    """
    left, right = a.manifest, b.manifest
    again = "run harness predict and score for both with one config"
    foreign = a.own or b.own or a.tokenizer_sha256 != b.tokenizer_sha256
    yield "split", _unequal(left.split_id[:12], right.split_id[:12]), "answer both on one split, then score again"
    limits = [{k: v for k, v in m.generation.items() if not (foreign and k in TOKENS)} for m in (left, right)]
    yield "generation parameters", _unequal_keys(*limits), again
    if left.split_id == right.split_id:  # else the prompts and the questions are others as a matter of course
        if not foreign:
            yield (
                "prompts",
                _unequal(left.prompts_sha256[:12], right.prompts_sha256[:12]),
                f"use one template and tokenizer; {again}",
            )
        yield (
            "questions",
            "" if (a.ids, a.groups) == (b.ids, b.groups) else f"{len(a.ids)} against {len(b.ids)}",
            SCORE_AGAIN,
        )
    signatures = [{name: value.signature for name, value in m.metrics.items()} for m in (left, right)]
    yield "metric signatures", _unequal_keys(*signatures), "score both with the same metrics and versions"


def _unequal(left: object, right: object) -> str:
    return "" if left == right else f"{left} against {right}"


def _unequal_keys(left: dict[str, Any], right: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {left.get(key, 'absent')} against {right.get(key, 'absent')}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    )


# --------------------------------------------------------------------------------------------------------------- pairs


def differences(
    pairs: Sequence[tuple[Scored, Scored]],
    config: Config,
    primary: str,
    *,
    known: trainings.Known | None = None,
) -> list[Pair]:
    """Every metric of every pair, tested; p-values are corrected within two families.

    Confirmatory: the primary metric on the pairs that the headline and the list of formats use, so that what decides does not pay for what
    only informs. Secondary: all other tests. A pair of an exported format and the adapter is secondary where `merged_16bit` answered too.

    The pairs must have passed `refuse_incomparable`.

    Args:
        known: the pairs are of two runs, each trained with seeds of its own, and this is known of how far seeds differ.
    """
    if not pairs:
        return []
    metrics = pairs[0][0].metrics
    merged = any("merged_16bit" in (a.name, b.name) for a, b in pairs)
    confirmatory = [metric == primary and not (merged and b.name == "adapter") for _, b in pairs for metric in metrics]
    left, right = (np.hstack([pair[side].values for pair in pairs]) for side in (0, 1))
    settings = config.compare
    found = statistics.paired_differences(
        left,
        right,
        pairs[0][0].groups,
        resamples=settings.resamples,
        seed=settings.seed,
        family=[int(not main) for main in confirmatory],
    )
    tested = [(a, b, metric) for a, b in pairs for metric in metrics]
    of_seeds = [
        trainings.within(a, b, k) if known is None else trainings.between(a, b, k, known)
        for a, b in pairs
        for k in range(len(metrics))
    ]
    found = [seeds.widened(d, variance) for d, (variance, _, _) in zip(found, of_seeds, strict=True)]
    return [
        Pair(
            left=a.name,
            right=b.name,
            metric=metric,
            delta=d.value,
            ci95=d.ci95,
            p=d.p,
            p_adjusted=d.p_adjusted,
            family="confirmatory" if main else "secondary",
            verdict=statistics.verdict(
                d.value, d.ci95, d.p_adjusted, settings.margin, identical=a.texts_sha256 == b.texts_sha256 != ""
            ),
            n=d.n,
            contract=contract_of(a, b),
            margin=settings.margin,
            noise_floor=max(a.flip_rate, b.flip_rate),
            mde=d.mde,
            p_mcnemar=statistics.mcnemar_exact(d.wins, d.losses) if registry.METRICS[metric].binary and d.n else None,
            wins=d.wins,
            losses=d.losses,
            ties=d.ties,
            trainings=counts,
            seed_note=note,
        )
        for (a, b, metric), d, main, (_, counts, note) in zip(tested, found, confirmatory, of_seeds, strict=True)
    ]


def examples(left: Scored, right: Scored) -> PairExamples | None:
    """The questions on which left gains and loses most against right, `EXAMPLES` of each; of equals the first in the file. None if there are none."""
    metric = next((name for name in registry.graded_metrics() if name in left.metrics), left.metrics[0])
    a, b = (side.values[:, side.metrics.index(metric)] for side in (left, right))
    deltas = np.nan_to_num(a - b)

    def largest(gains: Floats) -> list[Example]:
        rows = [int(row) for row in np.argsort(-gains, kind="stable")[:EXAMPLES] if gains[row] > 0]
        return [
            Example(id=left.ids[row], left=float(a[row]), right=float(b[row]), delta=float(deltas[row])) for row in rows
        ]

    wins, losses = largest(deltas), largest(-deltas)
    return (
        PairExamples(left=left.name, right=right.name, metric=metric, wins=wins, losses=losses)
        if wins or losses
        else None
    )


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


def _taught(run: RunFolder, primary: str) -> list[Figure]:
    """What the second held-out side says; nothing where the split has none."""
    if not run.taught_json.exists():
        return []
    return figures.taught(storage.read_record(run.taught_json, TaughtScores), primary)


def _said(run: RunFolder, scored: Scored) -> figures.Answers:
    texts = {
        found.id: None if found.finish_reason == "error" else found.text
        for found in storage.iter_records(run.prediction(scored.name)[0], Prediction)
    }
    scores = {metric: scored.values[:, k] for k, metric in enumerate(scored.metrics)}
    return figures.Answers(scored.name, [texts.get(name) for name in scored.ids], scores)


# ------------------------------------------------------------------------------------------------------------ fidelity


@dataclass(frozen=True)
class _Answers:
    """What a variant answered, and what it thought of the reference answers."""

    texts: dict[str, str]
    """Question -> text; failed questions are left out."""
    ids: dict[str, list[int]]
    measured: str
    logprobs: dict[str, Floats]
    """Question -> (tokens, vocabulary); empty if not measured."""
    tokens: dict[str, Any]
    """Question -> token ids of the reference answer, shape (tokens,)."""


def _fidelity(run: RunFolder, config: Config, names: list[str]) -> list[dict[str, Any]]:
    """A row for each step from the adapter to the smallest format."""
    steps = fidelity.steps([name for name in names if name not in config.predict.extra])
    # Over a large vocabulary each takes hundreds of megabytes: the reference, the format and the one before it are held, and no more.
    answers = lru_cache(maxsize=3)(lambda name: _answers(run, name))
    # The right side first: it is the one that the next step needs again, and so the one to keep.
    return [_step(left, right, b=answers(right), a=answers(left)) for left, right in steps]


def _step(left: str, right: str, *, a: _Answers, b: _Answers) -> dict[str, Any]:
    common = [question for question in a.texts if question in b.texts]
    probed = [question for question in a.logprobs if question in b.logprobs] if a.measured == b.measured else []
    row: dict[str, Any] = {
        "left": left,
        "right": right,
        "identical": fidelity.identical_share([a.texts[q] for q in common], [b.texts[q] for q in common]),
        "token_agreement": fidelity.token_agreement([a.ids[q] for q in common], [b.ids[q] for q in common]),
        "n": len(common),
    }
    if not probed:
        return row
    try:
        tokens = [b.tokens[q] for q in probed] if b.tokens else None
        found = fidelity.divergence([b.logprobs[q] for q in probed], [a.logprobs[q] for q in probed], tokens)
    except ValueError:
        return row  # a vocabulary was padded: distributions over other tokens
    return row if found is None else row | asdict(found)


def _answers(run: RunFolder, name: str) -> _Answers:
    lines, manifest_path = run.prediction(name)
    asked = storage.read_record(manifest_path, PredictionManifest)
    storage.check_written(lines, asked.lines_sha256, "predict")
    rows = [row for row in storage.iter_records(lines, Prediction) if row.finish_reason != "error"]
    logprobs: dict[str, Floats] = {}
    tokens: dict[str, Any] = {}
    if asked.logprobs_sha256:
        file = lines.with_suffix(fidelity.SUFFIX)
        storage.check_written(file, asked.logprobs_sha256, "predict")
        with np.load(file, allow_pickle=False) as arrays:
            ends = np.cumsum(arrays["lengths"])[:-1]
            logprobs = (
                dict(zip(arrays["ids"].tolist(), np.split(arrays["logprobs"], ends), strict=True))
                if len(arrays["ids"])
                else {}
            )
            if "tokens" in arrays and logprobs:
                tokens = dict(zip(logprobs, np.split(arrays["tokens"], ends), strict=True))
    texts, ids = ({r.id: getattr(r, name) for r in rows} for name in ("text", "answer_ids"))
    return _Answers(texts, ids, asked.measured, logprobs, tokens)


# ------------------------------------------------------------------------------------------------------ files and hashes


def _load(run: RunFolder, name: str, split: SplitManifest, *, shown: str | None = None) -> Scored:
    """A variant's scores, checked to be whole, of this split, and of the predictions that stand beside them."""
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


def _provenance(run: RunFolder, split: SplitManifest, names: list[str]) -> dict[str, Any]:
    """run.json as it stands, without the stages that come from here on, and what identifies the split and the models."""
    recorded = storage.read_json(run.run_json) if run.run_json.exists() else {}
    stages = {verb: stage for verb, stage in recorded.get("stages", {}).items() if verb not in LATER_STAGES}
    asked = {name: storage.read_record(run.prediction(name)[1], PredictionManifest) for name in names}
    kept = (
        "backend",
        "backend_version",
        "weights_sha256",
        "tokenizer_sha256",
        "prompts_sha256",
        "generation",
        "execution",
        "warnings",
        "asked",
        "findings",
    )
    return {
        **recorded,
        "stages": stages,
        "commands": provenance.commands(recorded),
        "split": split.model_dump(
            include={
                "split_id",
                "source",
                "source_sha256",
                "n_train",
                "n_heldout",
                "n_groups_train",
                "n_groups_heldout",
                "seed",
            }
        ),
        "variants": {name: manifest.model_dump(include=set(kept)) for name, manifest in asked.items()},
    }
