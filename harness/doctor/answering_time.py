"""How long the GGUF variants will take to answer, measured before anything is trained.

llama.cpp's time for a token depends on the shape of a model and the types of its tensors, not on its weights. So a file of the base's shape is written
with arbitrary weights and timed: whole if it is small, else one layer, two layers, and one layer with the whole vocabulary, from which the
rest follows (`whole_seconds`). Runs in a child process of the doctor (`harness.doctor.probes`).
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WHOLE_BYTES = 400_000_000
"""Files up to this size are timed whole."""
FEW_TOKENS = 256
"""Vocabulary of a file whose output layer should take no measurable time."""
LEAST, MOST, BUDGET = 3, 20, 2.5
"""Repetitions of a timed call: at least, at most, and the seconds after which no further one starts."""
ROWS_QUANTISED = 32
LEFT_OPEN = 16
"""Tokens of a reference answer in the fidelity probe (`harness.prediction.fidelity_probe.REFERENCE_TOKENS`)."""


@dataclass(frozen=True)
class Work:
    """What is to be answered, in tokens."""

    questions: int
    prompt: int
    """Of a question, beyond what all prompts begin with."""
    answer: int
    probed: int
    """Questions of the fidelity probe, which are also answered once more by one sequence."""


@dataclass(frozen=True)
class Times:
    """Seconds of one call of llama.cpp."""

    prompt: float
    """A prompt."""
    step: float
    """One token of every sequence."""
    single: float
    """One token of one sequence."""
    sequences: int
    threads: int


def whole_seconds(one: float, two: float, with_words: float, layers: int) -> float:
    """Time of the whole model from those of one layer, two layers, and one layer with the whole vocabulary: layers take the same time on average."""
    return layers * two / 2 + max(with_words - one, 0.0)


def seconds(times: Times, work: Work) -> float:
    """Seconds for all questions and for the fidelity probe, without loading and measuring.

    Sequences are refilled as they end, so that all are busy except during the last answers.
    """
    steps = work.questions * work.answer / times.sequences + work.answer * (work.questions > times.sequences)
    answers = work.questions * times.prompt + steps * times.step
    longer = 1 + LEFT_OPEN / max(work.prompt, 1)
    probe = work.probed * times.prompt * longer + work.probed * (times.prompt + work.answer * times.single)
    return answers + probe


def in_words(value: float) -> str:
    """Seconds as people say them: `40 s`, `12 min`, `3 h 10 min`."""
    if value < 90:
        return f"{max(value, 1):.0f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


# ------------------------------------------------------------------------------------------------------ in the child process


def measure(config: Mapping[str, Any], kind: str, prompt: int, *, libllama: str | None, gpu_layers: int) -> Times:
    """Times a model of that shape (config.json) and GGUF type; HarnessError if llama.cpp or the converter does not support it."""
    from harness.backends import llama_loading

    library = llama_loading.load(libllama)
    layers, words = int(config["num_hidden_layers"]), int(config["vocab_size"])
    with tempfile.TemporaryDirectory(prefix="harness-doctor-") as folder:
        place = Path(folder)
        if _size(config, kind, range(layers), words) <= WHOLE_BYTES:
            return _timed(library, _write(place / "whole.gguf", config, kind, range(layers), words), prompt, gpu_layers)
        middle = layers // 2
        two = _timed(library, _write(place / "two.gguf", config, kind, [0, middle], FEW_TOKENS), prompt, gpu_layers)
        setting = (two.threads, two.sequences)
        one = _timed(
            library, _write(place / "one.gguf", config, kind, [middle], FEW_TOKENS), prompt, gpu_layers, setting
        )
        more = _timed(library, _write(place / "words.gguf", config, kind, [middle], words), prompt, gpu_layers, setting)
    found = [
        whole_seconds(getattr(one, part), getattr(two, part), getattr(more, part), layers)
        for part in ("prompt", "step", "single")
    ]
    return Times(found[0], found[1], found[2], two.sequences, two.threads)


def _planned(
    config: Mapping[str, Any], kind: str, chosen: Sequence[int], words: int
) -> list[tuple[str, tuple[int, ...], Any]]:
    """(name, shape, type) of each tensor of a file with these layers of the model; embedding and output weights are one tensor."""
    from gguf import get_tensor_name_map

    from harness.formats import families, quantize

    settings = {**config, "num_hidden_layers": len(chosen), "vocab_size": words, "tie_word_embeddings": True}
    family = families.find(settings, Path())
    names = get_tensor_name_map(family.arch, len(chosen))
    heads = int(config["num_attention_heads"])
    found = []
    for name, shape in families.expected(settings, family).items():
        to = names.get_name(name, try_suffixes=(".weight", ".bias")) or ""
        real = to
        if to.startswith("blk."):
            _, at, part = to.split(".", 2)
            real = f"blk.{chosen[int(at)]}.{part}"
        options = {"layers": int(config["num_hidden_layers"]), "tied": True, "weighed": True}
        groups = heads // int(config.get("num_key_value_heads") or heads)
        found.append((to, shape, quantize.tensor_type(real, shape, kind, query_groups=groups, **options)))
    return found


def _size(config: Mapping[str, Any], kind: str, chosen: Sequence[int], words: int) -> int:
    from harness.formats import quantize

    return sum(quantize.size_bytes(type_, shape) for _, shape, type_ in _planned(config, kind, chosen, words))


def _write(path: Path, config: Mapping[str, Any], kind: str, chosen: Sequence[int], words: int) -> Path:
    """Writes such a file: each tensor repeats a few random rows."""
    from gguf import GGUFWriter

    from harness.formats import families, llama, quantize

    settings = {**config, "num_hidden_layers": len(chosen), "vocab_size": words, "tie_word_embeddings": True}
    writer = GGUFWriter(path, families.find(settings, path).name)
    llama.add_settings(writer, settings, kind)
    writer.add_tokenizer_model("none")
    random = np.random.default_rng(0)
    for name, shape, type_ in _planned(config, kind, chosen, words):
        rows, columns = int(np.prod(shape[:-1], dtype=np.int64)), shape[-1]
        some = random.standard_normal((min(rows, ROWS_QUANTISED), columns), np.float32) * 0.02
        data = np.resize(quantize.quantize(some, type_, name), quantize.size_bytes(type_, shape))
        block = data.reshape(*shape[:-1], -1) if len(shape) > 1 else data.view("<f4")
        writer.add_tensor(name, block, raw_dtype=type_)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return path


def _timed(library: Any, file: Path, prompt: int, gpu_layers: int, setting: tuple[int, int] | None = None) -> Times:
    """Times a file with its best setting, or the one given, and removes it."""
    from harness.backends import llama_tuning
    from harness.backends.llama_context import Context, Model

    model = Model(library, file, gpu_layers=gpu_layers)
    context = None
    try:
        threads, sequences = setting or (0, 0)
        if setting is None:
            best = llama_tuning.measure(model, threads=0, sequences=0, tokens=512, unit=8)
            threads, sequences = best.threads, best.sequences
        context = Context(model, sequences=sequences, tokens=512, threads=threads)
        rows = [(0, at, 0, at == prompt - 1) for at in range(prompt)]
        found: dict[str, list[float]] = {"prompt": [], "step": [], "single": []}
        began = time.perf_counter()
        # The first call, which reads the weights and lays out the memory, is not counted.
        while len(found["step"]) <= LEAST or (len(found["step"]) <= MOST and time.perf_counter() - began < BUDGET):
            for place in range(sequences):
                context.clear(place)
            found["prompt"].append(_seconds(context, rows))
            steps = [(0, prompt if place == 0 else 0, place, True) for place in range(sequences)]
            found["step"].append(_seconds(context, steps))
            found["single"].append(_seconds(context, [(0, prompt + 1, 0, True)]))
        medians = {name: statistics.median(values[1:]) for name, values in found.items()}
        return Times(medians["prompt"], medians["step"], medians["single"], sequences, threads)
    finally:
        if context is not None:
            context.close()
        model.close()
        file.unlink()


def _seconds(context: Any, rows: list[Any]) -> float:
    """Of computing rows, and of choosing tokens as the backend does."""
    from harness.backends.llama_context import logprobs_of

    began = time.perf_counter()
    logits = context.decode(rows)
    logprobs_of(logits, logits.argmax(axis=1), context.threads)
    return time.perf_counter() - began


def measure_all(asked: str) -> dict[str, Any]:
    """What the child process does: times every type of a JSON object with `config`, `kinds`, `prompt`, `libllama` and `gpu_layers`."""
    from harness.errors import HarnessError

    values = json.loads(asked)
    found: dict[str, Any] = {}
    for kind in values["kinds"]:
        try:
            times = measure(
                values["config"],
                kind,
                values["prompt"],
                libllama=values["libllama"],
                gpu_layers=values["gpu_layers"],
            )
        except HarnessError as error:
            return {"unknown": error.problem}
        found[kind] = times.__dict__
    return {"times": found}
