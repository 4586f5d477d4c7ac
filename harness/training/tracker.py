"""Trackers of experiments: one small interface, one class each. A tracker that fails never fails a stage.

`tracking` in the config chooses one; only that one's package is imported, and only when a run starts. A training and the evaluations of its run go to
one group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from harness.config import Config

Table = tuple[list[Any], list[Any]]
"""Names of the columns, and rows."""
CLASSES = {
    "wandb": "harness.training.wandb_log:WandbLog",
    "trackio": "harness.training.trackio_log:TrackioLog",
    "mlflow": "harness.training.mlflow_log:MlflowLog",
    "tensorboard": "harness.training.tensorboard_log:TensorBoardLog",
    "none": "harness.training.tracker:Tracker",
}
"""Value of `tracking` -> its class."""


@dataclass(frozen=True)
class Start:
    """What a tracker receives about a run at its start."""

    folder: Path
    """Of the run; a tracker keeps its files in a separate folder below."""
    project: str
    name: str
    group: str
    """Joins a training and its evaluations."""
    run_id: str
    """Stable, so that a resumed training continues the same run."""
    config: dict[str, Any] = field(default_factory=dict)
    """Shown beside the curves; must hold no secret."""
    job_type: str = "train"


class Tracker:
    """The interface, and the tracker that keeps nothing. No method raises.

    A class for a service overrides `mode`, `_start`, `_log`, `_summarize`, `_log_table`, `_log_file` and `_finish`, which may raise.

    Attributes:
        facts: what happened: `tracker`, `mode`, `run_id`, `url` (online runs), `error` (the type of the first failure).
    """

    label: ClassVar[str] = "Tracking"
    """As people read it."""
    package: ClassVar[str] = ""
    """That it imports."""

    def __init__(self, start: Start):
        self.start = start
        self.facts: dict[str, Any] = {
            "tracker": self.label,
            "mode": self.mode(),
            "run_id": start.run_id,
            "url": None,
            "error": None,
        }
        self.running = False
        if self.facts["mode"] == "disabled":
            return
        self.running = True
        self._try(self._start)

    @classmethod
    def mode(cls) -> str:
        """`disabled`, `offline` (files in the run's folder) or `online`."""
        return "disabled"

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Logs one row of numbers."""
        self._try(lambda: self._log(values, step))

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Sets the run's results: numbers, and texts."""
        self._try(lambda: self._summarize(values))

    def log_tables(self, tables: Mapping[str, Table]) -> None:
        """Logs tables under their names."""
        for name, (columns, rows) in tables.items():
            self._try(lambda name=name, columns=columns, rows=rows: self._log_table(name, columns, rows))

    def log_file(self, path: Path, name: str) -> None:
        """Keeps a copy of a file with the run, where the service keeps files."""
        if path.is_file():
            self._try(lambda: self._log_file(path, name))

    def finish(self) -> dict[str, Any]:
        """Ends the run; returns `facts`."""
        self._try(self._finish)
        self.running = False
        return self.facts

    def problem(self) -> str | None:
        """What went wrong, in a line; None if nothing did."""
        return f"{self.label}: failed ({self.facts['error']})" if self.facts["error"] else None

    def _try(self, action: Callable[[], Any]) -> None:
        if not self.running:
            return
        try:
            action()
        except Exception as error:  # a tracker must not stop a stage; its message might contain a key
            self.running = False
            self.facts["error"] = type(error).__name__

    def _start(self) -> None:
        pass

    def _log(self, values: Mapping[str, Any], step: int | None) -> None:
        pass

    def _summarize(self, values: Mapping[str, Any]) -> None:
        pass

    def _log_table(self, name: str, columns: list[Any], rows: list[Any]) -> None:
        pass

    def _log_file(self, path: Path, name: str) -> None:
        pass

    def _finish(self) -> None:
        pass


def chosen(config: Config) -> type[Tracker]:
    """The class of the tracker that the config chooses; `wandb.enabled: false` chooses none in place of W&B."""
    off = config.tracking == "wandb" and not config.wandb.enabled
    module, _, name = CLASSES["none" if off else config.tracking].partition(":")
    return getattr(import_module(module), name)
