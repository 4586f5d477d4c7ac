"""GGUF files answered by llama.cpp in this process, through its C interface (`libllama`): token ids in, token ids out.

Greedy answers are taken from the logits (`llama_batching`), and distributions for the fidelity probe from the same logits. How many threads
and sequences work is measured on the first batch (`llama_tuning`), unless the config says it. On the CPU neither changes a bit of 16-bit and
8-bit files: rows are computed in groups that do not depend on them. K types (q4_k_m and its like) are computed by other code for fewer than
eight rows, so for them `predict.slots` below 8 gives other last bits; and so does one sequence (`predict.slots: 1`) for every type.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from harness.backends import Completion, Execution, Facts, Generation, Source, libllama, llama_loading, llama_tuning
from harness.backends.llama_batching import Batching, Greedy
from harness.backends.llama_context import BATCH, Context, DecodeError, Model, log_softmax
from harness.backends.pieces import Piece
from harness.errors import ArtifactError, ConfigError, ModelError
from harness.formats import gguf

FIRST_CONTEXT = 512
"""Tokens of a sequence at first; a longer prompt gets a larger cache."""
STEP = 256
"""llama.cpp rounds a sequence's tokens up to a multiple of this."""
UNIT, UNIT_K = 4, 8
"""Rows that a step on the CPU is filled up to: from here on more rows change no bit, of a file with K types or without."""
PROMPTS_ON_GPU = 32
"""New prompts in one call on a GPU, which takes them at the price of one."""


