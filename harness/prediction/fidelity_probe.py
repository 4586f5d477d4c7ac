"""Fidelity between formats of a model, measured on a few questions in addition to the answers.

Log-probabilities along the reference answers (`predictions/<variant>.logprobs.npz`), and the share of answers that change when the work is
split into other batches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from harness import backends, storage
from harness.analysis import fidelity
from harness.backends import Completion
from harness.config import Config, Prompt
from harness.prediction import answers
from harness.prediction.jobs import Job
from harness.prediction.runners import Runner
from harness.prompt import Prompter
from harness.records import Prediction, PredictionManifest, Question
from harness.records.prediction import Noise
from harness.registry import BACKENDS

REFERENCE_TOKENS = 16
"""Maximum tokens of a reference answer on which distributions are measured: llama.cpp needs one request for each."""


@dataclass(frozen=True)
class FidelityProbe:
    """What is measured in addition to the answers."""

    positions: list[int]
    """Positions of the measured questions."""
    references: list[str]
    """Their reference answers."""
    prompt: Prompt

    def key(self, job: Job) -> str:
        """Equal keys mean equal questions and reference tokens, and so for one model the same measurement."""
        asked = [job.questions[i] for i in self.positions]
        return storage.sha256_json(
            [asked, self.references, self.prompt.model_dump(), job.tokenizer_sha256, REFERENCE_TOKENS]
        )

    def is_measured(self, job: Job, manifest: PredictionManifest) -> bool:
        """Whether earlier predictions already hold this measurement, undamaged."""
        file = job.lines.with_suffix(fidelity.SUFFIX)
        return (
            manifest.measured == self.key(job)
            and file.exists()
            and storage.sha256_file(file) == manifest.logprobs_sha256
        )


def probe(config: Config, questions: list[Question]) -> FidelityProbe | None:
    """What the config asks to be measured, if anything."""
    chosen = fidelity.subset([q.id for q in questions], config.predict.fidelity_questions)
    return FidelityProbe(chosen, [questions[i].answer for i in chosen], config.prompt) if chosen else None


def measure(job: Job, team: Runner, probe: FidelityProbe) -> dict[str, Any]:
    """Writes the log-probabilities and answers the subset again; returns the manifest's fields `measured`, `logprobs_sha256` and `noise`.

    Questions that the context has no room for, or that failed, are left out.
    """
    tokenizer = job.open_tokenizer()
    prompter = Prompter(tokenizer, probe.prompt)
    answered = storage.read_records(job.lines, Prediction)
    room = team.facts.context - max(job.generation.max_new_tokens, REFERENCE_TOKENS)
    chosen = [
        (answered[i], prompter.answer_ids(reference))
        for i, reference in zip(probe.positions, probe.references, strict=True)
        if len(job.prompts[i]) <= room and answered[i].finish_reason != "error"
    ]
    predictions = [prediction for prediction, _ in chosen]
    continuations = [target[:REFERENCE_TOKENS] for _, target in chosen]
    logprobs = team.logprobs([p.prompt_ids for p in predictions], continuations)
    file = job.lines.with_suffix(fidelity.SUFFIX)
    with storage.atomic_path(file) as temporary, temporary.open("wb") as handle:
        np.savez(
            handle,
            ids=np.array([p.id for p in predictions], dtype=np.str_),
            lengths=np.array([len(c) for c in continuations], dtype=np.int64),
            tokens=np.array([token for c in continuations for token in c], dtype=np.int64),
            logprobs=np.concatenate(
                [np.asarray(rows, dtype=np.float32) for rows in logprobs] or [np.empty((0, 0), np.float32)]
            ),
        )
    return {
        "measured": probe.key(job),
        "logprobs_sha256": storage.sha256_file(file),
        "noise": _noise(job, team, tokenizer, predictions),
    }


def _noise(job: Job, team: Runner, tokenizer: Any, before: list[Prediction]) -> Noise:
    """Answers these questions again in other batches and counts the texts that changed."""
    usual = job.execution
    prompts = [p.prompt_ids for p in before]
    if BACKENDS[job.backend].varied == "slots":
        # If a variant was only measured, its setting may differ from the one that answered.
        used = team.facts.execution.get("slots", usual.slots)
        other = replace(usual, slots=4 if used == 1 else 1)
        how = f"slots: {other.slots} against {used}"
        # Two copies of a large model may not fit in memory.
        again = team.reload(other)
        try:
            completions = dict(again.answer_batches([prompts]))[0]
        finally:
            again.close()
    else:
        other = replace(usual, max_batch=1 if usual.max_batch > 1 else 8)
        how = f"batch: {other.max_batch} against {usual.max_batch} at most"
        completions = [Completion([], "error", 0.0)] * len(prompts)
        cut = backends.batches([len(p) for p in prompts], other, job.generation.max_new_tokens)
        for k, found in team.answer_batches([[prompts[i] for i in batch] for batch in cut]):
            for i, completion in zip(cut[k], found, strict=True):
                completions[i] = completion
    pairs = [
        (p.text, answers.read(tokenizer, p.prompt_ids, c.answer_ids, c.text or "").text)
        for p, c in zip(before, completions, strict=True)
        if c.finish_reason != "error"
    ]
    return {"flip_rate": fidelity.flip_rate([a for a, _ in pairs], [b for _, b in pairs]), "n": len(pairs), "how": how}
