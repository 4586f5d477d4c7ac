"""Trackio: a local database in the run's folder (`trackio show` reads it), or the Space or server that TRACKIO_SPACE_ID or TRACKIO_SERVER_URL names."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from harness.training.tracker import Tracker

REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class TrackioLog(Tracker):
    """A Trackio run, named by the run's id."""

    label = "Trackio"
    package = "trackio"

    @classmethod
    def mode(cls) -> str:
        """Online where a Space or a server is named."""
        return "online" if any(os.environ.get(name) for name in REMOTE) else "offline"

    def _start(self) -> None:
        os.environ.setdefault("TRACKIO_DIR", str((self.start.folder / "trackio").resolve()))
        with redirect_stdout(io.StringIO()):
            import trackio

            self.trackio = trackio
            trackio.init(
                project=self.start.project,
                name=self.start.run_id,
                group=self.start.group,
                config={**self.start.config, "job_type": self.start.job_type},
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def _log(self, values: Mapping[str, Any], step: int | None) -> None:
        self.trackio.log(dict(values), step=step)

    def _summarize(self, values: Mapping[str, Any]) -> None:
        self.trackio.log(dict(values))

    def _log_table(self, name: str, columns: list[Any], rows: list[Any]) -> None:
        self.trackio.log({name: self.trackio.Table(columns=columns, data=rows)})

    def _log_file(self, path: Path, name: str) -> None:
        artifact = self.trackio.Artifact(name=f"{self.start.group}-{name.partition('.')[0]}", type="report")
        artifact.add_file(str(path), name=name)
        with redirect_stdout(io.StringIO()):
            self.trackio.log_artifact(artifact)

    def _finish(self) -> None:
        with redirect_stdout(io.StringIO()):
            self.trackio.finish()
