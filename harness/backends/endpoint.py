"""Answers through any OpenAI-compatible server (vLLM, SGLang, llama-server, a commercial one): the way to generate over a cluster.

`/v1/completions` gets token ids where the tokenizer is known, so that no server applies its own template or BOS, and text where it is not.
`/v1/chat/completions` gets messages, and the server's own template is part of what is judged. A server that gives token ids back (vLLM's
`return_token_ids`) gives its prompt back too; of any other, the tokens are counted by its own `usage`.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from harness.backends import Completion, Execution, Facts, Generation, Prompt, Source, server_sent_events
from harness.backends.pieces import Piece
from harness.errors import ConfigError, HarnessError, ModelError
from harness.storage import strict_json

KEY = "HARNESS_ENDPOINT_KEY"
"""Environment variable with the server's key; sent, never stored."""
TIMEOUT_S = 300.0
MAX_ANSWER_BYTES = 16_000_000
"""Maximum size of a decompressed response: a server might never stop."""
RETRIES = 6
"""Retries of a request that was refused temporarily (429, 5xx) or cut off; each wait is twice the one before, starting at BACKOFF_S."""
BACKOFF_S = 1.0
LONGEST_WAIT_S = 60.0
FAILURES = (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError, AttributeError)
"""Errors that requesting and parsing an answer can raise."""
MORE_FIELDS = (
    "top_k",
    "min_p",
    "repeat_penalty",
    "repetition_penalty",
    "cache_prompt",
    "stop_token_ids",
    "return_token_ids",
    "seed",
)
"""Sent so that no server default applies; omitted for a server that rejects unknown fields, which is then recorded."""


class _Refused(Exception):
    """A request that the server refuses, with its status and message."""

    def __init__(self, status: int, message: str, after: float = 0.0):
        self.status, self.message, self.after = status, message, after


