"""Jobs and backends for tests of the predict stage, and what transformers' own `generate` answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import backends, storage
from harness.backends import Execution, Generation, Source
from harness.backends.llamacpp import LlamaCppBackend
from harness.prediction.jobs import Job
from harness.prompt import prompt_hash
from harness.records import Prediction
from harness.registry import BACKENDS, BackendFacts
from harness.storage import RunFolder
from tests.helpers.models import EOS_ID

LIMIT = 12


GENERATION = Generation(LIMIT, (EOS_ID,), EOS_ID)


def register(monkeypatch: pytest.MonkeyPatch, backend: type) -> None:
    """Replaces the replay backend by a test's own."""
    monkeypatch.setitem(BACKENDS, "replay", BackendFacts(f"{backend.__module__}:{backend.__name__}"))


def recording(
    path: Path, prompts: list[list[int]], *, ids: Callable[[int], list[int]] = lambda i: [65 + i % 26, 66]
) -> Path:
    """A predictions file with an answer to each prompt, for the replaying backend."""
    rows = [
        Prediction(
            id=str(i),
            prompt_hash=prompt_hash(p),
            prompt_ids=p,
            answer_ids=ids(i),
            text="",
            logprobs=[-0.5 - i] * len(ids(i)),
            finish_reason="stop",
            seconds=0.25,
        )
        for i, p in enumerate(prompts)
    ]
    storage.write_jsonl(path, rows)
    return path


def job(root: Path, model: Path, prompts: list[list[int]], **changes: Any) -> Job:
    """A job for the replaying backend with a recorded answer to each prompt, in batches of three."""
    recorded = recording(root / "recorded.jsonl", prompts)
    run = RunFolder("r", root)
    lines, manifest = run.prediction("v")
    made = Job(
        variant="v",
        backend="replay",
        source=Source(recorded),
        generation=GENERATION,
        execution=Execution(max_batch=3),
        weights_sha256="w",
        size_bytes=7,
        questions=[f"q{i}" for i in range(len(prompts))],
        prompts=list(prompts),
        tokenizer=model,
        tokenizer_sha256="t",
        split_id="s",
        lines=lines,
        manifest=manifest,
    )
    return replace(made, **changes)


def transformers(source: Source, generation: Generation = GENERATION) -> Any:
    import torch

    before = torch.is_grad_enabled()
    try:
        return backends.find("transformers")(source, generation, Execution())
    finally:
        torch.set_grad_enabled(before)


def answers(source: Source, prompts: Sequence[Sequence[int]], generation: Generation = GENERATION) -> list[list[int]]:
    import torch

    with torch.no_grad():
        return [c.answer_ids for c in transformers(source, generation).answer(prompts)]


def partial(job: Job) -> Path:
    return job.lines.with_suffix(".partial")


def llamacpp(
    path: Path, *, limit: int = 24, stop: tuple[int, ...] = (EOS_ID,), slots: int = 4, threads: int = 1
) -> LlamaCppBackend:
    return LlamaCppBackend(Source(path), Generation(limit, stop, 0), Execution(slots=slots, threads=threads))


def generated(model: Any, prompts: Sequence[Sequence[int]], stops: Sequence[int], new: int) -> list[list[int]]:
    """What transformers' own `generate` answers to a left-padded batch, each up to its end token."""
    import torch
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=new, eos_token_id=list(stops), pad_token_id=0
    )
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    with torch.no_grad():
        rows = model.generate(input_ids=ids, attention_mask=mask)[:, width:].tolist()
    return [row[: next((i for i, token in enumerate(row) if token in stops), len(row) - 1) + 1] for row in rows]
