"""split, artifacts -> predictions/<variant>.jsonl + .json: every variant answers every held-out question from the same token ids.

Each variant answers in a process of its own: its peak memory is its own, and a crash of native code takes nothing else with it. Answers are
kept batch by batch, so that an interrupted run loses the batch in flight at most.

The same process then measures, on a few questions, what tells the formats apart where scores do not: the log-probabilities along the reference
answers (`predictions/<variant>.logprobs.npz`), and how many answers change when the work is cut up otherwise.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from harness import backends, base, store
from harness.analysis import fidelity
from harness.backends import Completion, Facts
from harness.config import Config
from harness.errors import ArtifactError, HarnessError
from harness.jobs import Job, installed, jobs
from harness.prompt import IGNORED, Prompter, load_tokenizer, prompt_hash, tokenizer_sha256
from harness.records import Cost, Prediction, PredictionManifest, PredictionSet, Question, SplitManifest
from harness.store import RunFolder

MEASURED = ("transformers", "llamacpp")
"""Backends that give log-probabilities."""
REFERENCE_TOKENS = 16
"""Of a reference answer, at most, on which the distributions are measured: llama.cpp takes a request for each."""


@dataclass(frozen=True)
class Probe:
    """What is measured beside the answers."""

    positions: list[int]
    """Of the questions."""
    references: list[str]
    """Their reference answers."""
    template: str

    def key(self, job: Job) -> str:
        """Equal keys, equal questions and reference tokens: of one model, the same measurement."""
        asked = [job.questions[i] for i in self.positions]
        return store.sha256_json([asked, self.references, self.template, job.tokenizer_sha256, REFERENCE_TOKENS])


def run(
    run: RunFolder, config: Config, *, progress: Callable[[str], None] = lambda _: None, force: bool = False, only: list[str] | None = None
) -> dict[str, PredictionManifest]:
    """Has every variant of `config.predict` answer the held-out questions; variants that answered the same already are kept.

    Args:
        only: answer with these variants only; the others' earlier predictions stay.
    Raises:
        ArtifactError: an artifact is missing, or is not what export wrote; ModelError: a model cannot be loaded; StorageError.
    """
    split = store.read_record(run.split_json, SplitManifest)
    questions = store.read_records(run.heldout_jsonl, Question)
    wanted = config.predict.variants + [v for v in config.predict.extra if v not in config.predict.variants]
    probe = _probe(config, questions)
    manifests = {}
    run.predict_json.unlink(missing_ok=True)
    for job in jobs(run, config, split.split_id, questions, [v for v in wanted if only is None or v in only]):
        asked = probe if job.backend in MEASURED else None
        kept = _answered(job, force)
        manifests[job.variant] = kept if kept and _is_measured(job, kept, asked) else _in_own_process(job, progress, asked, kept)
        cost, finish = manifests[job.variant].cost, manifests[job.variant].finish
        progress(
            f"{job.variant}: {len(questions)} questions, {cost.tokens_per_second or 0:,.0f} tokens/s, {finish.get('length', 0)} cut at the limit"
        )
    answered = [v for v in wanted if run.prediction(v)[1].exists()]
    keys = [store.read_record(run.prediction(v)[1], PredictionManifest).key for v in answered]
    store.write_json(run.predict_json, PredictionSet(fingerprint=store.sha256_json([split.split_id, keys]), variants=answered))
    return manifests


# --------------------------------------------------------------------------------------------------------- processes


def _answered(job: Job, force: bool) -> PredictionManifest | None:
    """The manifest of an earlier answer to exactly this job, if its lines are whole."""
    if force or not job.manifest.exists() or not job.lines.exists():
        return None
    old = store.read_record(job.manifest, PredictionManifest)
    if old.key != job.key(old.backend_version) or old.lines_sha256 != store.sha256_file(job.lines):
        return None
    # The version is a library's own word, told on loading; an upgrade is seen by asking the installed packages.
    return old if old.packages == installed(job.backend) else None


def _in_own_process(
    job: Job, progress: Callable[[str], None], probe: Probe | None = None, kept: PredictionManifest | None = None
) -> PredictionManifest:
    """`answer` in a child process; its progress, result or error comes back through a pipe."""
    # On the CPU the children are forked from a server that has torch loaded already; CUDA does not survive a fork.
    context = multiprocessing.get_context("spawn") if job.execution.device == "cuda" else multiprocessing.get_context("forkserver")
    if job.execution.device != "cuda":
        context.set_forkserver_preload(["harness.backends.preload"])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(job, sender, probe, kept), daemon=True)
    child.start()
    sender.close()
    result: PredictionManifest | BaseException | None = None
    try:
        while True:
            message = receiver.recv()
            if isinstance(message, str):
                progress(message)
            else:
                result = message
    except EOFError:
        child.join()
    finally:
        if child.is_alive():
            child.terminate()
            child.join()
    if isinstance(result, PredictionManifest):
        return result
    if isinstance(result, BaseException):
        raise result
    if child.exitcode == 1:
        raise RuntimeError(f"the process that answered with {job.variant} failed: see its traceback above")
    why = f"was killed by signal {-child.exitcode}" if child.exitcode and child.exitcode < 0 else f"ended with code {child.exitcode}"
    raise ArtifactError(
        f"the process that answered with {job.variant} {why}",
        "run the same command again to go on where it stopped; look for too little memory",
    )


def _child(job: Job, pipe: Connection, probe: Probe | None, kept: PredictionManifest | None) -> None:
    base.quiet_libraries()
    try:
        pipe.send(answer(job, pipe.send, probe, kept))
    except KeyboardInterrupt:
        pass
    except HarnessError as error:
        pipe.send(error)
    finally:
        pipe.close()


# ------------------------------------------------------------------------------------------------------------ answers


def answer(
    job: Job, progress: Callable[[str], None] = lambda _: None, probe: Probe | None = None, kept: PredictionManifest | None = None
) -> PredictionManifest:
    """Answers a job in this process and writes its two files; goes on from the batches that an interrupted run kept.

    Args:
        probe: what to measure once everything is answered, on the model that is loaded already.
        kept: of an earlier answer to exactly this job, which is only measured.
    """
    began = time.monotonic()
    backend = backends.find(job.backend)(job.source, job.generation, job.execution)
    load_seconds = time.monotonic() - began
    try:
        manifest = kept or _answer_all(job, backend, load_seconds, progress)
        if probe is not None:
            progress(f"{job.variant}: fidelity and noise on {len(probe.positions)} questions")
            manifest = manifest.model_copy(update=_measure(job, backend, probe))
            store.write_json(job.manifest, manifest)
        return manifest
    finally:
        backend.close()


def _answer_all(job: Job, backend: backends.Backend, load_seconds: float, progress: Callable[[str], None]) -> PredictionManifest:
    key = job.key(backend.facts.version)
    with _Journal(job.lines.with_suffix(".partial"), key) as journal:
        _ask(job, backend, journal, progress)
        predictions = [journal.answers[i] for i in range(len(job.prompts))]
        _decode_and_write(job, predictions)
        manifest = _manifest(job, key, backend.facts, predictions, load_seconds)
    store.write_json(job.manifest, manifest)
    journal.path.unlink(missing_ok=True)
    return manifest


def _ask(job: Job, backend: backends.Backend, journal: _Journal, progress: Callable[[str], None]) -> None:
    room = backend.facts.context - job.generation.max_new_tokens
    fitting = [i for i, p in enumerate(job.prompts) if len(p) <= room]
    for i in sorted(set(range(len(job.prompts))) - set(fitting)):
        reason = f"prompt of {len(job.prompts[i])} tokens; the context leaves {room}"
        journal.put([(i, _prediction(job, i, Completion([], "error", 0.0, error=reason), cut=True))])
    told = time.monotonic()
    for batch in backends.batches([len(job.prompts[i]) for i in fitting], job.execution, job.generation.max_new_tokens):
        positions = [fitting[j] for j in batch]
        if all(i in journal.answers for i in positions):
            continue
        completions = backend.answer([job.prompts[i] for i in positions])
        journal.put([(i, _prediction(job, i, c)) for i, c in zip(positions, completions, strict=True)])
        if time.monotonic() - told > 10:
            told = time.monotonic()
            progress(f"{job.variant}: {len(journal.answers)}/{len(job.prompts)}")


def _prediction(job: Job, i: int, completion: Completion, *, cut: bool = False) -> Prediction:
    return Prediction(
        id=job.questions[i], prompt_hash=prompt_hash(job.prompts[i]), prompt_ids=job.prompts[i], answer_ids=completion.answer_ids,
        text=completion.text or "", finish_reason=completion.finish_reason, prompt_cut=cut, seconds=completion.seconds, error=completion.error,
    )  # fmt: skip


def _decode_and_write(job: Job, predictions: list[Prediction]) -> None:
    """Texts from token ids, by the base's tokenizer for every backend, and the file of all answers."""
    tokenizer = load_tokenizer(job.tokenizer)
    for i, p in enumerate(predictions):
        if p.answer_ids:
            predictions[i] = p.model_copy(update={"text": _text(tokenizer, p.answer_ids)})
    store.write_jsonl(job.lines, predictions)


