"""A model and a context of llama.cpp: rows in, logits out, independent of questions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from harness.backends.libllama import Batch
from harness.errors import ModelError

BATCH = 2048
"""Maximum rows of one call; the caller splits larger ones."""
PART = 1 << 18
"""Logits that are worth a thread: about a millisecond."""
Row = tuple[int, int, int, bool]
"""(token, position, sequence, whether its logits are wanted)."""


class DecodeError(Exception):
    """llama.cpp could not compute a batch."""


class Model:
    """A GGUF file in memory.

    Raises:
        ModelError: llama.cpp refuses the file.
    """

    def __init__(self, library: Any, path: Path, *, gpu_layers: int):
        self.library, self.path = library, path
        params = library.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        library.keep_first_error()
        self.pointer = library.llama_model_load_from_file(os.fsencode(path), params)
        if not self.pointer:
            why = f" ({library.first_error})" if library.first_error else ""
            hint = "check that this llama.cpp knows its architecture, and that it fits in memory"
            raise ModelError(f"llama.cpp cannot load it{why}", hint, file=path)
        self.words = library.llama_model_get_vocab(self.pointer)
        self.vocabulary: int = library.llama_vocab_n_tokens(self.words)

    def cache_bytes(self) -> int:
        """Approximate bytes of one token's keys and values in 16 bits, assuming heads of the usual size."""
        width = self.library.llama_model_n_embd(self.pointer) // max(self.library.llama_model_n_head(self.pointer), 1)
        return (
            4
            * self.library.llama_model_n_layer(self.pointer)
            * self.library.llama_model_n_head_kv(self.pointer)
            * width
        )

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text` as llama.cpp splits it."""
        raw = text.encode("utf-8", "surrogatepass")
        ids = np.empty(len(raw) + 8, np.int32)
        count = self.library.llama_tokenize(
            self.words, raw, len(raw), ids.ctypes.data, len(ids), add_special, parse_special
        )
        if count < 0:
            raise ModelError("llama.cpp cannot split this text", "leave it out", file=self.path)
        return ids[:count].tolist()

    def close(self) -> None:
        """Frees the model."""
        if self.pointer:
            self.library.llama_model_free(self.pointer)
            self.pointer = None


class Context:
    """Room for `sequences` sequences of `tokens` tokens each (a multiple of 256). Each has its own cache.

    Raises:
        ModelError: memory does not hold it.
    """

    def __init__(self, model: Model, *, sequences: int, tokens: int, threads: int):
        self.model, self.library, self.threads = model, model.library, threads
        params = self.library.llama_context_default_params()
        params.n_ctx, params.n_seq_max = sequences * tokens, sequences
        params.n_threads = params.n_threads_batch = threads
        params.n_batch, params.n_ubatch = BATCH, 512
        params.no_perf = True
        self.pointer = self.library.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            raise ModelError(
                f"llama.cpp has no memory for {sequences} sequences of {tokens} tokens",
                "lower predict.slots, or shorten the longest prompt",
                file=model.path,
            )
        self.memory = self.library.llama_get_memory(self.pointer)

    def decode(self, rows: Sequence[Row]) -> np.ndarray:
        """Computes rows and keeps their keys and values.

        Returns:
            float32 logits of the rows that want them, in order, shape (wanted, vocabulary): a view that the next call overwrites.

        Raises:
            DecodeError: llama.cpp could not.
        """
        tokens, positions, sequences, wanted = (np.array(column) for column in zip(*rows, strict=True))
        columns = [column.astype(np.int32) for column in (tokens, positions, sequences)]
        counts, flags = np.ones(len(rows), np.int32), wanted.astype(np.int8)
        pointers = columns[2].ctypes.data + 4 * np.arange(len(rows), dtype=np.uint64)
        data = [column.ctypes.data for column in columns]
        batch = Batch(len(rows), data[0], None, data[1], counts.ctypes.data, pointers.ctypes.data, flags.ctypes.data)
        if code := self.library.llama_decode(self.pointer, batch):
            raise DecodeError(f"llama.cpp could not compute {len(rows)} tokens (code {code})")
        places = np.flatnonzero(flags)
        if not len(places):
            return np.empty((0, self.model.vocabulary), np.float32)
        # Outputs are contiguous in batch order; requesting the first makes llama.cpp sort them so.
        first = self.library.llama_get_logits_ith(self.pointer, int(places[0]))
        return np.ctypeslib.as_array(first, (len(places), self.model.vocabulary))

    def clear(self, sequence: int) -> None:
        """Forgets a sequence."""
        self.library.llama_memory_seq_rm(self.memory, sequence, -1, -1)

    def copy(self, source: int, target: int) -> None:
        """Copies a sequence's keys and values over another's."""
        self.clear(target)
        self.library.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def close(self) -> None:
        """Frees the cache."""
        if self.pointer:
            self.library.llama_free(self.pointer)
            self.pointer = None


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms of the probabilities of each row: x - max - ln sum exp(x - max), in float32."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def logprobs_of(logits: np.ndarray, tokens: np.ndarray, threads: int = 1) -> np.ndarray:
    """The natural log-probability of one token of each row; large blocks of rows on up to `threads` threads, which change no bit."""
    parts = min(threads, len(tokens), logits.size // PART)
    if parts < 2:
        return _logprobs_of(logits, tokens)
    bounds = [len(tokens) * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts) as pool:
        found = [pool.submit(_logprobs_of, logits[a:b], tokens[a:b]) for a, b in pairwise(bounds)]
    return np.concatenate([each.result() for each in found])


def _logprobs_of(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    largest = logits.max(axis=-1, keepdims=True)
    total = np.log(np.exp(logits - largest).sum(axis=-1))
    return logits[np.arange(len(tokens)), tokens] - largest[:, 0] - total
