"""Ollama: `/api/generate`, `/api/chat` and `/api/show` (https://docs.ollama.com/api)."""

from __future__ import annotations

import os
from typing import Any, Literal

from harness.errors import ModelError
from harness.verification.evidence import TOP, Put, Reply, ServerFacts, Way
from harness.verification.http import FAILURES, Http, RefusedError

ADDRESS = "http://127.0.0.1:11434"
HOST = "OLLAMA_HOST"
"""Environment variable with another address, as Ollama's own client reads it."""
DEFAULTS: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "repeat_penalty": 1.1}
"""Ollama's defaults, where neither a request nor the Modelfile sets a value."""
GREEDY: dict[str, Any] = {"temperature": 0, "top_k": 1, "top_p": 1, "min_p": 0, "repeat_penalty": 1, "seed": 0}


class OllamaServer:
    """A model of a running Ollama; see `harness.verification.evidence.Server`. Its server gives no token ids.

    Raises:
        ModelError: Ollama cannot be reached, or has no such model.
    """

    def __init__(self, model: str, api: Literal["completions", "chat"], max_new_tokens: int, gguf: str):
        self.http = Http(address())
        self.model, self.api, self.limit = model, api, max_new_tokens
        try:
            self.shown: Any = self.http.json("POST", "/api/show", {"model": model})
            self.parameters = parameters(str(self.shown.get("parameters") or ""))
        except RefusedError as error:
            hint = f"make it with `ollama create {model} -f {gguf}`"
            raise ModelError(f"has no model {model!r} ({error})", hint, file=self.http.root) from None
        except FAILURES as error:
            raise self.http.unreachable(error) from None

    def facts(self) -> ServerFacts:
        """See `Server`. The context is the one that it loaded the model with, if it is loaded."""
        context = self.parameters.get("num_ctx")
        loaded = self.http.get("/api/ps") or {}
        for entry in loaded.get("models") or []:
            if entry.get("model") in (self.model, f"{self.model}:latest"):
                context = entry.get("context_length", context)
        template = self.shown.get("template")
        return ServerFacts(
            "Ollama",
            self.model,
            int(context) if isinstance(context, int | float) else None,
            DEFAULTS | self.parameters,
            template if isinstance(template, str) else None,
        )

    def ask(self, put: Put, way: Way) -> Reply:
        """See `Server`."""
        chat = self.api == "chat" and way != "exact"
        options = {"num_predict": self.limit, **(GREEDY if way != "plain" else {})}
        body: dict[str, Any] = {"model": self.model, "stream": False, "options": options}
        body |= {"logprobs": True, "top_logprobs": TOP}
        if chat:
            body["messages"] = put.messages
        elif way == "exact":
            body |= {"prompt": put.text, "raw": True}
        else:
            body["prompt"] = put.question
        try:
            return _reply(self.http.json("POST", "/api/chat" if chat else "/api/generate", body), chat)
        except RefusedError as error:
            return Reply(finish="error", error=str(error))
        except FAILURES as error:
            return Reply(finish="error", error=type(error).__name__)

    def prompt_ids(self, put: Put) -> list[int] | None:
        """Ollama does not give them."""
        return None

    def close(self) -> None:
        """See `Server`."""
        self.http.close()


def address() -> str:
    """Where Ollama listens."""
    found = os.environ.get(HOST, "").strip() or ADDRESS
    found = found if "://" in found else f"http://{found}"
    return found.replace("//0.0.0.0", "//127.0.0.1").rstrip("/")


def parameters(text: str) -> dict[str, Any]:
    """`PARAMETER` lines as `/api/show` gives them, one `name value` a line; numbers as numbers, several stops as a list."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        value = value.strip()
        if name == "stop":
            found.setdefault("stop", []).append(value.strip('"'))
        elif name:
            try:
                found[name] = float(value) if "." in value or "e" in value else int(value)
            except ValueError:
                found[name] = value
    return found


def _reply(answer: Any, chat: bool) -> Reply:
    text = answer["message"]["content"] if chat else answer["response"]
    counts = [
        value if isinstance(value := answer.get(f"{name}_count"), int) else None for name in ("prompt_eval", "eval")
    ]
    listed = tuple(
        tuple((str(t["token"]), None, float(t["logprob"])) for t in position.get("top_logprobs") or [])
        for position in answer.get("logprobs") or []
    )
    return Reply(
        text=str(text or ""),
        finish="length" if answer.get("done_reason") == "length" else "stop",
        prompt_tokens=counts[0],
        tokens=counts[1],
        listed=listed,
    )
