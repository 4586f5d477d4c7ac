"""Inference backends: one class each, found by name without importing the others.

A backend gets token ids and gives token ids: rendering and tokenising happen in `harness.prompt`, decoding in the predict stage, so that
no backend can put a question differently from another. Servers, recorded answers and Python functions, which have their own tokenizer or
none, get the question as messages or text (`Prompt`), and what they answer is compared under the contract `same question`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from harness.errors import ConfigError
from harness.records import FinishReason
from harness.registry import BACKENDS

if TYPE_CHECKING:
    import numpy as np

BATCH_TOKENS, MAX_BATCH = 16384, 64
"""Size of a batch unless the config or the free memory decides."""
LOGPROB_DECIMALS = 4
PARAMETERS_A_THREAD = 50_000_000
MAX_BATCH_GPU = 512
"""Maximum questions per GPU batch: the throughput of an 8B model saturates here."""


@dataclass(frozen=True)
class Generation:
    """Generation parameters, the same for every backend. Greedy, and every field is sent explicitly: a backend's own defaults never apply."""

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    """End tokens: the union of the tokenizer's and the generation config's."""
    pad_id: int
    temperature: float = 0.0
    top_k: int = 1
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Execution:
    """How the work is split; must not change any answer beyond numerical noise."""

    device: str = "cpu"
    """`cpu` or `cuda`."""
    batch_tokens: int = BATCH_TOKENS
    """Padded prompt and answer tokens of a batch; 0: as many as fit in memory."""
    max_batch: int = MAX_BATCH
    """Questions of a batch; 0: automatic, at most `MAX_BATCH_GPU`."""
    slots: int = 0
    """Sequences of llama.cpp, or requests to an endpoint, at once; 0: measured by llama.cpp, 4 for an endpoint."""
    threads: int = 0
    """0: measured by llama.cpp; one per 50 million parameters, and one per core at most, by transformers."""
    libllama: str | None = None
    """Another build of llama.cpp: its shared object, or the folder of it."""
    gpu_layers: int | None = None
    """Layers that llama.cpp puts on the GPU, -1 for all; None: all with `device` cuda, if the build can, else none."""


@dataclass(frozen=True)
class Source:
    """Where a variant's weights are."""

    path: Path
    """A model folder, a GGUF file or a predictions file; for an endpoint, its URL as a path is not touched: see `url`."""
    adapter: Path | None = None
    """A PEFT adapter to put on the model."""
    load_in_4bit: bool = False
    """Quantise the 16-bit base to NF4 on loading, as in training."""
    url: str | None = None
    model: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    chat: bool = False
    """Use the endpoint's chat API."""
    object: Any = None
    """An object of the calling program: a function, or a loaded model with its tokenizer."""


@dataclass(frozen=True)
class Completion:
    """One answer."""

    answer_ids: list[int]
    """Without the end token. Empty if the backend gives text only."""
    finish_reason: FinishReason
    seconds: float
    """Wall time of the batch or request divided by its questions."""
    text: str | None = None
    """Only from backends that do not give ids; else the predict stage decodes."""
    error: str | None = None
    logprobs: list[float] | None = None
    """Natural logarithm of the probability of each of `answer_ids` when it was chosen; None: the backend does not give them."""
    prompt_ids: list[int] | None = None
    """The prompt that the backend really used, if it reports one."""
    tokens: int | None = None
    """Generated tokens, where the backend counts them and gives no ids."""
    prompt_tokens: int | None = None

    def rounded_logprobs(self) -> list[float] | None:
        """`logprobs` for the record; None also from a model whose logits are not numbers."""
        if self.logprobs is None or not all(map(math.isfinite, self.logprobs)):
            return None
        return [round(p, LOGPROB_DECIMALS) for p in self.logprobs]


Prompt = Sequence[int] | Sequence[dict[str, str]] | str
"""The form of a question: token ids; the messages of a chat; text; for `replay` and `python`, one object with `id`, `question` and `text`."""


