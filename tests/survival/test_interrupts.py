"""Ctrl-C or a kill between any two instructions of a write: the file is the old or the new one, and the report says which."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import typer

from harness import storage
from harness.cli.terminal import INTERRUPTED, errors
from harness.storage import RunFolder

pytestmark = pytest.mark.slow

STORAGE = ("storage/atomic.py", "storage/records_io.py", "storage/run_folder.py")
OLD, NEW = [{"row": 1}], [{"row": 2}, {"row": 3}]
Work = Callable[[RunFolder], None]


def write(run: RunFolder) -> None:
    storage.write_jsonl(run.heldout_jsonl, NEW)


def replace(run: RunFolder) -> None:
    """A folder in the place of another."""
    with storage.atomic_path(run.adapter) as temporary:
        temporary.mkdir()
        (temporary / "weights").write_text("new")


def hold(run: RunFolder) -> None:
    with run.lock():
        pass


class Before:
    """Does something before the n-th bytecode instruction of a block in these sources, as a signal handler may."""

    def __init__(self, n: int, do: Callable[[], None], *sources: str):
        self.left, self.do, self.sources = n, do, sources

    def __enter__(self) -> None:
        self.outer = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.outer)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes = frame.f_code.co_filename.endswith(self.sources)
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                self.do()
        return self._trace


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder("r", tmp_path)
    storage.write_jsonl(run.heldout_jsonl, OLD)
    run.adapter.mkdir()
    (run.adapter / "weights").write_text("old")
    return run


def whole(run: RunFolder) -> bool:
    rows = [json.loads(line) for line in run.heldout_jsonl.read_text().splitlines()]
    return rows in (OLD, NEW) and (run.adapter / "weights").read_text() in ("old", "new")


def abandoned(run: RunFolder) -> list[Path]:
    return list(run.path.rglob("*.tmp"))


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("work", [write, replace, hold])
def test_an_interrupt_at_any_instruction_is_reported_as_one(
    work: Work, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    n, finished = 0, False
    while not finished:
        n += 1
        (run.path / ".left.tmp").mkdir(exist_ok=True)
        point = Before(n, interrupt, *STORAGE, "/shutil.py", "/tempfile.py", "/contextlib.py")
        try:
            with errors(), point:
                work(run)
            finished = point.left > 0
        except typer.Exit as end:
            printed = capsys.readouterr().err
            assert (end.exit_code, "interrupted" in printed) == (INTERRUPTED, True), (n, printed)
        assert whole(run), n
    assert n > 200
    hold(run)
    assert not abandoned(run)


@pytest.mark.parametrize("work", [write, replace])
def test_a_kill_at_any_instruction_loses_nothing(work: Work, run: RunFolder) -> None:
    n, finished = 0, False
    while not finished:
        n += 1
        if (child := os.fork()) == 0:
            try:
                with Before(n, lambda: os._exit(9), *STORAGE):
                    work(run)
            finally:
                os._exit(0)
        finished = os.waitpid(child, 0)[1] == 0
        hold(run)
        assert whole(run) and not abandoned(run), n
    assert n > 50
