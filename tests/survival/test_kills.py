"""Stages killed and interrupted while they run, as processes: the same command resumes, and the outcome is that of an undisturbed run.

`benchmarks/kill_anywhere.py` does the same on the embedded default at random moments.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from benchmarks import kill_anywhere
from benchmarks.kill_anywhere import Bench
from harness import storage
from harness.config import Config
from harness.records import TrainManifest
from harness.storage import RunFolder
from tests.helpers import chain

pytestmark = pytest.mark.slow

Whole = tuple[RunFolder, Config]
LONGEST: dict[str, float] = dict.fromkeys(("train", "export", "predict", "score"), 120.0)
"""Seconds until a stage is ended although what the test waits for has not happened."""


@pytest.fixture
def bench(whole: Whole, tmp_path: Path) -> Bench:
    """A copy of the finished run, for stages that run as processes."""
    run, config = whole
    chain.copy(run, tmp_path)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return Bench(tmp_path, ["--run", run.name, "--config", "c.yaml"], name=run.name, durations=LONGEST)


def undo(run: RunFolder, *outputs: Path) -> None:
    """Restores the run to its state before a stage."""
    for path in outputs:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def answers(variant: str, n: int) -> Callable[[RunFolder], bool]:
    """Whether so many answers of a variant are in its journal."""

    def is_so(run: RunFolder) -> bool:
        file = run.predictions / f"{variant}.partial"
        try:
            return file.read_bytes().count(b"\n") > n
        except FileNotFoundError:
            return False

    return is_so


def test_a_killed_training_resumes_to_the_same_weights(bench: Bench, tmp_path: Path) -> None:
    undo(bench.run, bench.run.adapter, bench.run.train_json, bench.run.history_jsonl)
    chain.copy(bench.run, tmp_path / "undisturbed")
    shutil.copyfile(tmp_path / "c.yaml", tmp_path / "undisturbed" / "c.yaml")
    reference = Bench(tmp_path / "undisturbed", bench.arguments, name=bench.run.name)
    reference.finish("train")
    kill = kill_anywhere.kill_once(
        bench, reference.run, "train", "SIGKILL", when=lambda run: list(run.checkpoints.glob("*/sha256.json"))
    )
    assert not kill.problem
    assert storage.read_record(bench.run.train_json, TrainManifest).resumed_from > 0


def test_a_killed_export_resumes_after_the_formats_that_are_there(bench: Bench, whole: Whole) -> None:
    undo(bench.run, bench.run.export_json, bench.run.merged_16bit, bench.run.gguf)
    problems: list[str] = []
    found = kill_anywhere.end(bench, "export", "SIGKILL", 1.0, lambda run: list(run.gguf.glob(".*.tmp")), problems)
    assert (problems, found) == ([], "half of model-q8_0")
    written = bench.run.merged_16bit.stat().st_ino
    bench.finish("export")
    assert bench.run.merged_16bit.stat().st_ino == written
    assert kill_anywhere.differences(bench.run, whole[0]) == []


def test_a_predict_that_is_ended_again_and_again_asks_no_question_twice(bench: Bench, whole: Whole) -> None:
    """By Ctrl-C, which every process of the terminal gets, while models load; by a kill and by SIGTERM of its own process, while they answer."""
    undo(bench.run, bench.run.predictions)
    problems: list[str] = []
    kill_anywhere.end(bench, "predict", "SIGINT", 1.0, lambda _: True, problems)
    found = kill_anywhere.end(bench, "predict", "SIGKILL-alone", 1.0, answers("base", 2), problems)
    assert "base.partial with" in found, problems
    kept = dict(kill_anywhere.journalled(bench.run))
    kill = kill_anywhere.kill_once(bench, whole[0], "predict", "SIGTERM", when=answers("gguf_q8_0", 2))
    assert (problems, kill.problem) == ([], "")
    assert "gguf_q8_0.partial with" in kill.found
    assert not list(kill_anywhere.asked_again(bench.run, kept))


def test_a_killed_score_scores_the_same(bench: Bench, whole: Whole) -> None:
    undo(bench.run, bench.run.scores)
    kill = kill_anywhere.kill_once(bench, whole[0], "score", "SIGKILL", when=lambda run: run.score("base")[1].exists())
    assert not kill.problem


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_an_interrupted_stage_says_how_to_resume(bench: Bench, whole: Whole, how: str) -> None:
    undo(bench.run, bench.run.scores)
    problems: list[str] = []
    slow = Bench(
        bench.folder, [*bench.arguments, "--set", "score.resamples=1000000"], name=bench.run.name, durations=LONGEST
    )
    kill_anywhere.end(slow, "score", how, 1.0, lambda run: run.scores.exists(), problems)
    assert problems == []
    assert not bench.run.score_json.exists()


def test_make_keeps_what_a_stage_wrote_when_it_is_interrupted(tmp_path: Path) -> None:
    """A training of hours must not be lost to a Ctrl-C while its process ends."""
    for name in ("Makefile", "harness", "data"):
        (tmp_path / name).symlink_to(kill_anywhere.PROJECT / name)
    stage = tmp_path / ".venv" / "bin" / "harness"
    stage.parent.mkdir(parents=True)
    stage.write_text("#!/bin/sh\nmkdir -p runs/tiny/split\necho done > runs/tiny/split/split.json\nsleep 5\n")
    stage.chmod(0o755)
    (tmp_path / ".venv" / "ready").touch()
    manifest = tmp_path / "runs" / "tiny" / "split" / "split.json"
    command = ["make", "-o", ".venv/ready", "-o", "data/constitution_qa.json", "split"]
    make = subprocess.Popen(
        command,
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=kill_anywhere.hear_interrupts,
    )
    while make.poll() is None and not manifest.exists():
        time.sleep(0.01)
    os.killpg(make.pid, signal.SIGINT)
    make.communicate()
    assert make.returncode != 0
    assert manifest.exists()