class EndpointBackend:
    """A served model; `source.url` is the server's address up to and including `/v1`.

    Raises:
        ModelError: the server cannot be reached, refuses the key, answers with a web page, or does not serve the model.
    """

    def __init__(self, source: Source, generation: Generation, execution: Execution):
        key = os.environ.get(KEY, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"{KEY} holds characters that no header can carry", "set it to the server's key")
        self.url = (source.url or "").rstrip("/")
        self.chat = source.chat
        self.generation, self.slots = generation, execution.slots or 4
        limits = httpx.Limits(max_connections=self.slots, max_keepalive_connections=self.slots)
        self.client = httpx.Client(
            timeout=TIMEOUT_S, limits=limits, headers={"Authorization": f"Bearer {key}"} if key else {}
        )
        self.model, longest = self._served(source.model)
        self.standard = False
        self.facts = Facts(
            f"endpoint {self.model}",
            longest,
            {"device": "remote", "slots": self.slots, "api": "chat" if self.chat else "completions"},
        )

    def answer(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """Answers one batch, `slots` requests at a time; a request that fails is an error of its question."""
        found = dict(self.answer_batches([[prompt] for prompt in prompts]))
        return [found[i][0] for i in range(len(prompts))]

    def answer_batches(self, batches: Sequence[Sequence[Prompt]]) -> Iterator[tuple[int, list[Completion]]]:
        """Answers batches of one prompt each, `slots` at a time; yields each one's position and answer as it arrives.

        Raises:
            ModelError: the server refuses all questions (key, model, web page), or cuts prompts or answers short.
        """
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Completion | BaseException]] = queue.SimpleQueue()
        for i in range(len(batches)):
            waiting.put(i)
        stopped = threading.Event()

        def work() -> None:
            while not stopped.is_set():
                try:
                    i = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((i, self._ask(batches[i][0], stopped)))
                except BaseException as error:
                    done.put((i, error))

        # Daemon threads: an interrupt does not wait for answers in flight.
        for _ in range(min(self.slots, len(batches))):
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in range(len(batches)):
                i, found = done.get()
                if isinstance(found, BaseException):
                    raise found
                yield i, [found]
        finally:
            stopped.set()

    def stream(self, prompt: Prompt) -> Iterator[Piece]:
        """One answer as the server sends it; see `harness.backends.pieces`. A busy server is not retried."""
        route = "/chat/completions" if self.chat else "/completions"
        body = self._body(prompt) | {"stream": True, "return_token_ids": False, "logprobs": True if self.chat else 1}
        try:
            with self.client.stream("POST", self.url + route, json=body) as response:
                if response.status_code < 300:
                    yield from server_sent_events.pieces(response.iter_lines())
                    return
                refused = response.status_code in (400, 422)
            if refused:  # possibly because of an unknown field
                plain = {k: v for k, v in body.items() if k not in (*MORE_FIELDS, "logprobs")}
                with self.client.stream("POST", self.url + route, json=plain) as response:
                    if response.status_code < 300:
                        yield from server_sent_events.pieces(response.iter_lines())
                        return
            yield Piece(end="error", error=f"the server answers with status {response.status_code}")
        except FAILURES as error:
            yield Piece(end="error", error=f"the server does not answer ({type(error).__name__})")

    def close(self) -> None:
        """Closes the connections."""
        self.client.close()

    # --------------------------------------------------------------------------------------------------------- one question

    def _ask(self, prompt: Prompt, stopped: threading.Event) -> Completion:
        began = time.monotonic()
        try:
            answer = self._patiently(self._body(prompt), stopped)
            return self._completion(prompt, answer, time.monotonic() - began)
        except HarnessError:
            raise
        except _Refused as error:
            return Completion([], "error", time.monotonic() - began, error=f"{error.status}: {error.message}"[:200])
        except FAILURES as error:
            return Completion([], "error", time.monotonic() - began, error=type(error).__name__)

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        g = self.generation
        sent = prompt if isinstance(prompt, str) else list(prompt)
        body = {
            "model": self.model,
            ("messages" if self.chat else "prompt"): sent,
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
            "return_token_ids": True,
        }
        if not g.stop_ids:
            del body["stop_token_ids"]
        return body

    def _patiently(self, body: dict[str, Any], stopped: threading.Event) -> Any:
        """The server's answer; retries with exponential backoff if the server is busy or the connection breaks."""
        route = "/chat/completions" if self.chat else "/completions"
        for attempt in range(RETRIES + 1):
            sent = {k: v for k, v in body.items() if not (self.standard and k in MORE_FIELDS)}
            wait = min(BACKOFF_S * 2**attempt, LONGEST_WAIT_S)
            try:
                return self._json("POST", route, json=sent)
            except _Refused as error:
                if error.status in (400, 422) and len(sent) == len(body) and _names_a_field(error.message):
                    self.standard = True
                    self.facts.execution["fields"] = "standard ones only: the server refuses others"
                    continue
                if (error.status != 429 and error.status < 500) or attempt == RETRIES:
                    raise
                wait = min(max(wait, error.after), LONGEST_WAIT_S)
            except httpx.TransportError:
                if attempt == RETRIES:
                    raise
            if stopped.wait(wait):
                raise httpx.TransportError("stopped")
        raise httpx.TransportError("no answer")

    def _completion(self, prompt: Prompt, answer: Any, seconds: float) -> Completion:
        choice = answer["choices"][0]
        text = choice["message"]["content"] if self.chat else choice["text"]
        reason = "length" if choice["finish_reason"] == "length" else "stop"
        ids = [int(i) for i in choice.get("token_ids") or []]
        prompt_ids = choice.get("prompt_token_ids") or answer.get("prompt_token_ids") or None
        usage = answer.get("usage") or {}
        tokens, prompt_tokens = (
            value if isinstance(value := usage.get(key), int) else None
            for key in ("completion_tokens", "prompt_tokens")
        )
        if reason == "length" and tokens is not None and tokens < self.generation.max_new_tokens:
            raise ModelError(
                f"cuts answers short: one ended after {tokens} of {self.generation.max_new_tokens} tokens",
                "raise the server's context or its own limit, or lower predict.max_new_tokens",
                file=self.url,
            )
        known = len(prompt) if not self.chat and not isinstance(prompt, str) else 0
        if prompt_tokens is not None and prompt_tokens < known:
            raise ModelError(
                f"cuts prompts short: it read {prompt_tokens} of {known} tokens",
                "raise the server's context",
                file=self.url,
            )
        if reason == "stop" and ids and ids[-1] in self.generation.stop_ids:
            ids = ids[:-1]
        return Completion(
            ids,
            reason,
            seconds,
            text=str(text or "").strip(),
            prompt_ids=[int(i) for i in prompt_ids] if prompt_ids else None,
            tokens=tokens,
            prompt_tokens=prompt_tokens,
        )

    # ------------------------------------------------------------------------------------------------------------ the server

    def _served(self, wanted: str | None) -> tuple[str, int]:
        """(name of the model, its context in tokens) after asking the server what it serves."""
        try:
            models = {str(model["id"]): model for model in self._json("GET", "/models")["data"]}
        except HarnessError:
            raise
        except _Refused as error:
            if error.status == 404 and wanted:  # some servers do not list what they serve
                return wanted, 2**31
            raise ModelError(
                f"cannot be reached (it answers {error.status})",
                f"check the address, which usually ends in /v1, and {KEY}",
                file=self.url,
            ) from None
        except FAILURES as error:
            raise ModelError(
                f"cannot be reached ({type(error).__name__})",
                f"check the address and {KEY}",
                file=self.url or "endpoint",
            ) from None
        name = wanted or next(iter(models), "")
        if name not in models:
            raise self._not_served(name, list(models))
        longest = models[name].get("max_model_len") if isinstance(models[name], dict) else None
        if longest is not None and (not isinstance(longest, int) or longest <= 0):
            raise ModelError(f"gives {str(longest)[:40]!r} as max_model_len", "check the server", file=self.url)
        return name, longest or 2**31

    def _not_served(self, name: str, models: list[str]) -> ModelError:
        shown = ", ".join(models[:5]) + (f" and {len(models) - 5} more" if len(models) > 5 else "")
        return ModelError(f"does not serve {name!r}", f"set model to one of {shown or 'what it serves'}", file=self.url)

    def _json(self, method: str, route: str, **request: Any) -> Any:
        began, body = time.monotonic(), b""
        with self.client.stream(method, self.url + route, **request) as response:
            for part in response.iter_bytes():
                body += part
                if len(body) > MAX_ANSWER_BYTES or time.monotonic() - began > TIMEOUT_S:
                    raise ValueError("the answer does not end")
        if response.is_redirect:
            raise ModelError(
                "answers with a redirect",
                f"give the address that it leads to, {response.headers.get('location', '')[:100]}",
                file=self.url,
            )
        if response.status_code in (401, 403):
            raise ModelError(
                f"refuses the key ({response.status_code})",
                f"set the environment variable {KEY} to the server's key",
                file=self.url,
            )
        text = body.decode("utf-8", "replace")
        if response.status_code < 500 and (
            "html" in response.headers.get("content-type", "") or text.lstrip()[:1] == "<"
        ):
            raise ModelError(
                "answers with a web page, not with JSON",
                "give the address of its API, which usually ends in /v1",
                file=self.url,
            )
        if response.status_code >= 400:
            message = refusal(text)
            if "model" in message and response.status_code == 404 and method == "POST":
                raise self._not_served(self.model, [])
            raise _Refused(response.status_code, message, _seconds(response.headers.get("retry-after")))
        return strict_json.loads(body.decode("utf-8"))


def refusal(text: str) -> str:
    """A server's reason for a refusal, in one line."""
    try:
        value = strict_json.loads(text)
        error = value.get("error", value) if isinstance(value, dict) else value
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except ValueError:
        pass
    return " ".join(text.split())[:200]


def _names_a_field(message: str) -> bool:
    return any(word in message.lower() for word in (*MORE_FIELDS, "unrecognized", "unknown", "extra", "not permitted"))


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0
