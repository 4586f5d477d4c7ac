"""split, artifacts -> predictions/<variant>.jsonl + .json: every variant answers every held-out question from the same token ids.

Each variant answers in a separate process, or in several (`harness.prediction.runners`). Answers are kept batch by batch, so that an interrupted run
loses the batches in flight at most. The same process then answers the second held-out side (`data.taught`), where there is one, and measures
fidelity and noise (`harness.prediction.fidelity_probe`).
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import backends, storage
from harness.analysis import fidelity
from harness.backends import Completion
from harness.config import Config
from harness.errors import ConfigError, ModelError
from harness.models import adapters, base_model
from harness.prediction import answers, fidelity_probe
from harness.prediction.fidelity_probe import FidelityProbe
from harness.prediction.jobs import Job, Weights, base_folder, find_weights, installed, jobs
from harness.prediction.journal import Journal
from harness.prediction.runners import InProcessRunner, Runner, WorkerPool
from harness.prompt import prompt_hash
from harness.records import Cost, Finding, Prediction, PredictionManifest, PredictionSet, SplitManifest, Thinking
from harness.registry import BACKENDS
from harness.storage import RunFolder
from harness.variants import is_exported

log = logging.getLogger(__name__)


def run(
    run: RunFolder,
    config: Config,
    *,
    force: bool = False,
    only: list[str] | None = None,
    objects: Mapping[str, Any] | None = None,
) -> dict[str, PredictionManifest]:
    """Has every variant of `config.predict` answer the held-out questions; variants that answered the same already are kept.

    Args:
        only: answer with these variants only; the others' earlier predictions stay.
        objects: variant of the backend `python` -> the function or loaded model that answers.
    Raises:
        ConfigError: `only` names a variant that the config has not; ArtifactError: an artifact is missing, or is not what export wrote;
        ModelError: a model cannot be loaded; StorageError.
    """
    split, questions = storage.read_split(run)
    taught = storage.read_taught(run, split)
    wanted = config.predict.variants + [v for v in config.predict.extra if v not in config.predict.variants]
    if unknown := [v for v in only or [] if v not in wanted]:
        raise ConfigError(f"no variant {unknown[0]!r} in this config", f"use one of {', '.join(wanted)}")
    asked_now = [v for v in wanted if only is None or v in only]
    folder = base_folder(config, asked_now)
    weights = find_weights(run, config, folder, asked_now, objects)
    fingerprint = "" if only else _fingerprint(config, split, folder, weights)
    if fingerprint and not force and (old := _unchanged(run, fingerprint, bool(taught))):
        log.info(f"predict: unchanged, {len(questions)} answers of each of {len(old)} variants")
        return old
    probe = fidelity_probe.probe(config, questions)
    manifests = {}
    run.predict_json.unlink(missing_ok=True)
    further: dict[str, Job] = {}
    if taught and (learned := _asked_what_was_taught(asked_now)):
        again = jobs(run, config, split.split_id, taught, learned, weights, taught=True)
        further = {job.variant: job for job in again}
    for job in jobs(run, config, split.split_id, questions, asked_now, weights):
        also = further.get(job.variant)
        asked = probe if BACKENDS[job.backend].logprobs else None
        kept = _answered(job, force)
        asked = None if kept and asked and asked.is_measured(job, kept) else asked
        also = None if also is None or _answered(also, force) else also
        manifests[job.variant] = (
            kept if kept and asked is None and also is None else _in_own_process(job, asked, kept, also)
        )
        manifests[job.variant] = _priced(job, manifests[job.variant])
        log.info(_summary(manifests[job.variant]))
    answered = [v for v in wanted if run.prediction(v)[1].exists()]
    storage.write_json(run.predict_json, PredictionSet(fingerprint=fingerprint, variants=answered))
    return manifests


def _fingerprint(config: Config, split: SplitManifest, folder: Path | None, weights: dict[str, Weights]) -> str:
    """Of everything that decides the answers, known without loading a model or a tokenizer."""
    sources = [found.source for found in weights.values()]
    tokenizers = [
        path for s in sources for path in (s.path, s.adapter) if path is not None and path.is_dir() and s.object is None
    ]
    return storage.sha256_json(
        [
            [split.split_id, split.heldout_sha256, split.taught_sha256],
            [base_model.tokenizer_files_sha256(path) for path in [*([folder] if folder else []), *tokenizers]],
            [[name, found.backend, found.sha256] for name, found in weights.items()],
            [config.prompt.model_dump(), config.predict.model_dump(), config.train.load_in_4bit],
            [base_model.device_of(config.device), config.model.trust_remote_code],
            storage.sha256_large(library) if (library := Path(config.predict.libllama or "")).is_file() else None,
            [installed(backend) for backend in ("transformers", "llamacpp")],
            storage.code_sha256("harness.stages.predict"),
        ]
    )


def _unchanged(run: RunFolder, fingerprint: str, taught: bool) -> dict[str, PredictionManifest] | None:
    """The manifests of all variants, if nothing that decides their answers changed and their files are whole.

    Args:
        taught: there are answers to the second held-out side too.
    """
    found: dict[str, PredictionManifest] = {}

    def is_whole(answered: PredictionSet) -> bool:
        for variant in answered.variants:
            lines, manifest = run.prediction(variant)
            found[variant] = storage.read_record(manifest, PredictionManifest)
            if not storage.is_written(lines, found[variant].lines_sha256):
                return False
            logprobs = found[variant].logprobs_sha256
            if logprobs and not storage.is_written(lines.with_suffix(fidelity.SUFFIX), logprobs):
                return False
            if taught and _asked_what_was_taught([variant]):
                lines, manifest = run.taught_prediction(variant)
                if not storage.is_written(lines, storage.read_record(manifest, PredictionManifest).lines_sha256):
                    return False
        return True

    return found if storage.up_to_date(run.predict_json, PredictionSet, fingerprint, is_whole) else None


def _asked_what_was_taught(variants: list[str]) -> list[str]:
    """The variants that answer the second held-out side, which measures training; formats made from the adapter add nothing to that."""
    return [variant for variant in variants if not is_exported(variant)]


def _summary(manifest: PredictionManifest) -> str:
    rate, cut, thinking = manifest.cost.tokens_per_second or 0, manifest.finish.get("length", 0), manifest.thinking
    line = f"{manifest.variant}: {manifest.n} questions, {rate:,.0f} tokens/s, {cut} cut at the limit"
    if thinking is None:
        return line
    return (
        f"{line}; reasoning of {thinking.mean_tokens:.0f} tokens on average, {thinking.unclosed} unclosed (unanswered)"
    )


def _answered(job: Job, force: bool) -> PredictionManifest | None:
    """The manifest of an earlier answer to exactly this job, if its lines are whole."""
    if force or not job.manifest.exists() or not job.lines.exists():
        return None
    old = storage.read_record(job.manifest, PredictionManifest)
    if old.key != job.key(old.backend_version) or old.lines_sha256 != storage.sha256_file(job.lines):
        return None
    # The version is what the library reports on loading; an upgrade is seen by asking the installed packages.
    return old if old.packages == installed(job.backend) else None


def _in_own_process(
    job: Job,
    probe: FidelityProbe | None = None,
    kept: PredictionManifest | None = None,
    also: Job | None = None,
) -> PredictionManifest:
    """`answer` with the model in separate processes, where it has weights."""
    if BACKENDS[job.backend].in_process:
        return answer(job, probe, kept, also)
    findings = _integrity(job) if job.foreign_adapter and not kept else []
    team = WorkerPool(job, 1 if kept else None)
    try:
        manifest = _answer(job, team, probe, kept, findings, also)
    except BaseException:
        team.kill()
        raise
    team.close()
    return manifest


def _integrity(job: Job) -> list[Finding]:
    """Findings about an adapter that was trained elsewhere; ModelError if it cannot be evaluated at all."""
    assert job.source.adapter is not None
    found = adapters.check(adapters.read(job.source.adapter), job.source.path)
    for finding in found:
        log.warning(f"{job.variant}: warning: {finding.message}")
    return found


def _priced(job: Job, manifest: PredictionManifest) -> PredictionManifest:
    """The manifest with what the answers cost by the price that is configured now; written again if that changed."""
    cost = manifest.cost
    money = None
    if job.price is not None and cost.prompt_tokens is not None:
        money = (cost.prompt_tokens * job.price.input + cost.generated_tokens * job.price.output) / 1e6
    if money == cost.money:
        return manifest
    priced = manifest.model_copy(update={"cost": cost.model_copy(update={"money": money})})
    storage.write_json(job.manifest, priced)
    return priced


def answer(
    job: Job,
    probe: FidelityProbe | None = None,
    kept: PredictionManifest | None = None,
    also: Job | None = None,
) -> PredictionManifest:
    """Answers a job in this process and writes its two files; resumes from the batches that an interrupted run kept.

    Args:
        probe: what to measure once everything is answered, on the model that is loaded already.
        kept: manifest of earlier answers to exactly this job, which then is only measured.
        also: the same model's job for the second held-out side, answered after this one.
    """
    team = InProcessRunner(job)
    try:
        return _answer(job, team, probe, kept, also=also)
    finally:
        team.close()


# ------------------------------------------------------------------------------------------------------------ answers


def _answer(
    job: Job,
    team: Runner,
    probe: FidelityProbe | None,
    kept: PredictionManifest | None,
    findings: Sequence[Finding] = (),
    also: Job | None = None,
) -> PredictionManifest:
    manifest = kept or _answer_all(job, team, findings)
    if also is not None:
        log.info(f"{job.variant}: {len(also.prompts)} trained questions in other words")
        _answer_all(also, team)
    if probe is not None:
        log.info(f"{job.variant}: fidelity and noise on {len(probe.positions)} questions")
        used = replace(job.execution, **{name: manifest.execution[name] for name in ("batch_tokens", "max_batch")})
        manifest = manifest.model_copy(update=fidelity_probe.measure(replace(job, execution=used), team, probe))
        storage.write_json(job.manifest, manifest)
    return manifest


def _answer_all(job: Job, team: Runner, findings: Sequence[Finding] = ()) -> PredictionManifest:
    facts = team.facts
    key = job.key(facts.version)
    journal = Journal(job.lines.with_suffix(".partial"), key)
    execution = backends.resolve_batch_size(
        job.execution, facts.room, len(job.prompts), job.processes, earlier=journal.batch
    )
    job = replace(job, execution=execution)
    with journal.begin(execution):
        share = _ask(job, team, journal)
        if (largest := team.facts.execution.get("largest_batch")) is not None:
            log.info(f"{job.variant}: memory held {largest} questions at once, not {execution.max_batch}")
        predictions = [journal.answers[i] for i in range(len(job.prompts))]
        _refuse_nothing_but_failures(job, journal, predictions)
        _decode_and_write(job, predictions)
        manifest = _manifest(job, key, team, predictions, share).model_copy(update={"findings": list(findings)})
    storage.write_json(job.manifest, manifest)
    journal.path.unlink(missing_ok=True)
    return manifest


def _ask(job: Job, team: Runner, journal: Journal) -> float:
    """Asks every question without an answer in the journal; returns the wall time as a share of the processes' times."""
    room = team.facts.context - job.generation.max_new_tokens
    lengths = job.lengths
    fitting = [i for i, length in enumerate(lengths) if length <= room]
    for i in sorted(set(range(len(lengths))) - set(fitting)):
        reason = f"prompt of {lengths[i]} tokens; the context leaves {room}"
        journal.put([(i, _prediction(job, i, Completion([], "error", 0.0, error=reason), cut=True))])
    cut = backends.batches([lengths[i] for i in fitting], job.execution, job.generation.max_new_tokens)
    positions = [[fitting[j] for j in batch] for batch in cut]
    left = [batch for batch in positions if not all(i in journal.answers for i in batch)]
    began = logged = time.monotonic()
    worked = 0.0
    for k, completions in team.answer_batches([[job.prompts[i] for i in batch] for batch in left]):
        journal.put([(i, _prediction(job, i, c)) for i, c in zip(left[k], completions, strict=True)])
        worked += sum(c.seconds for c in completions)
        if time.monotonic() - logged > 10:
            logged = time.monotonic()
            log.info(f"{job.variant}: {len(journal.answers)}/{len(job.prompts)}")
    if job.processes == 1 and job.backend != "endpoint":
        return 1.0
    return (time.monotonic() - began) / worked if worked else 1 / job.processes