def _text(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def _manifest(job: Job, key: str, facts: Facts, predictions: list[Prediction], load_seconds: float) -> PredictionManifest:
    tokens = sum(len(p.answer_ids) + (p.finish_reason == "stop") for p in predictions)
    seconds = sum(p.seconds for p in predictions)
    if job.execution.device == "cuda" and job.backend == "transformers":
        import torch

        memory = int(torch.cuda.max_memory_allocated())
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return PredictionManifest(
        variant=job.variant, key=key, split_id=job.split_id, backend=job.backend, backend_version=facts.version, packages=installed(job.backend),
        weights_sha256=job.weights_sha256, tokenizer_sha256=job.tokenizer_sha256, prompts_sha256=job.prompts_sha256,
        lines_sha256=store.sha256_file(job.lines), generation=job.generation.__dict__ | {"stop_ids": list(job.generation.stop_ids)},
        execution=facts.execution | {"batch_tokens": job.execution.batch_tokens, "max_batch": job.execution.max_batch, "slots": job.execution.slots},
        n=len(predictions), finish=dict(Counter(p.finish_reason for p in predictions)), prompts_cut=sum(p.prompt_cut for p in predictions),
        cost=Cost(
            tokens_per_second=tokens / seconds if seconds > 0 else None, seconds=seconds, load_seconds=load_seconds, generated_tokens=tokens,
            peak_memory_bytes=memory, size_bytes=job.size_bytes,
        ),
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------- measurements


def _probe(config: Config, questions: list[Question]) -> Probe | None:
    chosen = fidelity.subset([q.id for q in questions], config.predict.fidelity_questions)
    return Probe(chosen, [questions[i].answer for i in chosen], config.prompt.template) if chosen else None


def _is_measured(job: Job, old: PredictionManifest, probe: Probe | None) -> bool:
    """Whether an earlier answer has all that is asked to be measured, undamaged."""
    if probe is None:
        return True
    file = job.lines.with_suffix(fidelity.SUFFIX)
    return old.measured == probe.key(job) and file.exists() and store.sha256_file(file) == old.logprobs_sha256


def _measure(job: Job, backend: Any, probe: Probe) -> dict[str, Any]:
    """Writes the log-probabilities and answers the subset again; returns the fields of the manifest that tell of both.

    Questions that the context has no room for, or that failed, are left out.
    """
    tokenizer = load_tokenizer(job.tokenizer)
    if tokenizer_sha256(tokenizer) != job.tokenizer_sha256:
        raise ArtifactError("changed while its questions were answered", "run harness predict --force", file=job.tokenizer)
    prompter = Prompter(tokenizer, probe.template)
    answered = store.read_records(job.lines, Prediction)
    room = backend.facts.context - max(job.generation.max_new_tokens, REFERENCE_TOKENS)
    chosen = [
        (answered[i], [label for label in prompter.example("", reference, train_on="answer", max_length=2**31).labels if label != IGNORED])
        for i, reference in zip(probe.positions, probe.references, strict=True)
        if len(job.prompts[i]) <= room and answered[i].finish_reason != "error"
    ]
    predictions = [prediction for prediction, _ in chosen]
    continuations = [target[:REFERENCE_TOKENS] for _, target in chosen]
    logprobs = backend.logprobs([p.prompt_ids for p in predictions], continuations)
    file = job.lines.with_suffix(fidelity.SUFFIX)
    with store.atomic_path(file) as temporary, temporary.open("wb") as handle:
        np.savez(
            handle,
            ids=np.array([p.id for p in predictions], dtype=np.str_),
            lengths=np.array([len(c) for c in continuations], dtype=np.int64),
            logprobs=np.concatenate([np.asarray(rows, dtype=np.float32) for rows in logprobs] or [np.empty((0, 0), np.float32)]),
        )
    return {
        "measured": probe.key(job),
        "logprobs_sha256": store.sha256_file(file),
        "noise": _noise(job, backend, tokenizer, predictions),
    }


def _noise(job: Job, backend: Any, tokenizer: Any, before: list[Prediction]) -> dict[str, Any]:
    """Answers these questions again, cut up otherwise, and counts the texts that changed."""
    usual = job.execution
    prompts = [p.prompt_ids for p in before]
    if job.backend == "llamacpp":
        other = replace(usual, slots=1 if usual.slots > 1 else 4)
        how = f"slots: {other.slots} against {usual.slots}"
        # Two copies of a large model need not fit.
        backend.close()
        again = backends.find(job.backend)(job.source, job.generation, other)
        try:
            completions = again.answer(prompts)
        finally:
            again.close()
    else:
        other = replace(usual, max_batch=1 if usual.max_batch > 1 else 8)
        how = f"batch: {other.max_batch} against {usual.max_batch} at most"
        completions = [Completion([], "error", 0.0)] * len(prompts)
        for batch in backends.batches([len(p) for p in prompts], other, job.generation.max_new_tokens):
            for i, completion in zip(batch, backend.answer([prompts[i] for i in batch]), strict=True):
                completions[i] = completion
    pairs = [(p.text, _text(tokenizer, c.answer_ids)) for p, c in zip(before, completions, strict=True) if c.finish_reason != "error"]
    return {"flip_rate": fidelity.flip_rate([a for a, _ in pairs], [b for _, b in pairs]), "n": len(pairs), "how": how}


class _Journal:
    """Answers as they come, one line each behind a line with the job's key; a torn last line is dropped."""

    def __init__(self, path: Path, key: str):
        self.path, self.key = path, key
        self.answers: dict[int, Prediction] = {}

    def __enter__(self) -> _Journal:
        with store.storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            whole = self._read()
            self.file = self.path.open("wb")
            self.file.write(store.dumps({"key": self.key}).encode() + b"\n" + b"".join(whole))
            self._flush()
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def put(self, answers: list[tuple[int, Prediction]]) -> None:
        """Keeps a batch: on disk when this returns."""
        with store.storage_errors(self.path):
            self.file.write(b"".join(store.dumps([i, p.model_dump(mode="json")]).encode() + b"\n" for i, p in answers))
            self._flush()
        self.answers.update(answers)

    def _read(self) -> list[bytes]:
        """The whole lines of an earlier journal of the same key."""
        if not self.path.exists():
            return []
        header, *lines = self.path.read_bytes().splitlines(keepends=True) or [b""]
        whole = []
        try:
            if json.loads(header)["key"] != self.key:
                return []
            for line in lines:
                i, fields = json.loads(line)
                self.answers[i] = Prediction.model_validate(fields)
                whole.append(line)
        except (ValueError, KeyError, TypeError):
            pass  # torn by the interruption: answered again
        return whole

    def _flush(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