@dataclass
class Facts:
    """A backend's report after loading."""

    version: str
    """Of every library that decides the numbers, e.g. `transformers 5.17.0, torch 2.13.0`."""
    context: int
    """Longest prompt plus answer, in tokens."""
    execution: dict[str, Any] = field(default_factory=dict)
    room: int = 0
    """Padded tokens of the largest batch that fits in its memory; 0: memory is no limit."""


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_on_cpu(parameters: int) -> int:
    """Threads of a transformers model: in a small one, waiting for one another costs more than further threads gain."""
    return min(cores(), 1 + parameters // PARAMETERS_A_THREAD)


class Backend(Protocol):
    """A loaded model. Construct with (source, generation, execution); close when done."""

    facts: Facts

    def __init__(self, source: Source, generation: Generation, execution: Execution): ...

    def answer(self, prompts: Sequence[Any]) -> list[Completion]:
        """Answers one batch of prompts (each a `Prompt` of the form that the backend takes), in order.

        A question that fails gets a completion with `finish_reason="error"`; an error of the whole model raises ModelError.
        """
        ...

    def close(self) -> None:
        """Frees the model."""
        ...


@runtime_checkable
class BatchesBackend(Backend, Protocol):
    """A backend that works on several batches at once."""

    def answer_batches(self, batches: Sequence[Sequence[Any]]) -> Iterator[tuple[int, list[Completion]]]:
        """Answers batches; yields each one's position and answers as they finish."""
        ...


@runtime_checkable
class LogprobBackend(Backend, Protocol):
    """A backend that also scores given continuations; its entry in `harness.registry.BACKENDS` has `logprobs=True`."""

    def logprobs(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> Sequence[np.ndarray]:
        """Natural log-probabilities of the whole vocabulary at each token of a continuation.

        Args:
            prompts: token ids.
            continuations: token ids to be scored after each prompt; as many as there are prompts.

        Returns:
            for each prompt an array of shape (tokens of its continuation, vocabulary size).
        """
        ...


def resolve_batch_size(
    execution: Execution, room: int, questions: int, processes: int, *, earlier: tuple[int, int] | None = None
) -> Execution:
    """`execution` with its automatic sizes (0) resolved.

    Args:
        room: see `Facts`.
        processes: that share the questions: there are batches for all of them, of like size.
        earlier: (`batch_tokens`, `max_batch`) of an interrupted run, which win: a resumed run keeps its batches, whatever memory is free now.
    """
    tokens, largest = earlier or (execution.batch_tokens, execution.max_batch)
    if not largest and room:
        rounds = max(1, -(-questions // (processes * MAX_BATCH_GPU)))
        largest = -(-questions // (processes * rounds))
    return replace(execution, batch_tokens=tokens or room or BATCH_TOKENS, max_batch=largest or MAX_BATCH)


def batches(lengths: Sequence[int], execution: Execution, max_new_tokens: int) -> list[list[int]]:
    """Positions split into batches within the token budget of a batch, longest prompts first, so that memory runs out at once or never.

    The cut depends on all the lengths and on nothing else: a resumed run answers in the same batches as an undisturbed one.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    cut: list[list[int]] = []
    for i in order:
        if cut and len(cut[-1]) < execution.max_batch:
            padded = (lengths[cut[-1][0]] + max_new_tokens) * (len(cut[-1]) + 1)
            if padded <= execution.batch_tokens:
                cut[-1].append(i)
                continue
        cut.append([i])
    return cut


def find(name: str) -> type[Backend]:
    """The backend class of that name, imported on demand."""
    if name not in BACKENDS:
        raise ConfigError(f"no backend {name!r}", f"use one of {', '.join(BACKENDS)}")
    module, _, attribute = BACKENDS[name].implementation.partition(":")
    return getattr(import_module(module), attribute)