def _refuse_nothing_but_failures(job: Job, journal: Journal, predictions: list[Prediction]) -> None:
    """ModelError if a server refused every question: a setting is wrong, and there is no result. They are asked again the next time."""
    if job.backend == "endpoint" and predictions and all(p.finish_reason == "error" for p in predictions):
        journal.path.unlink(missing_ok=True)
        raise ModelError(
            f"failed on all {len(predictions)} questions ({predictions[0].error})",
            "correct what it complains of, then run the same command again",
            file=job.source.url,
        )


def _prediction(job: Job, i: int, completion: Completion, *, cut: bool = False) -> Prediction:
    ids = completion.prompt_ids or job.ids_of(job.prompts[i])
    return Prediction(
        id=job.questions[i],
        prompt_hash=prompt_hash(ids or job.prompts[i]),
        prompt_ids=ids,
        answer_ids=completion.answer_ids,
        logprobs=completion.rounded_logprobs(),
        text=completion.text or "",
        finish_reason=completion.finish_reason,
        prompt_cut=cut,
        seconds=completion.seconds,
        error=completion.error,
        tokens=completion.tokens,
        prompt_tokens=completion.prompt_tokens,
    )


def _decode_and_write(job: Job, predictions: list[Prediction]) -> None:
    """Texts from token ids, by the tokenizer that asked, and the file of all answers; where it is not known, a backend gives text."""
    tokenizer = job.open_tokenizer()
    for i, p in enumerate(predictions):
        if p.finish_reason != "error":
            found = answers.read(tokenizer, p.prompt_ids, p.answer_ids, p.text)
            predictions[i] = p.model_copy(update=dataclasses.asdict(found))
    storage.write_jsonl(job.lines, predictions)


