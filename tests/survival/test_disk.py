"""The disk is full, or files may not grow: one line that names the path and the hint, nothing half-written, nothing earlier touched.

On a small tmpfs where mounting is permitted (root with CAP_SYS_ADMIN), and everywhere under a limit on the size of files, which stops a write in
its middle just as well.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from harness import storage
from harness.config import Config
from harness.errors import StorageError
from harness.formats import gguf
from harness.gating import baseline
from harness.stages import compare, export, gate, predict, report, score, split, train
from harness.storage import RunFolder
from harness.training import checkpoints
from tests.helpers import chain

pytestmark = pytest.mark.slow

Whole = tuple[RunFolder, Config]
PROJECT = Path(__file__).parents[2]
DISK = 40_000_000
UNFINISHED = ("partial", "history.jsonl", "checkpoints", ".lock")
"""What an interrupted stage keeps to resume from."""


def saved(run: RunFolder, config: Config) -> None:
    baseline.save(
        run.root / "reports" / "baseline.json", baseline.snapshot(run, config), config, confirm=lambda _: True
    )


def gated(run: RunFolder, config: Config) -> None:
    gate.run(run, config, baseline_file=run.root / "reports" / "baseline.json")


def of(stage: ModuleType) -> Callable[[RunFolder, Config], object]:
    return stage.run


# Each stage with its output, which is removed first.
STAGES: dict[str, tuple[Callable[[RunFolder, Config], object], list[str]]] = {
    "split": (of(split), ["runs/r/split"]),
    "train": (of(train), ["runs/r/adapter", "runs/r/train.json", "runs/r/history.jsonl"]),
    "export": (of(export), ["runs/r/export.json", "runs/r/merged_16bit", "runs/r/gguf"]),
    "predict": (of(predict), ["runs/r/predictions"]),
    "score": (of(score), ["runs/r/scores"]),
    "compare": (of(compare), ["reports/r/comparison.json"]),
    "report": (of(report), ["reports/r/report.html", "reports/r/report.md"]),
    "gate": (gated, []),
    "baseline": (saved, ["reports/baseline.json"]),
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", place], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(autouse=True)
def checked_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The space was free when it was checked, and another process took it."""
    import torch

    torch.set_grad_enabled(True)
    monkeypatch.setattr(storage, "need_space", lambda *_: None)
    monkeypatch.setattr(gguf, "need_space", lambda *_: None)


@contextmanager
def filled(disk: Path, free: int) -> Iterator[None]:
    """The disk with so many bytes free."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(shutil.disk_usage(disk).free - free, 1))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def before(stage: str, whole: RunFolder, root: Path) -> RunFolder:
    """A copy of the finished run without what the stage writes."""
    run = chain.copy(whole, root)
    for name in STAGES[stage][1]:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return run


def files(root: Path) -> dict[str, bytes]:
    return {
        p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != "filler"
    }


def check_refused(error: StorageError, hint: str, run: RunFolder, earlier: dict[str, bytes], own: list[str]) -> None:
    """One line about a path of the run; nothing half-written; nothing that was there before is gone or changed."""
    assert re.search(rf"{re.escape(str(run.root))}\S*: cannot write: .*; .*{hint}", str(error)), error
    assert "\n" not in str(error) and error.exit_code == 2
    now = files(run.root)
    assert not [name for name in now if ".tmp" in name], "half-written"
    assert all((checkpoint / checkpoints.SEAL).exists() for checkpoint in run.checkpoints.glob("checkpoint-*")), (
        "half-written"
    )
    assert earlier.items() <= now.items()
    new = [name for name in now.keys() - earlier.keys() if not any(part in name for part in UNFINISHED)]
    assert all(any(name.startswith(place) for place in own) for name in new) or not own, new
    for name in new:
        if name.endswith(".json"):
            storage.read_json(run.root / name)


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_line_and_the_next_try_succeeds(stage: str, whole: Whole, disk: Path) -> None:
    perform, own = STAGES[stage]
    refusals = 0
    for free in (0, 3_000, 20_000, 150_000, 700_000, 1_500_000):
        run = before(stage, whole[0], disk)
        earlier = files(disk)
        try:
            with filled(disk, free):
                perform(run, whole[1])
        except StorageError as error:
            refusals += 1
            check_refused(error, "free some space and run the same command again", run, earlier, own)
            if free in (0, 20_000):  # resuming is tested in `test_kills`, and is slow
                perform(run, whole[1])
                assert chain.result(run) == chain.result(whole[0])
        shutil.rmtree(disk / "runs")
        shutil.rmtree(disk / "reports")
    assert refusals >= 1


@pytest.mark.parametrize("stage", STAGES)
def test_a_file_that_may_not_grow_is_one_line_and_the_next_try_succeeds(
    stage: str, whole: Whole, tmp_path: Path
) -> None:
    perform, own = STAGES[stage]
    run = before(stage, whole[0], tmp_path / "run")
    earlier = files(run.root)
    with pytest.raises(StorageError) as raised, small_files(300):
        perform(run, whole[1])
    check_refused(raised.value, "raise the limit on the size of files", run, earlier, own)
    perform(run, whole[1])
    assert chain.result(run) == chain.result(whole[0])


def test_the_command_ends_with_2_and_one_line(whole: Whole, disk: Path) -> None:
    """With no room for the note of the failure in run.json either."""
    run = before("score", whole[0], disk)
    (disk / "c.yaml").write_text("{}")
    quick = ["--run", "r", "--config", "c.yaml", "--set", "score.resamples=100"]
    named = ""
    for free in (0, 8_000, 16_000, 24_000):
        with filled(disk, free):
            command = [sys.executable, "-m", "harness", "score", *quick]
            done = subprocess.run(
                command, cwd=disk, env=os.environ | {"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True
            )
        assert done.returncode == 2
        assert re.fullmatch(
            r"error: \S+: cannot write: no space left on device; free some space and run the same command again\n",
            done.stderr,
        )
        assert not list(disk.rglob("*.tmp"))
        named += done.stderr.partition(": cannot")[0]
        assert not run.score_json.exists()
    assert "runs/r/scores/" in named
