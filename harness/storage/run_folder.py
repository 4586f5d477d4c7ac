"""The run folder: its paths, its name, and its lock."""

from __future__ import annotations

import fcntl
import gc
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from harness.errors import ArtifactError, BusyError, ConfigError
from harness.storage.atomic import clear_scratch, storage_errors

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_NAMED = 12
"""Runs in a message."""


def check_name(name: str, what: str = "run") -> str:
    """Returns `name` if it may be used as a file or folder name, else raises ConfigError."""
    if not NAME.fullmatch(name) or ".." in name:
        raise ConfigError(
            f"{what} name {name!r} is not usable",
            "use letters, digits, '.', '_' and '-', and begin with a letter or digit",
        )
    return name


WRITERS = {
    "split.json": "split",
    "train.jsonl": "split",
    "heldout.jsonl": "split",
    "train.json": "train",
    "history.jsonl": "train",
    "adapter": "train",
    "export.json": "export",
    "comparison.json": "compare",
    "gate.json": "gate",
    "baseline.json": "baseline save",
}
"""Name of a file -> the verb that writes it; what is in `predictions` and `scores` has a variant's name."""


def missing(path: Path) -> ArtifactError:
    """The error for a missing file of an earlier stage; names the verb that writes it, with its run."""
    verb = WRITERS.get(path.name) or {"predictions": "predict", "scores": "score"}.get(path.parent.name)
    if verb is None:
        return ArtifactError("is missing", "check the path", file=path)
    parts = path.parts
    of = [parts[i + 1] for i, part in enumerate(parts[:-2]) if part in ("runs", "reports")]
    return ArtifactError("is missing", f"run harness {verb}{f' --run {of[-1]}' if of else ''} first", file=path)


