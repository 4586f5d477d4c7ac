"""A model hub on the loopback interface, as far as downloading a model needs one; what it answers depends on the owner's name."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "a" * 40
REFUSALS: dict[str, tuple[int, str | None]] = {
    "gated": (401, "GatedRepo"),
    "not-accepted": (403, "GatedRepo"),
    "private": (401, "RepoNotFound"),
    "missing": (404, "RepoNotFound"),
    "no-revision": (404, "RevisionNotFound"),
    "forbidden": (403, None),
    "down": (503, None),
}
"""Owner -> (status, X-Error-Code) of every answer."""


@contextmanager
def fake_hub(folder: Path, *, slow_seconds: float = 10.0) -> Iterator[tuple[str, list[str]]]:
    """Serves `folder` as `good/model`, and as `quantised/model` with a config.json that says so; yields (URL, paths that were asked for)."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            owner = path.removeprefix("/api/models").split("/")[1]
            asked.append(f"{self.command} {path}")
            if owner == "slow":
                time.sleep(slow_seconds)
            # A gated model is listed for everybody; only its files are refused.
            if owner in REFUSALS and not (owner == "not-accepted" and path.startswith("/api/")):
                status, code = REFUSALS[owner]
                return self.send(status, b"{}", {"X-Error-Code": code} if code else {})
            if path.startswith("/api/models/"):
                return self.api(path, owner)
            file = path.rpartition("/")[2]
            data = (folder / file).read_bytes()
            if owner == "quantised" and file == "config.json":
                data = json.dumps(
                    {**json.loads(data), "quantization_config": {"quant_method": "bitsandbytes"}}
                ).encode()
            if owner == "truncated" and file == "model.safetensors" and self.command == "GET":
                return self.send(
                    200, data[: len(data) // 2], {"ETag": f'"{file}"', "X-Repo-Commit": COMMIT}, length=len(data)
                )
            return self.send(200, data, {"ETag": f'"{file}"', "X-Repo-Commit": COMMIT})

        def api(self, path: str, owner: str) -> None:
            if "/tree/" in path:
                files = [
                    {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name} for p in folder.iterdir()
                ]
                files = [f for f in files if (f["path"], owner) != ("config.json", "no-config")]
                return self.send(200, json.dumps(files).encode())
            return self.send(200, json.dumps({"id": "good/model", "sha": COMMIT, "siblings": []}).encode())

        def send(
            self, status: int, data: bytes, headers: dict[str, str] | None = None, *, length: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in {
                "Content-Length": str(len(data) if length is None else length),
                **(headers or {}),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda request, client_address: None  # a client that gave up waiting
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
