"""Pool of models: loaded on first use, one answer at a time each; the least recently used are freed when memory runs out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from harness.errors import ArtifactError, DeviceError, HarnessError, ModelError

LOOK_AGAIN_S = 0.2
"""While waiting for a model: seconds between checks that the request is still wanted."""


class Cancelled(Exception):
    """The request for the answer was cancelled."""


@dataclass
class _Entry:
    need: int
    """Bytes."""
    model: Any = None
    busy: bool = True
    used: int = field(default=0)
    """Rises with every use."""


class Pool:
    """Models by name within a memory limit.

    Args:
        limit: bytes that loaded models may take together, by the sizes that `size` returns.
        size: name -> bytes that a model takes once loaded.
        load: name -> the loaded model, which has `close`, and `kill` if it may hang.
    """

    def __init__(self, limit: int, size: Callable[[str], int], load: Callable[[str], Any]):
        self.limit, self._size, self._load = limit, size, load
        self._entries: dict[str, _Entry] = {}
        self._changed = threading.Condition()
        self._clock = 0

    @property
    def loaded(self) -> list[str]:
        """Names of the models in memory, the least recently used first."""
        with self._changed:
            return sorted((n for n, e in self._entries.items() if e.model), key=lambda n: self._entries[n].used)

    @contextmanager
    def borrow(self, name: str, is_cancelled: Callable[[], bool] = lambda: False) -> Iterator[Any]:
        """The model of that name for one answer; waits while it answers another request. A model that fails is dropped and loaded again next time.

        Raises:
            Cancelled: `is_cancelled` while waiting; DeviceError: it does not fit into the limit at all; HarnessError: it cannot be loaded.
        """
        entry = self._take(name, is_cancelled)
        try:
            yield entry.model
        except (ModelError, ArtifactError):
            self._drop(name)
            raise
        finally:
            with self._changed:
                entry.busy = False
                self._changed.notify_all()

    def close(self) -> None:
        """Frees all models."""
        with self._changed:
            entries, self._entries = list(self._entries.values()), {}
        for entry in entries:
            if entry.model is not None:
                _end(entry.model)

    def _take(self, name: str, is_cancelled: Callable[[], bool]) -> _Entry:
        need = self._size(name)
        if need > self.limit:
            raise DeviceError(
                f"{name} needs about {need / 2**30:.1f} GiB, and {self.limit / 2**30:.1f} GiB may be used",
                "raise --memory, or ask a smaller variant",
            )
        with self._changed:
            while True:
                if is_cancelled():
                    raise Cancelled
                entry = self._entries.get(name)
                if entry is not None and not entry.busy:
                    self._use(entry)
                    return entry
                if entry is None and (unloaded := self._make_room(need)) is not None:
                    entry = self._entries[name] = _Entry(need)
                    self._use(entry)
                    break
                self._changed.wait(LOOK_AGAIN_S)
        for model in unloaded:
            _end(model)
        try:
            entry.model = self._load(name)
        except BaseException:
            self._drop(name)
            raise
        return entry

    def _use(self, entry: _Entry) -> None:
        self._clock += 1
        entry.busy, entry.used = True, self._clock

    def _make_room(self, need: int) -> list[Any] | None:
        """Removes idle models, least recently used first, until `need` bytes are free; None if the busy ones leave too little."""
        if sum(e.need for e in self._entries.values() if e.busy) + need > self.limit:
            return None
        taken = []
        for name in sorted((n for n, e in self._entries.items() if not e.busy), key=lambda n: self._entries[n].used):
            if sum(e.need for e in self._entries.values()) + need <= self.limit:
                break
            taken.append(self._entries.pop(name).model)
        return taken

    def _drop(self, name: str) -> None:
        with self._changed:
            entry = self._entries.pop(name, None)
            self._changed.notify_all()
        if entry is not None and entry.model is not None:
            _end(entry.model)


def _end(model: Any) -> None:
    """Frees a model, whatever state it is in."""
    with suppress(HarnessError, OSError, RuntimeError):
        model.close()


def died(name: str, why: str) -> ModelError:
    """The error of a model whose process is gone."""
    return ModelError(f"{name} stopped answering ({why})", "ask again, which loads it again")
