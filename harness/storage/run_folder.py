"""The run folder: its paths, its name, and its lock."""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from harness.errors import BusyError, ConfigError
from harness.storage.atomic import clear_scratch, storage_errors

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str, what: str = "run") -> str:
    """Returns `name` if it may be used as a file or folder name, else raises ConfigError."""
    if not NAME.fullmatch(name) or ".." in name:
        raise ConfigError(
            f"{what} name {name!r} is not usable",
            "use letters, digits, '.', '_' and '-', and begin with a letter or digit",
        )
    return name


class RunFolder:
    """The paths of one run: `runs/<name>` and `reports/<name>` below the working directory.

    Args:
        name: the run's name; checked, so that it cannot leave the folder.
        root: what `runs` and `reports` stand in; the working directory by default.
    """

    def __init__(self, name: str, root: Path | str = "."):
        self.name = check_name(name)
        self.root = Path(root)
        self.path = self.root / "runs" / self.name
        self.reports = self.root / "reports" / self.name

        self.run_json = self.path / "run.json"
        self.split = self.path / "split"
        self.split_json, self.train_jsonl, self.dev_jsonl, self.heldout_jsonl, self.trained_on_jsonl = (
            self.split / f for f in ("split.json", "train.jsonl", "dev.jsonl", "heldout.jsonl", "trained_on.jsonl")
        )
        self.adapter = self.path / "adapter"
        self.checkpoints = self.path / "checkpoints"
        self.history_jsonl, self.train_json = self.path / "history.jsonl", self.path / "train.json"
        self.merged_16bit, self.merged_4bit, self.gguf = (
            self.path / f for f in ("merged_16bit", "merged_4bit", "gguf")
        )
        self.export_json = self.path / "export.json"
        self.predictions, self.scores = self.path / "predictions", self.path / "scores"
        self.predict_json, self.score_json = self.predictions / "manifest.json", self.scores / "manifest.json"
        self.comparison_json = self.reports / "comparison.json"
        self.report_html, self.report_md = self.reports / "report.html", self.reports / "report.md"
        self.gate_json, self.gate_md, self.junit_xml = (self.reports / f for f in ("gate.json", "gate.md", "junit.xml"))

    def artifact(self, name: str) -> Path:
        """Where an exported format stands: a model folder, or a GGUF file."""
        check_name(name, "format")
        return self.gguf / f"model-{name.removeprefix('gguf_')}.gguf" if name.startswith("gguf_") else self.path / name

    def prediction(self, variant: str) -> tuple[Path, Path]:
        """The (lines, manifest) paths of one variant's predictions."""
        return self.predictions / f"{check_name(variant, 'variant')}.jsonl", self.predictions / f"{variant}.json"

    def score(self, variant: str) -> tuple[Path, Path]:
        """The (lines, manifest) paths of one variant's scores."""
        return self.scores / f"{check_name(variant, 'variant')}.jsonl", self.scores / f"{variant}.json"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run folder for this process; raises BusyError, with the holder's pid, if another has it.

        The lock is the kernel's, on a file that stays: that of a process which died, on whatever machine, is free again at once, and what the
        file says of the holder is only told, never believed.
        """
        file = self.path / ".lock"
        with storage_errors(file):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = file.open("a+b", buffering=0)
        with lock:
            with storage_errors(file):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise BusyError(
                        f"run folder {self.path} is in use by {_holder(lock)}",
                        "wait for it to end, or choose another --run",
                    ) from None
                lock.truncate(0)
                # On a full disk the holder is not named; that is no reason to refuse what may need no space.
                with suppress(OSError):
                    lock.write(f"{os.getpid()} {socket.gethostname()}".encode())
            # What a killed process was writing: nobody else writes here while the lock is held.
            for folder in [
                self.path,
                self.reports,
                *(p for p in self.path.iterdir() if p.is_dir() and not p.is_symlink()),
            ]:
                for abandoned in list(folder.glob(".*.tmp")):
                    clear_scratch(abandoned)
            try:
                yield
            finally:
                lock.truncate(0)
                # Closing would do, but for a child that has the file from a fork.
                fcntl.flock(lock, fcntl.LOCK_UN)


def _holder(lock: FileIO) -> str:
    lock.seek(0)
    pid, _, host = lock.read(200).decode("utf-8", "replace").partition(" ")
    if not pid.isdigit():
        return "another process"
    return f"process {pid}" if host == socket.gethostname() else f"process {pid} on {host or 'another machine'}"
