"""The doctor's forecast of how long GGUF variants take to answer, and what would shorten it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from harness import variants
from harness.config import Config
from harness.doctor.answering_time import Times, Work, in_words, seconds
from harness.doctor.finding import Finding
from harness.doctor.probes import probe
from harness.models import base_model
from harness.questions.asking import text_of
from harness.questions.dataset import Row

WHAT = "GGUF answering time"
LONG = 600.0
"""Seconds from which the doctor suggests how to shorten it."""
SAMPLE = 512
"""Rows whose lengths are counted."""


def finding(config: Config, folder: Path, rows: Sequence[Row], device: str, held_out: int) -> Finding | None:
    """Measures in a child process and forecasts the time; None where no GGUF file is to answer.

    Args:
        folder: of the base model.
        device: `cpu` or `cuda`.
        held_out: questions to be answered.
    """
    kinds = [name.removeprefix(variants.GGUF) for name in config.predict.variants if variants.is_gguf(name)]
    if not kinds or not held_out or not rows:
        return None
    work = _work(config, folder, rows, held_out)
    layers = config.predict.gpu_layers
    offload = layers if layers is not None else -1 if device == "cuda" and config.predict.libllama else 0
    asked = {
        "config": base_model.read_config(folder),
        "kinds": kinds,
        "prompt": work.prompt,
        "libllama": config.predict.libllama,
        "gpu_layers": offload,
    }
    probed = probe("answering", device, json.dumps(asked))
    if "times" not in probed.facts:
        why = probed.facts.get("unknown") or probed.problem or "llama.cpp reported nothing"
        return Finding("warn", WHAT, f"not measured: {why}", "time a few questions with predict.variants=[gguf_q8_0]")
    times = {kind: Times(**values) for kind, values in probed.facts["times"].items()}
    return said(times, work, on_gpu=bool(offload), has_gpu=device == "cuda")


def said(times: dict[str, Times], work: Work, *, on_gpu: bool, has_gpu: bool) -> Finding:
    """The forecast in words, with what saves most."""
    each = {kind: seconds(found, work) for kind, found in times.items()}
    whole = sum(each.values())
    parts = ", ".join(f"{kind} {in_words(value)}" for kind, value in each.items())
    used = next(iter(times.values()))
    value = (
        f"about {in_words(whole)} for {work.questions:,} questions ({parts}), answers of {work.answer} tokens, "
        f"{used.threads} threads, {used.sequences} sequences{', on the GPU' if on_gpu else ''}"
    )
    if whole < LONG:
        return Finding("ok", WHAT, value)
    slowest = max(each, key=lambda kind: each[kind])
    fewer = max(int(work.questions * LONG / whole), 1)
    hints = [
        f"leave gguf_{slowest} out of predict.variants (saves {in_words(each[slowest])})" if len(each) > 1 else "",
        f"hold out {fewer} questions (data.heldout={fewer}) for about {in_words(LONG)}",
        "name a llama.cpp that is built for your GPU in predict.libllama (docs/gguf.md)"
        if has_gpu and not on_gpu
        else "",
    ]
    return Finding("warn", WHAT, value, "to shorten it: " + "; or ".join(hint for hint in hints if hint))


def held_out(config: Config, rows: int) -> int:
    """Questions that the split will hold out of so many rows, about: groups stay whole."""
    asked: Any = config.data.heldout
    return round(rows * asked) if asked < 1 else min(int(asked), rows)


def _work(config: Config, folder: Path, rows: Sequence[Row], questions: int) -> Work:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    step = max(len(rows) // SAMPLE, 1)
    sample = list(rows)[::step]
    asked, answers = (
        [len(e.ids) for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
        for texts in ([text_of(row) for row in sample], [row.answer for row in sample])
    )
    # What follows the question in a text template; what precedes it is computed once for all.
    tail = config.prompt.template.partition("{question}")[2]
    behind = len(tokenizer.encode(tail, add_special_tokens=False).ids)
    answer = min(round(mean(answers)) + 1, config.predict.max_new_tokens)
    return Work(
        questions, max(int(median(asked)) + behind, 2), answer, min(config.predict.fidelity_questions, questions)
    )