class LlamaCppBackend:
    """A loaded GGUF file; see `harness.backends.Backend`.

    Raises:
        ModelError: the file is not GGUF, truncated, or llama.cpp refuses it.
        ConfigError: sampling is asked for, or `predict.libllama` cannot be used.
    """

    def __init__(self, source: Source, generation: Generation, execution: Execution):
        if generation.temperature > 0:
            raise ConfigError("GGUF files are answered greedily", "leave the temperature at 0")
        try:
            # llama.cpp may abort the process on a damaged file.
            self.found = gguf.check(source.path)
        except ArtifactError as error:
            raise ModelError(error.problem, error.hint, file=error.file) from None
        self.path, self.generation, self.execution = source.path, generation, execution
        library = llama_loading.load(execution.libllama)
        layers, self.device = _gpu_layers(library, execution)
        self.ends = {*generation.stop_ids, *self.found["end_ids"]}
        # One token less than the model has seen, as llama.cpp's server answers.
        context = self.found["context_length"] - 1
        self.facts = Facts(library.version, context, {"device": self.device, "gpu_layers": layers})
        self.model = Model(library, source.path, gpu_layers=layers)
        self.setting: llama_tuning.Setting | None = None
        self.context: Context | None = None
        self.greedy: Greedy | None = None
        self._tokens = 0

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        """Answers a batch of prompts, in order; those that cannot be asked get an error each."""
        answers = {
            i: Completion([], "error", 0.0, error=problem)
            for i, prompt in enumerate(prompts)
            if (problem := self._problem(prompt))
        }
        asked = [i for i in range(len(prompts)) if i not in answers]
        if asked:
            rooms = [self._room(prompts[i]) for i in asked]
            greedy = self._reserve(max(len(prompts[i]) + room for i, room in zip(asked, rooms, strict=True)))
            began = time.perf_counter()
            found = greedy.answer([prompts[i] for i in asked], rooms)
            seconds = (time.perf_counter() - began) / len(asked)
            for i, answer in zip(asked, found, strict=True):
                if answer.error:
                    answers[i] = Completion([], "error", seconds, error=answer.error)
                else:
                    reason = "stop" if answer.stopped else "length"
                    answers[i] = Completion(answer.ids, reason, seconds, logprobs=answer.logprobs)
        return [answers[i] for i in range(len(prompts))]

    def stream(self, prompt: Sequence[int]) -> Iterator[Piece]:
        """Streams one answer; see `harness.backends.pieces`."""
        if problem := self._problem(prompt):
            yield Piece(end="error", error=problem)
            return
        room, given = self._room(prompt), 0
        for answer in self._reserve(len(prompt) + room).stream(prompt, room):
            yield from map(Piece, answer.ids[given:], answer.logprobs[given:])
            given = len(answer.ids)
            if answer.error:
                yield Piece(end="error", error=answer.error)
            elif answer.stopped or given == room:
                yield Piece(end="stop" if answer.stopped else "length")

    def logprobs(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The model's next-token distributions along given continuations.

        Returns:
            For each pair a float32 array (tokens of the continuation, vocabulary): natural logarithms of the
            probabilities of the whole vocabulary, row t given the prompt and the first t tokens of the continuation.

        Raises:
            ModelError: an empty prompt, a token outside the vocabulary, or more tokens than the context.
        """
        pairs = [[*p, *c[:-1]] for p, c in zip(prompts, continuations, strict=True)]
        for ids in pairs:
            if problem := self._problem(ids):
                raise ModelError(problem, "leave the question out", file=self.path)
        if not pairs:
            return []
        self._reserve(max(map(len, pairs)))
        assert self.context is not None and self.greedy is not None
        self.greedy.forget()
        found = []
        for prompt, ids, continuation in zip(prompts, pairs, continuations, strict=True):
            self.context.clear(0)
            first = len(prompt) - 1
            rows = [(token, at, 0, at >= first) for at, token in enumerate(ids)]
            try:
                parts = [log_softmax(self.context.decode(rows[at : at + BATCH])) for at in range(0, len(rows), BATCH)]
            except DecodeError as error:
                raise ModelError(str(error), "lower predict.fidelity_questions", file=self.path) from None
            found.append(np.concatenate(parts)[: len(continuation)])
        self.context.clear(0)
        return found

    def close(self) -> None:
        """Frees the model."""
        if self.context is not None:
            self.context.close()
        self.model.close()
        self.context = self.greedy = None

    def _check_open(self) -> None:
        if not self.model.pointer:
            raise ModelError("the model is closed", "load it again", file=self.path)

    def _problem(self, prompt: Sequence[int]) -> str | None:
        if not prompt:
            return "the prompt is empty"
        if not 0 <= min(prompt) <= max(prompt) < self.found["vocabulary"]:
            return f"the prompt has token ids outside the vocabulary of {self.found['vocabulary']}"
        if self._room(prompt) < 1:
            return f"the prompt has {len(prompt)} tokens and the context {self.facts.context}"
        return None

    def _room(self, prompt: Sequence[int]) -> int:
        return min(self.generation.max_new_tokens, self.facts.context - len(prompt))

    def _unit(self) -> int:
        if self.device != "cpu":
            return 1
        return UNIT_K if any("_K" in kind or kind.startswith("IQ") for kind in self.found["types"]) else UNIT

    def _reserve(self, tokens: int) -> Greedy:
        """A context whose sequences hold so many tokens of prompt and answer, made again if they do not."""
        self._check_open()
        if self.greedy is not None and tokens < self._tokens:
            return self.greedy
        if self.context is not None:
            self.context.close()
        self._tokens = max(-(-(tokens + 1) // STEP) * STEP, min(FIRST_CONTEXT, self.facts.context + 1))
        unit = self._unit()
        asked = self.execution
        self.setting = self.setting or llama_tuning.measure(
            self.model, threads=asked.threads, sequences=asked.slots, tokens=self._tokens, unit=unit
        )
        threads, sequences = self.setting.threads, self.setting.sequences
        self.facts.execution |= {"slots": sequences, "threads": threads, "slot_context": self._tokens}
        # One sequence more holds what all prompts begin with.
        self.context = Context(self.model, sequences=sequences + 1, tokens=self._tokens, threads=threads)
        batching = Batching(sequences, unit, 1 if self.device == "cpu" else PROMPTS_ON_GPU)
        self.greedy = Greedy(self.context, batching, self.ends, self.generation.repeat_penalty)
        return self.greedy


def _gpu_layers(library: libllama.Library, execution: Execution) -> tuple[int, str]:
    """(layers on the GPU, -1 for all; `cpu` or `cuda`).

    Raises:
        ConfigError: layers are to go to a GPU, and this build of llama.cpp knows none.
    """
    asked = execution.gpu_layers
    if asked is None:
        asked = 0 if execution.device == "cpu" else -1
        if asked and not library.llama_supports_gpu_offload():
            return 0, "cpu"
    if asked and not library.llama_supports_gpu_offload():
        raise ConfigError(
            f"predict.gpu_layers is {asked}, and {library.version} is built without a GPU",
            "name a llama.cpp that is built for your GPU in predict.libllama, or set predict.gpu_layers to 0",
        )
    return asked, "cuda" if asked else "cpu"
