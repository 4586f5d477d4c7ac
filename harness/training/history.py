"""Training curves: `history.jsonl` and Weights & Biases, written by the same callback.

An offline W&B run has no reader, so the local file is what the report reads.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from harness.errors import TrainingError
from harness.records import HistoryPoint
from harness.storage import dumps, storage_errors
from harness.training.tracker import Tracker

log = logging.getLogger(__name__)

MOST_LEFT_OUT = 24
"""Steps in a row that fp16 may skip: the loss scale starts at 2^16 and halves each time, so after 24 of them it is 2^-8 and overflow is no longer its fault."""


class HistoryCallback(TrainerCallback):
    """Writes every log of the trainer to the history file and to the tracker; stops a training whose loss is NaN or infinite.

    Args:
        path: `history.jsonl`; points after `resume_step` of an interrupted run are dropped.
        tracker: where the same points go.
        tokens_per_epoch: prompt and answer tokens of one pass over the training rows.
        steps: optimiser steps planned.
    """

    def __init__(
        self,
        path: Path,
        tracker: Tracker,
        *,
        tokens_per_epoch: int,
        steps: int,
        resume_step: int = 0,
    ):
        self.path, self.tracker, self.tokens_per_epoch, self.steps = (
            path,
            tracker,
            tokens_per_epoch,
            steps,
        )
        self.points = list(_cut(path, resume_step)) if resume_step and path.is_file() else []
        if not self.points:
            path.write_bytes(b"")
        self.describe_last_rows: Callable[[], str] = lambda: ""
        """Names the rows of the last step, after a comma."""
        self._began = time.monotonic() - (self.points[-1].seconds if self.points else 0.0)
        self._last = (resume_step, self.points[-1].seconds if self.points else 0.0)
        self._told = 0.0
        self._left_out = 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """One HistoryPoint for each log."""
        logs = logs or {}
        loss, dev = logs.get("loss"), logs.get("eval_loss")
        if loss is None and dev is None:
            return
        norm = logs.get("grad_norm")
        if norm is not None:
            self._left_out = 0 if math.isfinite(norm) else self._left_out + 1
            if args.fp16 and 0 < self._left_out < MOST_LEFT_OUT:
                norm = None  # the loss scale is too large: the step is skipped, and the scale lowered
        for what, value in (("loss", loss), ("gradient norm", norm), ("dev loss", dev)):
            if value is not None and not math.isfinite(value):
                among = "" if what == "dev loss" else self.describe_last_rows()
                raise TrainingError(
                    f"{what} is {value} at step {state.global_step}{among}",
                    "lower train.learning_rate; the last good checkpoint is kept",
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
            dev_loss=dev,
            learning_rate=logs.get("learning_rate"),
            grad_norm=norm,
            tokens=round(self.tokens_per_epoch * epoch),
            tokens_per_second=None if rate is None else round(rate, 1),
        )
        self.points.append(point)
        with storage_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(dumps(point) + "\n")
        self.tracker.log(
            {f"train/{k}": v for k, v in point.model_dump(exclude_none=True).items() if k != "step"}, step=point.step
        )
        if dev is not None or seconds - self._told > 10:
            self._told = seconds
            shown = f"loss {loss:.3f}" if loss is not None else f"dev loss {dev:.3f}"
            left = seconds / max(point.step, 1) * (self.steps - point.step)
            log.info(f"step {point.step}/{self.steps}  {shown}  {seconds:.0f} s, about {left:.0f} s left")

    def last(self, field: str, over: int = 1) -> float | None:
        """The mean of a field's last `over` measured values; None if there is none."""
        values = [v for p in self.points if (v := getattr(p, field)) is not None][-over:]
        return sum(values) / len(values) if values else None


def _cut(path: Path, last_step: int) -> Iterator[HistoryPoint]:
    """The points up to a step, or up to a line truncated by an interruption; the file is cut there."""
    kept = 0
    with path.open("r+b") as file:
        for line in file:
            try:
                point = HistoryPoint.model_validate_json(line)
            except ValidationError:
                break
            if point.step > last_step or not line.endswith(b"\n"):
                break
            kept += len(line)
            yield point
        file.truncate(kept)
