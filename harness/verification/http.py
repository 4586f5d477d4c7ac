"""JSON over HTTP to an untrusted server: bounded in size and time, never redirected, errors in one line."""

from __future__ import annotations

import os
import time
from typing import Any

import httpx

from harness.backends.endpoint import FAILURES, KEY, MAX_ANSWER_BYTES, TIMEOUT_S, refusal
from harness.errors import ConfigError, ModelError
from harness.storage import strict_json

__all__ = ["FAILURES", "Http", "RefusedError"]


class RefusedError(Exception):
    """A request that the server refuses, with its status and message."""

    def __init__(self, status: int, message: str):
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class Http:
    """Requests below one address.

    Raises:
        ConfigError: the key in the environment cannot be sent.
    """

    def __init__(self, root: str):
        key = os.environ.get(KEY, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"{KEY} holds characters that no header can carry", "set it to the server's key")
        self.root = root.rstrip("/")
        self.client = httpx.Client(timeout=TIMEOUT_S, headers={"Authorization": f"Bearer {key}"} if key else {})

    def json(self, method: str, route: str, body: Any = None) -> Any:
        """The server's answer.

        Raises:
            RefusedError: a status of 400 or more; ModelError: it refuses the key; one of FAILURES: no connection, no JSON, no end.
        """
        began, data = time.monotonic(), b""
        with self.client.stream(method, self.root + route, json=body) as response:
            for part in response.iter_bytes():
                data += part
                if len(data) > MAX_ANSWER_BYTES or time.monotonic() - began > TIMEOUT_S:
                    raise ValueError("the answer does not end")
        if response.status_code in (401, 403):
            hint = f"set the environment variable {KEY} to the server's key"
            raise ModelError(f"refuses the key ({response.status_code})", hint, file=self.root)
        if response.is_redirect or response.status_code >= 400:
            raise RefusedError(response.status_code, refusal(data.decode("utf-8", "replace")))
        return strict_json.loads(data.decode("utf-8"))

    def get(self, route: str) -> Any:
        """The answer to a GET; None if the server has nothing there."""
        try:
            return self.json("GET", route)
        except RefusedError:
            return None

    def unreachable(self, error: Exception) -> ModelError:
        """The error of a server that does not answer at all."""
        what = f"answers {error.status}" if isinstance(error, RefusedError) else type(error).__name__
        return ModelError(f"cannot be reached ({what})", f"check the address, and {KEY}", file=self.root)

    def close(self) -> None:
        """Closes the connections."""
        self.client.close()
