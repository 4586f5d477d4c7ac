"""Several processes: one at a time holds a run folder, and concurrent runs do not touch each other's files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.config import Config, load
from harness.errors import BusyError
from harness.stages import score
from harness.storage import RunFolder
from tests.helpers import chain, scored_run
from tests.helpers.logged import messages

PROJECT = Path(__file__).parents[2]
QUICK = ["--set", "score.resamples=100"]
SLOW = ["--set", "score.resamples=300000"]
HOLD = """
import sys, time
from harness.storage import RunFolder
with RunFolder("r", sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "harness", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@contextmanager
def held(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds run `r`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE, text=True, cwd=PROJECT)
    try:
        assert process.stdout and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def answered(folder: Path, name: str) -> RunFolder:
    return scored_run.make(folder, {"base": lambda _: "nothing", "adapter": lambda q: q.answer}, name=name)


def test_the_second_process_refuses_with_the_pid_of_the_first(tmp_path: Path) -> None:
    run = answered(tmp_path, "r")
    with held(tmp_path) as holder:
        second = start(tmp_path, "score", "--run", "r", *QUICK)
        _, errors = second.communicate()
    assert second.returncode == 2
    assert (
        errors
        == f"error: run folder runs/r is in use by process {holder.pid}; wait for it to end, or choose another --run\n"
    )
    assert not run.run_json.exists() and not run.scores.exists(), "it wrote something all the same"


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    run = RunFolder("r", tmp_path)
    with held(tmp_path) as holder:
        os.kill(holder.pid, signal.SIGSTOP)
        with pytest.raises(BusyError, match=f"in use by process {holder.pid}"), run.lock():
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        assert (run.path / ".lock").read_text().startswith(f"{holder.pid} "), "a killed process takes nothing back"
        with run.lock():
            pass


@pytest.mark.parametrize(
    "left", [f"{os.getppid()} ", "1 elsewhere", "999999999 elsewhere", "", "no pid at all", "\x00" * 500, "4711"]
)
def test_what_a_lock_file_says_is_not_believed(left: str, tmp_path: Path) -> None:
    """A lock file of a dead process whose pid was reused, of another host or container, or nonsense: the kernel has no lock on it."""
    run = RunFolder("r", tmp_path)
    run.path.mkdir(parents=True)
    (run.path / ".lock").write_text(left)
    with run.lock():
        pass


def test_a_holder_on_another_machine_is_reported_as_such(tmp_path: Path) -> None:
    run = RunFolder("r", tmp_path)
    with held(tmp_path):
        for left, described in (
            ("12 elsewhere", "process 12 on elsewhere"),
            ("", "another process"),
            ("x", "another process"),
        ):
            (run.path / ".lock").write_text(left)
            with pytest.raises(BusyError, match=rf"runs/r is in use by {described}; wait for it to end"), run.lock():
                pass


def test_a_lock_is_not_left_to_a_child(tmp_path: Path) -> None:
    """A process that was forked while a stage ran, and outlives it, does not hold the folder."""
    run = RunFolder("r", tmp_path)
    with run.lock():
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with run.lock():
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_two_at_once_on_one_run_end_as_one_alone(tmp_path: Path) -> None:
    """The second process is refused, and the files of the first are complete."""
    run = answered(tmp_path, "r")
    first = start(tmp_path, "score", "--run", "r", *SLOW)
    while first.poll() is None and not (run.path / ".lock").exists():
        time.sleep(0.002)
    others = [start(tmp_path, "score", "--run", "r", *SLOW) for _ in range(2)]
    codes = sorted(process.wait() for process in (first, *others))
    errors = [process.communicate()[1] for process in (first, *others)]
    assert codes[0] == 0 and set(codes) <= {0, 2}, errors
    assert all("is in use by process" in text for text in errors if text), errors
    with messages() as logged:
        score.run(run, load("tiny", SLOW[1:]))
    assert [line.partition(":")[2] for line in logged] == [" scores are unchanged"] * 2


def test_runs_side_by_side_do_not_touch_each_other(tmp_path: Path) -> None:
    for name in ("a", "b"):
        answered(tmp_path / "together", name)
        answered(tmp_path / "alone", name)
    together = [start(tmp_path / "together", "score", "--run", name, *QUICK) for name in ("a", "b")]
    assert [process.wait() for process in together] == [0, 0]
    for name in ("a", "b"):
        left, right = (RunFolder(name, tmp_path / how) for how in ("together", "alone"))
        score.run(right, load("tiny", QUICK[1:]))
        assert {p.name: p.read_bytes() for p in left.scores.iterdir()} == {
            p.name: p.read_bytes() for p in right.scores.iterdir()
        }
    for process in together:
        process.communicate()


def test_a_stage_leaves_the_lock_free_when_it_fails(whole: tuple[RunFolder, Config], tmp_path: Path) -> None:
    run = chain.copy(whole[0], tmp_path)
    run.predict_json.unlink()
    process = start(tmp_path, "score", "--run", "r")
    assert process.wait() == 2
    process.communicate()
    with run.lock():
        pass
