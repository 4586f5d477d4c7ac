"""Ollama's protocol (`/api/show`, `/api/ps`, `/api/generate`) in front of a real llama.cpp server: the template and the parameters of a Modelfile.

It does what Ollama's documentation says: fills the template's `{{ .Prompt }}`, applies the Modelfile's parameters where a request has no options of
its own, and cuts a prompt that is longer than `num_ctx`. It is not Ollama itself.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

NAMES = {
    "temperature": "temperature",
    "top_k": "top_k",
    "repeat_penalty": "repeat_penalty",
    "num_predict": "n_predict",
    "stop": "stop",
}
MODELFILE = {"temperature": 0, "top_k": 1, "repeat_penalty": 1, "num_ctx": 512}


@contextmanager
def ollama(
    llama_server: str, template: str, parameters: dict[str, Any] | None = None, name: str = "mine"
) -> Iterator[str]:
    """Its address; the model is called `name`."""
    settings = MODELFILE if parameters is None else parameters

    def generate(body: dict[str, Any]) -> dict[str, Any]:
        text = body["prompt"] if body.get("raw") else template.replace("{{ .Prompt }}", body["prompt"])
        options = {"temperature": 0.8, "repeat_penalty": 1.1, **settings, **body.get("options", {})}
        ids = post("/tokenize", {"content": text, "add_special": True})["tokens"][-options.get("num_ctx", 512) :]
        sent = {NAMES[k]: v for k, v in options.items() if k in NAMES}
        found = post("/completion", {"prompt": ids, "n_probs": body.get("top_logprobs", 0), **sent})
        listed = [
            {
                "token": p["token"],
                "logprob": p["logprob"],
                "top_logprobs": [{"token": t["token"], "logprob": t["logprob"]} for t in p["top_logprobs"]],
            }
            for p in found.get("completion_probabilities", [])
        ]
        return {
            "response": found["content"],
            "done_reason": "length" if found["stop_type"] == "limit" else "stop",
            "prompt_eval_count": len(ids),
            "eval_count": found["tokens_predicted"],
            "logprobs": listed,
        }

    def post(route: str, body: dict[str, Any]) -> Any:
        return httpx.post(llama_server + route, json=body, timeout=60).json()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send({"models": [{"model": f"{name}:latest", "context_length": settings.get("num_ctx", 4096)}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if body["model"] != name:
                return self.send({"error": f"model '{body['model']}' not found"}, 404)
            if self.path == "/api/show":
                lines = [
                    f"{key:<30} {json.dumps(v)}"
                    for key, value in settings.items()
                    for v in (value if isinstance(value, list) else [value])
                ]
                return self.send({"template": template, "parameters": "\n".join(lines), "model_info": {}})
            return self.send(generate(body))

        def send(self, value: Any, status: int = 200) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
