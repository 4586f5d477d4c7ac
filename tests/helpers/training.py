"""A short training, and its interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.config import Config
from tests.helpers import small_run

STEPS = 6


def config(model: Path, **settings: Any) -> Config:
    """Six steps of two rows with the plain PEFT stack; `settings` are of the train section."""
    return small_run.config(
        model,
        train={
            "engine": "peft",
            "max_steps": STEPS,
            "eval_every": 3,
            "save_every": 2,
            "warmup_steps": 1,
            "learning_rate": 2e-3,
            **settings,
        },
    )


class Stop(KeyboardInterrupt):
    pass


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C when that step is logged."""
    from harness.training.history import HistoryCallback

    on_log = HistoryCallback.on_log

    def interrupted(self: Any, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
        on_log(self, args, state, control, logs, **rest)
        if state.global_step == step:
            raise Stop

    monkeypatch.setattr(HistoryCallback, "on_log", interrupted)
