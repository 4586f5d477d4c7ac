"""llama.cpp's server, vLLM and their like: `/v1/completions` and `/v1/chat/completions`, and what llama.cpp reports beyond them."""

from __future__ import annotations

from typing import Any, Literal

from harness.errors import ModelError
from harness.verification.evidence import TOP, Listed, Put, Reply, ServerFacts, Way
from harness.verification.http import FAILURES, Http, RefusedError

GREEDY: dict[str, Any] = {"temperature": 0, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0, "seed": 0}
GREEDY_MORE: dict[str, Any] = {"top_k": 1, "min_p": 0, "repeat_penalty": 1, "repetition_penalty": 1}
"""Left out for a server that refuses fields it does not know."""


class OpenAIServer:
    """A server at `url` (with or without `/v1`); see `harness.verification.evidence.Server`.

    Args:
        model: the served model's name; none: the first.
        api: how the plain and greedy ways ask.
        stop_ids: end tokens that the exact way names.
    """

    def __init__(
        self,
        url: str,
        model: str | None,
        api: Literal["completions", "chat"],
        max_new_tokens: int,
        stop_ids: tuple[int, ...],
    ):
        self.http = Http(url.rstrip("/").removesuffix("/v1"))
        self.api, self.limit, self.stop_ids = api, max_new_tokens, stop_ids
        self.more = GREEDY_MORE
        try:
            found = self.http.json("GET", "/v1/models")["data"]
            names = [str(entry["id"]) for entry in found]
            self.props = self._props()
        except (RefusedError, *FAILURES) as error:
            raise self.http.unreachable(error) from None
        if not names or (model is not None and model not in names):
            shown = ", ".join(names[:5]) or "none"
            raise ModelError(f"does not serve {model!r}", f"give --model one of: {shown}", file=self.http.root)
        self.model = model or names[0]
        self.longest = found[names.index(self.model)].get("max_model_len")

    def _props(self) -> dict[str, Any]:
        """llama.cpp's own description of itself; empty for another server."""
        found = self.http.get("/props")
        return found if isinstance(found, dict) and "default_generation_settings" in found else {}

    def facts(self) -> ServerFacts:
        """See `Server`."""
        if not self.props:
            context = self.longest if isinstance(self.longest, int) else None
            return ServerFacts("OpenAI-compatible", self.model, context)
        settings = self.props["default_generation_settings"]
        defaults = settings.get("params")
        context = settings.get("n_ctx")
        return ServerFacts(
            "llama.cpp",
            str(self.props.get("model_path") or self.model),
            context if isinstance(context, int) else None,
            defaults if isinstance(defaults, dict) else {},
        )

    def ask(self, put: Put, way: Way) -> Reply:
        """See `Server`."""
        chat = self.api == "chat" and way != "exact"
        body: dict[str, Any] = {"model": self.model, "max_tokens": self.limit, "stream": False}
        body |= {"messages": put.messages} if chat else {"prompt": put.ids if way == "exact" else put.text}
        body |= {"logprobs": True, "top_logprobs": TOP} if chat else {"logprobs": TOP}
        if way != "plain":
            body |= GREEDY | self.more
        if way == "exact" and self.more:
            body["stop_token_ids"] = list(self.stop_ids)
        route = "/v1/chat/completions" if chat else "/v1/completions"
        try:
            return _reply(self._tolerated(route, body))
        except RefusedError as error:
            return Reply(finish="error", error=str(error))
        except FAILURES as error:
            return Reply(finish="error", error=type(error).__name__)

    def _tolerated(self, route: str, body: dict[str, Any]) -> Any:
        try:
            return self.http.json("POST", route, body)
        except RefusedError as error:
            if error.status not in (400, 422) or not self.more or not any(name in body for name in self.more):
                raise
            # Some servers take OpenAI's own fields only.
            bare = {k: v for k, v in body.items() if k not in self.more and k != "stop_token_ids"}
            found = self.http.json("POST", route, bare)
            self.more = {}
            return found

    def prompt_ids(self, put: Put) -> list[int] | None:
        """See `Server`: by llama.cpp's `/apply-template` and `/tokenize`."""
        if not self.props:
            return None
        try:
            text = put.text
            if self.api == "chat":
                text = self.http.json("POST", "/apply-template", {"messages": put.messages})["prompt"]
            body = {"content": text, "add_special": True, "parse_special": True}
            return [int(i) for i in self.http.json("POST", "/tokenize", body)["tokens"]]
        except (RefusedError, *FAILURES):
            return None

    def close(self) -> None:
        """See `Server`."""
        self.http.close()


def _reply(answer: Any) -> Reply:
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    listed, ids = _listed(choice.get("logprobs") or {})
    counts = [
        value if isinstance(value := usage.get(f"{name}_tokens"), int) else None for name in ("prompt", "completion")
    ]
    return Reply(
        text=str(text or ""),
        finish="length" if choice["finish_reason"] == "length" else "stop",
        prompt_tokens=counts[0],
        tokens=counts[1],
        ids=ids,
        listed=listed,
    )


def _listed(found: dict[str, Any]) -> tuple[tuple[Listed, ...], tuple[int, ...] | None]:
    """The listed tokens of each position, and the generated ids where they are given.

    There are two shapes: `content`, a list of objects with `top_logprobs` (chat, and llama.cpp's completions), and `tokens` with a dictionary
    for each position (completions of OpenAI and vLLM).
    """
    if isinstance(content := found.get("content"), list):
        listed = tuple(
            tuple((str(t["token"]), _id(t.get("id")), float(t["logprob"])) for t in position["top_logprobs"])
            for position in content
        )
        ids = [_id(position.get("id")) for position in content]
        return listed, tuple(i for i in ids if i is not None) if ids and None not in ids else None
    rows = found.get("top_logprobs") or []
    return tuple(tuple((str(text), None, float(value)) for text, value in (row or {}).items()) for row in rows), None


def _id(value: Any) -> int | None:
    return value if type(value) is int else None
