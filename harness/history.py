"""Training curves: `history.jsonl` and Weights & Biases, written by the same callback.

An offline W&B run has no reader, so the local file is what the report reads. W&B failing never fails the run.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from harness.errors import TrainingError
from harness.records import HistoryPoint
from harness.store import dumps, iter_records


class WandbLog:
    """A W&B run that never raises: offline by default, online with a key, as WANDB_MODE says if it is set.

    Args:
        folder: where the run's files go.
        name: of the run; project: of the project; run_id: stable, so that a resumed training goes on in the same run.
        config: shown beside the curves; must hold no secret.
        enabled: false logs nothing.
    """

    def __init__(self, folder: Path, *, project: str, name: str, group: str, run_id: str, config: dict[str, Any], enabled: bool = True):
        self.facts: dict[str, Any] = {"mode": "disabled", "run_id": run_id, "url": None, "error": None}
        self._run: Any = None
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        if not enabled or mode == "disabled":
            return
        self.facts["mode"] = mode
        os.environ.setdefault("WANDB_SILENT", "true")

        settings_mode: Any = mode

        def start() -> None:
            import wandb

            folder.mkdir(parents=True, exist_ok=True)
            settings = wandb.Settings(
                console="off", disable_git=True, save_code=False, init_timeout=30, x_disable_meta=True, x_disable_stats=True
            )
            self._run = wandb.init(
                dir=folder,
                project=project,
                name=name,
                group=group,
                id=run_id,
                resume="allow",
                mode=settings_mode,
                config=config,
                settings=settings,
            )
            self.facts["url"] = self._run.url if mode == "online" else None

        self._try(start)

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        """Logs one row."""
        if self._run is not None:
            self._try(lambda: self._run.log(values, step=step))

    def finish(self) -> dict[str, Any]:
        """Ends the run; returns what happened (`mode`, `run_id`, `url`, `error`)."""
        if self._run is not None:
            self._try(lambda: self._run.finish())
        return self.facts

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # whatever W&B does, the training goes on; the message might hold a key
            self._run = None
            self.facts["error"] = type(error).__name__


class HistoryCallback(TrainerCallback):
    """Writes every log of the trainer to the history file and to W&B; stops a training whose loss is no number.

    Args:
        path: `history.jsonl`; points after `resume_step` of an interrupted run are dropped.
        wandb: where the same points go.
        tokens_per_epoch: prompt and answer tokens of one pass over the training rows.
        steps: optimiser steps planned; progress: told a line now and then.
    """

    def __init__(
        self, path: Path, wandb: WandbLog, *, tokens_per_epoch: int, steps: int, progress: Callable[[str], None], resume_step: int = 0
    ):
        self.path, self.wandb, self.tokens_per_epoch, self.steps, self.progress = path, wandb, tokens_per_epoch, steps, progress
        self.points = [p for p in iter_records(path, HistoryPoint) if p.step <= resume_step] if resume_step and path.exists() else []
        path.write_text("".join(dumps(p) + "\n" for p in self.points), encoding="utf-8")
        self._began = time.monotonic() - (self.points[-1].seconds if self.points else 0.0)
        self._last = (resume_step, self.points[-1].seconds if self.points else 0.0)
        self._told = 0.0

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """One HistoryPoint for each log."""
        logs = logs or {}
        loss, heldout = logs.get("loss"), logs.get("eval_loss")
        if loss is None and heldout is None:
            return
        for what, value in (("loss", loss), ("gradient norm", logs.get("grad_norm")), ("held-out loss", heldout)):
            if value is not None and not math.isfinite(value):
                raise TrainingError(
                    f"{what} is {value} at step {state.global_step}", "lower train.learning_rate; the last good checkpoint is kept"
                )
        seconds = time.monotonic() - self._began
        epoch = float(state.epoch or 0.0)
        steps_done, seconds_then = state.global_step - self._last[0], seconds - self._last[1]
        rate = None
        if loss is not None and steps_done > 0 and seconds_then > 0 and state.global_step:
            rate = self.tokens_per_epoch * epoch / state.global_step * steps_done / seconds_then
            self._last = (state.global_step, seconds)
        point = HistoryPoint(
            step=state.global_step,
            epoch=round(epoch, 6),
            seconds=round(seconds, 3),
            loss=loss,
            heldout_loss=heldout,
            learning_rate=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"),
            tokens=round(self.tokens_per_epoch * epoch),
            tokens_per_second=None if rate is None else round(rate, 1),
        )
        self.points.append(point)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(dumps(point) + "\n")
        self.wandb.log({f"train/{k}": v for k, v in point.model_dump(exclude_none=True).items() if k != "step"}, step=point.step)
        if heldout is not None or seconds - self._told > 10:
            self._told = seconds
            shown = f"loss {loss:.3f}" if loss is not None else f"held-out loss {heldout:.3f}"
            left = seconds / max(point.step, 1) * (self.steps - point.step)
            self.progress(f"step {point.step}/{self.steps}  {shown}  {seconds:.0f} s, about {left:.0f} s left")

    def last(self, field: str, over: int = 1) -> float | None:
        """The mean of a field's last `over` measured values; None if there is none."""
        values = [v for p in self.points if (v := getattr(p, field)) is not None][-over:]
        return sum(values) / len(values) if values else None