class RunFolder:
    """The paths of one run: `runs/<name>` and `reports/<name>` below the working directory.

    Args:
        name: the run's name; checked, so that it cannot leave the folder.
        root: the parent of `runs` and `reports`; the working directory by default.
    """

    def __init__(self, name: str, root: Path | str = "."):
        self.name = check_name(name)
        self.root = Path(root)
        self.path = self.root / "runs" / self.name
        self.reports = self.root / "reports" / self.name

        self.run_json = self.path / "run.json"
        self.seeds_json = self.path / "seeds.json"
        self.split = self.path / "split"
        self.split_json, self.train_jsonl, self.dev_jsonl, self.heldout_jsonl, self.trained_on_jsonl = (
            self.split / f for f in ("split.json", "train.jsonl", "dev.jsonl", "heldout.jsonl", "trained_on.jsonl")
        )
        self.taught_jsonl = self.split / "taught.jsonl"
        self.prompt_json = self.split / "prompt.json"
        self.adapter = self.path / "adapter"
        self.checkpoints = self.path / "checkpoints"
        self.history_jsonl, self.train_json = self.path / "history.jsonl", self.path / "train.json"
        self.merged_16bit, self.merged_4bit, self.gguf = (
            self.path / f for f in ("merged_16bit", "merged_4bit", "gguf")
        )
        self.export_json = self.path / "export.json"
        self.predictions, self.scores = self.path / "predictions", self.path / "scores"
        self.predict_json, self.score_json = self.predictions / "manifest.json", self.scores / "manifest.json"
        # A variant's name never begins with "_".
        self.no_model = (self.scores / "_no_model.jsonl", self.scores / "_no_model.json")
        self.taught_json = self.scores / "_taught.json"
        self.comparison_json = self.reports / "comparison.json"
        self.marks_jsonl, self.marks_json = self.path / "marks.jsonl", self.reports / "marks.json"
        self.judge_jsonl, self.judge_json = self.path / "judge.jsonl", self.reports / "judge.json"
        self.card_md = self.reports / "card.md"
        self.title_json = self.reports / "title.json"
        self.report_html, self.report_md = self.reports / "report.html", self.reports / "report.md"
        self.gate_json, self.gate_md, self.junit_xml = (self.reports / f for f in ("gate.json", "gate.md", "junit.xml"))

    def artifact(self, name: str) -> Path:
        """The path of an exported format: a model folder, or a GGUF file."""
        check_name(name, "format")
        return self.gguf / f"model-{name.removeprefix('gguf_')}.gguf" if name.startswith("gguf_") else self.path / name

    def prediction(self, variant: str) -> tuple[Path, Path]:
        """The (lines, manifest) paths of one variant's predictions."""
        return self.predictions / f"{check_name(variant, 'variant')}.jsonl", self.predictions / f"{variant}.json"

    def taught_prediction(self, variant: str) -> tuple[Path, Path]:
        """The (lines, manifest) paths of one variant's answers to the second held-out side."""
        name = f"_taught-{check_name(variant, 'variant')}"
        return self.predictions / f"{name}.jsonl", self.predictions / f"{name}.json"

    def score(self, variant: str) -> tuple[Path, Path]:
        """The (lines, manifest) paths of one variant's scores."""
        return self.scores / f"{check_name(variant, 'variant')}.jsonl", self.scores / f"{variant}.json"

    def manifest(self, stage: str) -> Path | None:
        """The file that a stage writes last; None for a verb whose output no other stage reads."""
        return {
            "split": self.split_json,
            "train": self.train_json,
            "export": self.export_json,
            "predict": self.predict_json,
            "score": self.score_json,
            "compare": self.comparison_json,
            "report": self.report_html,
            "gate": self.gate_json,
        }.get(stage)

    def check_exists(self) -> RunFolder:
        """Returns this run; ArtifactError, naming the runs that exist, if nothing was written of it yet."""
        if self.path.is_dir() or self.reports.is_dir():
            return self
        names = sorted(p.name for p in self.path.parent.glob("*") if p.is_dir() and NAME.fullmatch(p.name))
        there = f"there are: {', '.join(names[:MAX_NAMED])}" if names else "there are none yet"
        raise ArtifactError(f"no run {self.name!r}", f"{there}; harness split --run {self.name} starts one")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run folder for this process; BusyError, with the holder's pid, if another has it.

        The lock is the kernel's, on the file `.lock`: it is free again as soon as its holder ended, on any machine. The pid in the file is for
        messages only. A folder that is empty at the end is removed.
        """
        file = self.path / ".lock"
        held = _Lock(file)
        try:
            held.take()
            # Clean up after killed processes: no other process writes here while the lock is held.
            for folder in [
                self.path,
                self.reports,
                *(p for p in self.path.iterdir() if p.is_dir() and not p.is_symlink()),
            ]:
                for abandoned in list(folder.glob(".*.tmp")):
                    clear_scratch(abandoned)
            yield
        finally:
            held.release()


class _Lock:
    """A lock file, taken and released; releasing it twice, or after an interrupt anywhere in `take`, does no harm."""

    def __init__(self, path: Path):
        self.path = path
        self.file: FileIO | None = None
        self.is_held = False

    def take(self) -> None:
        """Locks the file; BusyError if another process has it."""
        retried = False
        while not self.is_held:
            with storage_errors(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = self.path.open("a+b", buffering=0)
                try:
                    fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not retried:
                        # If an earlier release in this process was interrupted, a reference cycle may keep that lock alive until gc.
                        retried = True
                        self.file.close()
                        gc.collect()
                        continue
                    raise BusyError(
                        f"run folder {self.path.parent} is in use by {_holder(self.file)}",
                        "wait for it to end, or choose another --run",
                    ) from None
                # The last holder may have removed the file after this process opened it: such a lock is void.
                if self.path.exists() and os.path.samestat(os.fstat(self.file.fileno()), self.path.stat()):
                    self.is_held = True
                    self.file.truncate(0)
                    # On a full disk the holder is not named; that does not justify refusing work that may need no space.
                    with suppress(OSError):
                        self.file.write(f"{os.getpid()} {socket.gethostname()}".encode())
                else:
                    self.file.close()

    def release(self) -> None:
        """Unlocks and closes the file, and removes it with its folder if nothing else is in it."""
        try:
            if self.is_held and self.file is not None:
                self.file.truncate(0)
                with suppress(OSError):
                    if os.listdir(self.path.parent) == [self.path.name]:
                        self.path.unlink()
                        self.path.parent.rmdir()
        finally:
            if self.file is not None:
                with suppress(OSError, ValueError):
                    # Closing is not enough if a forked child inherited the file.
                    fcntl.flock(self.file, fcntl.LOCK_UN)
                self.file.close()


def _holder(lock: FileIO) -> str:
    lock.seek(0)
    pid, _, host = lock.read(200).decode("utf-8", "replace").partition(" ")
    if not pid.isdigit():
        return "another process"
    return f"process {pid}" if host == socket.gethostname() else f"process {pid} on {host or 'another machine'}"
