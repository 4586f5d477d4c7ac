"""Training curves: every log becomes a point, and a loss that is not finite stops the training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import storage
from harness.errors import TrainingError
from harness.records import HistoryPoint
from harness.training.history import MOST_LEFT_OUT, HistoryCallback


def callback(path: Path, wandb: Any = None, **options: Any) -> HistoryCallback:
    wandb = wandb or SimpleNamespace(log=lambda *_, **__: None)
    return HistoryCallback(path, wandb, **{"tokens_per_epoch": 1000, "steps": 10, **options})


def log(history: HistoryCallback, step: int, *, fp16: bool = False, **logs: float) -> None:
    arguments: Any = SimpleNamespace(fp16=fp16)
    state: Any = SimpleNamespace(global_step=step, epoch=step / 4)
    control: Any = None
    history.on_log(arguments, state, control, logs=logs)


# ------------------------------------------------------------------------------------------------------------- points


def test_every_log_is_a_point_in_the_file_and_in_wandb(tmp_path: Path) -> None:
    rows: list[tuple[dict[str, Any], int]] = []
    history = callback(tmp_path / "h.jsonl", SimpleNamespace(log=lambda values, step: rows.append((values, step))))
    log(history, 1, loss=2.0, grad_norm=1.0, learning_rate=0.1)
    log(history, 2, loss=1.0, grad_norm=0.5, learning_rate=0.05)
    log(history, 2, eval_loss=3.0, eval_runtime=1.0)
    log(history, 2, train_runtime=9.0)
    points = storage.read_records(tmp_path / "h.jsonl", HistoryPoint)
    assert [(p.step, p.epoch, p.loss, p.dev_loss, p.tokens) for p in points] == [
        (1, 0.25, 2.0, None, 250),
        (2, 0.5, 1.0, None, 500),
        (2, 0.5, None, 3.0, 500),
    ]
    assert points[1].tokens_per_second and points[1].tokens_per_second > 0 and points[2].tokens_per_second is None
    assert [step for _, step in rows] == [1, 2, 2]
    assert rows[0][0]["train/loss"] == 2.0 and "train/step" not in rows[0][0] and rows[2][0]["train/dev_loss"] == 3.0
    assert (history.last("loss"), history.last("dev_loss"), history.last("grad_norm")) == (1.0, 3.0, 0.5)
    assert (
        history.last("loss", over=2),
        history.last("loss", over=9),
        callback(tmp_path / "i.jsonl").last("loss"),
    ) == (1.5, 1.5, None)


def test_the_file_is_whole_after_every_log(tmp_path: Path) -> None:
    history = callback(tmp_path / "h.jsonl")
    for step in (1, 2):
        log(history, step, loss=1.0)
        assert len(storage.read_records(tmp_path / "h.jsonl", HistoryPoint)) == step


def test_a_resumed_history_drops_what_comes_again(tmp_path: Path) -> None:
    first = callback(tmp_path / "h.jsonl")
    for step in (1, 2, 3):
        log(first, step, loss=4.0 - step)
    second = callback(tmp_path / "h.jsonl", resume_step=2)
    log(second, 3, loss=0.5)
    points = storage.read_records(tmp_path / "h.jsonl", HistoryPoint)
    assert [(p.step, p.loss) for p in points] == [(1, 3.0), (2, 2.0), (3, 0.5)]
    assert points[2].seconds >= points[1].seconds
    third = callback(tmp_path / "h.jsonl")
    assert (third.points, (tmp_path / "h.jsonl").read_text()) == ([], "")


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        ({"loss": float("nan")}, "loss is nan at step 7"),
        ({"loss": float("inf")}, "loss is inf at step 7"),
        ({"loss": 1.0, "grad_norm": float("nan")}, "gradient norm is nan at step 7"),
        ({"eval_loss": float("nan")}, "dev loss is nan at step 7"),
    ],
)
def test_a_value_that_is_not_finite_stops_and_names_the_step(tmp_path: Path, logs: dict[str, Any], line: str) -> None:
    history = callback(tmp_path / "h.jsonl")
    log(history, 6, loss=1.0)
    with pytest.raises(TrainingError, match=rf"{line}; lower train.learning_rate; the last good checkpoint is kept"):
        log(history, 7, **logs)
    assert [p.step for p in storage.read_records(tmp_path / "h.jsonl", HistoryPoint)] == [6]


def test_a_step_that_fp16_skips_does_not_stop_the_training(tmp_path: Path) -> None:
    history = callback(tmp_path / "h.jsonl")
    log(history, 1, fp16=True, loss=2.0, grad_norm=float("inf"))
    log(history, 2, fp16=True, loss=1.5, grad_norm=0.5)
    assert [(p.loss, p.grad_norm) for p in storage.read_records(tmp_path / "h.jsonl", HistoryPoint)] == [
        (2.0, None),
        (1.5, 0.5),
    ]
    with pytest.raises(TrainingError, match="loss is nan at step 3"):
        log(history, 3, fp16=True, loss=float("nan"), grad_norm=float("nan"))


def test_fp16_that_skips_every_step_stops_the_training(tmp_path: Path) -> None:
    """Once the loss is no longer scaled up, an infinite gradient is real, and every later step would be skipped."""
    history = callback(tmp_path / "h.jsonl")
    for step in range(1, 2 * MOST_LEFT_OUT):
        log(history, step, fp16=True, loss=2.0, grad_norm=1.0 if step == MOST_LEFT_OUT else float("inf"))
    with pytest.raises(TrainingError, match=f"gradient norm is nan at step {2 * MOST_LEFT_OUT}"):
        log(history, 2 * MOST_LEFT_OUT, fp16=True, loss=2.0, grad_norm=float("nan"))
