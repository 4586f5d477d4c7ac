"""Weights & Biases: offline unless a key is set or WANDB_MODE says otherwise. Imports wandb only when a run starts, and torch never."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.training.tracker import Tracker

MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
"""What W&B takes as WANDB_MODE; the last two are its former names of offline and online."""


class WandbLog(Tracker):
    """A W&B run: offline by default, online with a key, as WANDB_MODE says if it is set."""

    label = "W&B"
    package = "wandb"

    @classmethod
    def mode(cls) -> str:
        """What `wandb_mode` gives."""
        return wandb_mode()

    def _start(self) -> None:
        folder, mode = self.start.folder, self.facts["mode"]
        os.environ.setdefault("WANDB_SILENT", "true")
        # Tables are kept here until they are sent: in the run's folder, not in the user's.
        os.environ.setdefault("WANDB_DATA_DIR", str((folder / "wandb").resolve()))
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            console="off",
            disable_git=True,
            save_code=False,
            init_timeout=30,
            host="",
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self.run: Any = wandb.init(
            dir=folder,
            project=self.start.project,
            name=self.start.name,
            group=self.start.group,
            job_type=self.start.job_type,
            id=self.start.run_id,
            resume="allow",
            mode=mode,
            config=self.start.config,
            settings=settings,
        )
        self.facts["url"] = self.run.url if mode == "online" else None

    def _log(self, values: Mapping[str, Any], step: int | None) -> None:
        self.run.log(dict(values), step=step)

    def _summarize(self, values: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(values))

    def _log_table(self, name: str, columns: list[Any], rows: list[Any]) -> None:
        import wandb

        self.run.log({name: wandb.Table(columns=columns, data=rows)})

    def _log_file(self, path: Path, name: str) -> None:
        import wandb

        artifact = wandb.Artifact(name=f"{self.start.group}-{name.partition('.')[0]}", type="report")
        artifact.add_file(str(path), name=name)
        self.run.log_artifact(artifact)

    def _finish(self) -> None:
        self.run.finish()

    def problem(self) -> str | None:
        """What went wrong, in a line; None if nothing did."""
        if self.facts["error"] and self.facts["mode"] not in MODES:
            return f"W&B: WANDB_MODE is {self.facts['mode']!r}; set it to online, offline or disabled"
        return super().problem()


def wandb_mode(*, enabled: bool = True) -> str:
    """`disabled`, `offline` or `online`; or WANDB_MODE if it is set, even to a mode that W&B does not know."""
    return (
        (os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline"))
        if enabled
        else "disabled"
    )