def _thinking(predictions: list[Prediction]) -> Thinking | None:
    """How long the answers' reasoning was; None if there was none."""
    lengths = [p.thinking_tokens for p in predictions if p.thinking_tokens or p.unclosed]
    if not lengths:
        return None
    return Thinking(
        answers=len(lengths),
        mean_tokens=sum(lengths) / len(lengths),
        longest_tokens=max(lengths),
        unclosed=sum(p.unclosed for p in predictions),
    )


def _manifest(job: Job, key: str, team: Runner, predictions: list[Prediction], share: float) -> PredictionManifest:
    tokens = sum(_tokens(p) for p in predictions)
    seconds = sum(p.seconds for p in predictions) * share
    facts, used = team.facts, job.execution
    return PredictionManifest(
        variant=job.variant,
        key=key,
        split_id=job.split_id,
        backend=job.backend,
        backend_version=facts.version,
        packages=installed(job.backend),
        weights_sha256=job.weights_sha256,
        tokenizer_sha256=job.tokenizer_sha256,
        prompts_sha256=storage.sha256_json([p.prompt_hash for p in predictions]),
        asked=job.asked,
        lines_sha256=storage.sha256_file(job.lines),
        generation=job.generation.__dict__ | {"stop_ids": list(job.generation.stop_ids)},
        execution=facts.execution
        | {
            "batch_tokens": used.batch_tokens,
            "max_batch": used.max_batch,
            "slots": facts.execution.get("slots", used.slots),
            "processes": job.processes,
        },
        n=len(predictions),
        finish=dict(Counter(p.finish_reason for p in predictions)),
        prompts_cut=sum(p.prompt_cut for p in predictions),
        prompt=job.prompt,
        thinking=_thinking(predictions),
        cost=Cost(
            tokens_per_second=tokens / seconds if seconds > 0 else None,
            seconds=seconds,
            load_seconds=team.load_seconds,
            generated_tokens=tokens,
            peak_memory_bytes=team.peak_memory_bytes(),
            size_bytes=job.size_bytes,
            prompt_tokens=_prompt_tokens(job, predictions),
        ),
    )


def _tokens(p: Prediction) -> int:
    """Generated tokens of an answer, the end token included: by the server's count, else by the ids."""
    if p.tokens is not None:
        return p.tokens
    return len(p.answer_ids) + (p.finish_reason == "stop" and bool(p.answer_ids or p.prompt_ids))


def _prompt_tokens(job: Job, predictions: list[Prediction]) -> int | None:
    """Tokens of all prompts by a server's own count; None where it does not count."""
    counts = [p.prompt_tokens for p in predictions if p.finish_reason != "error"]
    return None if job.backend != "endpoint" or None in counts else sum(count or 0 for count in counts)
