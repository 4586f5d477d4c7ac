"""GGUF files answered by llama.cpp in this process, through xllamacpp.

xllamacpp's own call returns text, and its log-probabilities leave out every token that ends inside a UTF-8 character. So prompts go to the
listener that its server opens anyway, whose native endpoint takes and gives token ids; it listens on a Unix socket in a private folder (on
systems without: on the loopback interface), with a random key.

A request carries many prompts. They enter llama.cpp's queue together and are batched over the slots in an order that no timing decides, so
that the same run gives the same bits.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from harness.backends import Completion, Execution, Facts, Generation, Source
from harness.errors import ArtifactError, ModelError
from harness.formats import gguf, quantize

FIRST_CONTEXT = 1024
"""Tokens of a slot on loading; a longer prompt loads the model again with more."""
PARAMETERS_A_THREAD = 50_000_000
"""Threads meet at a barrier after every operation: a small model's are over sooner than the meeting, and on a busy machine each meeting waits
for the scheduler (5M parameters: 376 tokens/s on one thread, 19 to 195 on two)."""
REQUEST_SLOTS = 8
"""Prompts in one request, as a multiple of the slots."""


class LlamaCppBackend:
    """A loaded GGUF file; see `harness.backends.Backend`.

    Raises:
        ModelError: the file is not GGUF, truncated, or llama.cpp refuses it.
    """

    def __init__(self, source: Source, generation: Generation, execution: Execution):
        try:
            # llama.cpp may abort the process on a damaged file.
            self.model = gguf.check(source.path)
        except ArtifactError as error:
            raise ModelError(error.problem, error.hint, file=error.file) from None
        self.path, self.generation, self.execution = source.path, generation, execution
        self.threads = execution.threads or min(
            os.cpu_count() or 1, 1 + self.model["parameters"] // PARAMETERS_A_THREAD
        )
        self.ends = {*generation.stop_ids, *self.model["end_ids"]}
        # The server stops one token before a slot is full.
        context = self.model["context_length"] - 1
        version = f"xllamacpp {quantize.extension().__version__}"
        self.facts = Facts(
            version, context, {"slots": execution.slots, "threads": self.threads, "device": execution.device}
        )
        self._server: _Server | None = None
        self._slot_context = 0
        self._load(min(FIRST_CONTEXT, context))

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        """Answers a batch of prompts, in order; a request holds `REQUEST_SLOTS` prompts a slot."""
        answers = {
            i: Completion([], "error", 0.0, error=problem)
            for i, prompt in enumerate(prompts)
            if (problem := self._problem(prompt))
        }
        # Almost every prompt has room for a whole answer; those near the end of the context are asked with what is left.
        rooms = {i: self._room(prompt) for i, prompt in enumerate(prompts) if i not in answers}
        self._load(max((len(prompts[i]) + room for i, room in rooms.items()), default=0))
        size = REQUEST_SLOTS * self.execution.slots
        for room, group in groupby(sorted(rooms, key=lambda i: (-rooms[i], i)), key=lambda i: rooms[i]):
            positions = list(group)
            for start in range(0, len(positions), size):
                batch = positions[start : start + size]
                answers |= zip(batch, self._ask([list(prompts[i]) for i in batch], room), strict=True)
        return [answers[i] for i in range(len(prompts))]

    def logprobs(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The model's next-token distributions along given continuations.

        Returns:
            For each pair a float32 array (tokens of the continuation, vocabulary): natural logarithms of the probabilities of the whole
            vocabulary, before any sampling, row t given the prompt and the first t tokens of the continuation.

        Raises:
            ModelError: an empty prompt, a token outside the vocabulary, or more tokens than the context.
        """
        results = []
        self._load(max((len(p) + len(c) + 1 for p, c in zip(prompts, continuations, strict=True)), default=0))
        for prompt, continuation in zip(prompts, continuations, strict=True):
            rows = np.full((len(continuation), self.model["vocabulary"]), -np.inf, np.float32)
            for t in range(len(continuation)):
                ids = [*prompt, *continuation[:t]]
                if problem := self._problem(ids):
                    raise ModelError(problem, "leave the question out", file=self.path)
                self._next_token(ids, rows[t])
            results.append(rows)
        return results

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text` as llama.cpp splits it: BOS as the file says, and text that looks like a special token is one."""
        return self._post({"content": text, "add_special": True, "parse_special": True}, "/tokenize")[1]["tokens"]

    def close(self) -> None:
        """Frees the model."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _problem(self, prompt: Sequence[int]) -> str | None:
        if not prompt:
            return "the prompt is empty"
        if not 0 <= min(prompt) <= max(prompt) < self.model["vocabulary"]:
            return f"the prompt has token ids outside the vocabulary of {self.model['vocabulary']}"
        if self._room(prompt) < 1:
            return f"the prompt has {len(prompt)} tokens and the context {self.facts.context}"
        return None

    def _room(self, prompt: Sequence[int]) -> int:
        return min(self.generation.max_new_tokens, self.facts.context - len(prompt))

    def _load(self, tokens: int) -> None:
        """Makes sure that a slot holds so many tokens of prompt and answer."""
        if self._server is not None and tokens < self._slot_context:
            return
        self.close()
        # llama.cpp rounds up to 256 itself, but only the total.
        self._slot_context = -(-(tokens + 1) // 256) * 256
        self._server = _Server(self.path, self._slot_context, self.execution.slots, self.threads, self.execution.device)
        self.facts.execution["slot_context"] = self._slot_context

    def _post(self, body: dict[str, Any], route: str = "/completion") -> tuple[int, Any]:
        if self._server is None:
            raise ModelError("the model is closed", "load it again", file=self.path)
        return self._server.post(route, body)

    def _ask(self, prompts: list[list[int]], room: int) -> list[Completion]:
        sent = request(self.generation, room)
        began = time.perf_counter()
        status, answers = self._post({"prompt": prompts, "return_tokens": True, **sent})
        seconds = (time.perf_counter() - began) / len(prompts)
        if status != 200:
            if len(prompts) > 1:
                return [completion for prompt in prompts for completion in self._ask([prompt], room)]
            return [Completion([], "error", seconds, error=str(answers.get("error", {}).get("message", answers)))]
        answers = sorted(answers if isinstance(answers, list) else [answers], key=lambda answer: answer["index"])
        used = answers[0]["generation_settings"]
        if ignored := [key for key, value in sent.items() if key in used and not _same(used[key], value)]:
            raise ModelError(
                f"llama.cpp used {ignored[0]}={used[ignored[0]]!r}, not {sent[ignored[0]]!r}",
                "install the pinned xllamacpp",
                file=self.path,
            )
        return [self._completion(answer, seconds) for answer in answers]

    def _completion(self, answer: dict[str, Any], seconds: float) -> Completion:
        """Cuts at the first end token: llama.cpp's own end tokens stop it, others of `stop_ids` it runs past."""
        ids: list[int] = answer["tokens"]
        end = next((i for i, token in enumerate(ids) if token in self.ends), None)
        if end is None and answer["stop_type"] == "eos":
            end = len(ids) - 1
        return Completion(ids, "length", seconds) if end is None else Completion(ids[:end], "stop", seconds)

    def _next_token(self, ids: list[int], row: np.ndarray) -> None:
        # A chosen token that ends inside a UTF-8 character comes without probabilities, so an end token (no text) is made the choice: the
        # bias acts on the sampler, while probabilities are reported from the raw logits. The cache saves computing the prompt for each token.
        settings = {
            **request(self.generation, 1),
            "logit_bias": [[min(self.ends, default=0), 1e9]],
            "n_probs": len(row),
            "id_slot": 0,
            "cache_prompt": True,
        }
        status, answer = self._post({"prompt": ids, **settings})
        if status != 200 or not answer.get("completion_probabilities"):
            raise ModelError(
                f"llama.cpp gave no log-probabilities ({str(answer)[:200]})",
                "install the pinned xllamacpp",
                file=self.path,
            )
        for entry in answer["completion_probabilities"][0]["top_logprobs"]:
            row[entry["id"]] = entry["logprob"]


def request(generation: Generation, room: int) -> dict[str, Any]:
    """Every sampling field of llama.cpp's server: those of `generation`, and all others neutral, so that none of its defaults applies."""
    return {
        "n_predict": room,
        "temperature": generation.temperature,
        "top_k": generation.top_k,
        "top_p": generation.top_p,
        "min_p": generation.min_p,
        "repeat_penalty": generation.repeat_penalty,
        "repeat_last_n": 64,
        "seed": generation.seed,
        "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "dry_multiplier": 0.0,
        "xtc_probability": 0.0,
        "typical_p": 1.0,
        "top_n_sigma": -1.0,
        "dynatemp_range": 0.0,
        "mirostat": 0,
        "adaptive_target": -1.0,
        "ignore_eos": False,
        "logit_bias": [],
        "stop": [],
        "grammar": "",
        "n_keep": 0,
        "n_probs": 0,
        "cache_prompt": False,
        "stream": False,
    }


def _same(used: Any, sent: Any) -> bool:
    return abs(used - sent) < 1e-6 if isinstance(sent, float) else used == sent


class _Server:
    """llama.cpp's server around one model, and requests to it."""

    def __init__(self, path: Path, slot_context: int, slots: int, threads: int, device: str):
        xllamacpp = quantize.extension()
        self.folder = tempfile.mkdtemp(prefix="harness-")
        self.key = secrets.token_hex(16)
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel = slot_context * slots, slots
        params.kv_unified = False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.n_gpu_layers = 0 if device == "cpu" else -1
        params.fit_params = params.warmup = params.ctx_shift = params.ui = params.endpoint_slots = False
        params.cache_ram_mib = 0
        params.verbosity = -1
        params.api_keys = [self.key]
        path_of_socket = f"{self.folder}/llama.sock"
        # The kernel's limit for such a path is 104 to 108 bytes.
        if hasattr(socket, "AF_UNIX") and len(os.fsencode(path_of_socket)) < 100:
            params.hostnames = [path_of_socket]
        try:
            self.server = xllamacpp.Server(params)
        except RuntimeError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise ModelError(
                "llama.cpp cannot load it",
                "check that this llama.cpp knows its architecture, and that it fits in memory",
                file=path,
            ) from None
        # A server that is freed before its loop runs never returns (xllamacpp 2026.10): an answered request shows that it does.
        self.post("/completion", {"prompt": [0], "n_predict": 1})

    def post(self, route: str, body: dict[str, Any]) -> tuple[int, Any]:
        """(status, parsed body) of a request; ModelError if the server is gone."""
        connection = _connection(self.server.listening_address)
        try:
            connection.request(
                "POST",
                route,
                json.dumps(body),
                {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
            )
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException) as error:
            raise ModelError(f"llama.cpp stopped answering ({error})", "run the command again") from None
        finally:
            connection.close()

    def close(self) -> None:
        """Stops the server and frees the model."""
        del self.server
        shutil.rmtree(self.folder, ignore_errors=True)


def _connection(address: str) -> http.client.HTTPConnection:
    place = urlsplit(address)
    if place.scheme != "unix":
        return http.client.HTTPConnection(place.netloc)
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(place.path)
    return connection
