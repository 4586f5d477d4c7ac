"""Writes answers to disk as they arrive, so that an interrupted run loses at most the batches in flight."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness import storage
from harness.backends import Execution
from harness.records import Prediction


class Journal:
    """Answers, one line each, after a line with the job's key and its batch sizes.

    Each line begins with a hash of what follows: from the first truncated or damaged line on, the questions are asked again.

    Attributes:
        answers: position -> answer, those of an earlier journal of the same key included.
        batch: (`batch_tokens`, `max_batch`) of that earlier journal: a resumed run uses the same batches. None: no earlier journal.
    """

    def __init__(self, path: Path, key: str):
        self.path, self.key = path, key
        self.answers: dict[int, Prediction] = {}
        self.batch: tuple[int, int] | None = None
        with storage.storage_errors(path):
            self._lines = self._read()

    def begin(self, execution: Execution) -> Journal:
        """Opens it for writing; use it as a context manager."""
        header = {"key": self.key, "batch": [execution.batch_tokens, execution.max_batch]}
        with storage.storage_errors(self.path):
            with storage.atomic_path(self.path) as temporary:
                temporary.write_bytes(_line(header) + b"".join(self._lines))
            self.file = self.path.open("ab")
        return self

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        # Every batch was flushed, and flush errors were reported; closing would flush again.
        with suppress(OSError):
            self.file.close()

    def put(self, answers: list[tuple[int, Prediction]]) -> None:
        """Writes a batch; it is on disk when this returns."""
        with storage.storage_errors(self.path):
            self.file.write(b"".join(_line([i, p.model_dump(mode="json")]) for i, p in answers))
            self.file.flush()
            os.fsync(self.file.fileno())
        self.answers.update(answers)

    def _read(self) -> list[bytes]:
        """The complete lines of an earlier journal of the same key."""
        if not self.path.exists():
            return []
        header, *lines = self.path.read_bytes().splitlines(keepends=True) or [b""]
        whole = []
        try:
            found = _value(header)
            if found["key"] != self.key:
                return []
            tokens, largest = found["batch"]
            self.batch = (int(tokens), int(largest))
            for line in lines:
                i, fields = _value(line)
                self.answers[i] = Prediction.model_validate(fields)
                whole.append(line)
        except (ValueError, KeyError, TypeError):
            pass  # truncated by the interruption: answered again
        return whole


def _line(value: Any) -> bytes:
    text = storage.dumps(value)
    return f"{storage.sha256_bytes(text)[:16]} {text}\n".encode()


def _value(line: bytes) -> Any:
    sha256, _, text = line.partition(b" ")
    if not text.endswith(b"\n") or storage.sha256_bytes(text[:-1])[:16] != sha256.decode("ascii"):
        raise ValueError("truncated or damaged")
    return json.loads(text)
