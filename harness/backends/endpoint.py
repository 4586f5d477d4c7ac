"""Answers through any OpenAI-compatible server (vLLM, SGLang, llama-server): the way to generate over a cluster.

Prompts go out as token ids, which these servers take in `/v1/completions`, so that no server applies a template or a BOS of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from harness.backends import Completion, Execution, Facts, Generation, Source
from harness.errors import ConfigError, ModelError
from harness.storage import strict_json

KEY = "HARNESS_ENDPOINT_KEY"
"""Environment variable with the server's key; sent, never stored."""
TIMEOUT_S = 300.0
MAX_ANSWER_BYTES = 16_000_000
"""Of a response, unpacked: a server is not trusted to end."""
FAILURES = (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError, AttributeError)
"""What asking a server, and taking its answer apart, can fail with."""


class EndpointBackend:
    """A served model; `source.url` is the server's address up to and including `/v1`.

    Raises:
        ModelError: the server cannot be reached, or does not serve the model.
    """

    def __init__(self, source: Source, generation: Generation, execution: Execution):
        key = os.environ.get(KEY, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"{KEY} holds characters that no header can carry", "set it to the server's key")
        self.url = (source.url or "").rstrip("/")
        self.generation, self.slots = generation, execution.slots or 4
        self.client = httpx.Client(timeout=TIMEOUT_S, headers={"Authorization": f"Bearer {key}"} if key else {})
        try:
            models = {str(model["id"]): model for model in self._json("GET", "/models")["data"]}
            self.model = source.model or next(iter(models), "")
            longest = int(models.get(self.model, {}).get("max_model_len") or 2**31)
        except FAILURES as error:
            raise ModelError(
                f"cannot be reached ({type(error).__name__})",
                f"check the address and {KEY}",
                file=self.url or "endpoint",
            ) from None
        if self.model not in models:
            raise ModelError(
                f"does not serve {self.model!r}",
                f"set model to one of {', '.join(models) or 'what it serves'}",
                file=self.url,
            )
        self.facts = Facts(f"endpoint {self.model}", longest, {"device": "remote", "slots": self.slots})

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        """Answers one batch, `slots` requests at a time; a request that fails is an error of its question."""
        with ThreadPoolExecutor(self.slots) as pool:
            return list(pool.map(self._ask, prompts))

    def close(self) -> None:
        """Closes the connections."""
        self.client.close()

    def _ask(self, prompt: Sequence[int]) -> Completion:
        g = self.generation
        body = {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": g.max_new_tokens,
            "temperature": g.temperature,
            "top_p": g.top_p,
            "top_k": g.top_k,
            "min_p": g.min_p,
            "repeat_penalty": g.repeat_penalty,
            "repetition_penalty": g.repeat_penalty,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": g.seed,
            "n": 1,
            "stream": False,
            "cache_prompt": False,
            "stop_token_ids": list(g.stop_ids),
        }
        began = time.monotonic()
        try:
            choice = self._json("POST", "/completions", json=body)["choices"][0]
            reason = "length" if choice["finish_reason"] == "length" else "stop"
            return Completion([], reason, time.monotonic() - began, text=str(choice["text"]).strip())
        except FAILURES as error:
            return Completion([], "error", time.monotonic() - began, error=type(error).__name__)

    def _json(self, method: str, route: str, **request: Any) -> Any:
        began, body = time.monotonic(), b""
        with self.client.stream(method, self.url + route, **request) as response:
            response.raise_for_status()
            for part in response.iter_bytes():
                body += part
                if len(body) > MAX_ANSWER_BYTES or time.monotonic() - began > TIMEOUT_S:
                    raise ValueError("the answer does not end")
        return strict_json.loads(body.decode("utf-8"))
