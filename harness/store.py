"""Run folders: paths, atomic writes, hashes, locks.

A file is either wholly there or not there: it is written under a temporary name in its own folder, flushed to disk, and renamed.
A stage writes its manifest last, so that the manifest's existence means that the stage finished.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import ValidationError

from harness.errors import ArtifactError, BusyError, ConfigError, StorageError
from harness.records import Record

R = TypeVar("R", bound=Record)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str, what: str = "run") -> str:
    """Returns `name` if it may be used as a file or folder name, else raises ConfigError."""
    if not NAME.fullmatch(name) or ".." in name:
        raise ConfigError(f"{what} name {name!r} is not usable", "use letters, digits, '.', '_' and '-', and begin with a letter or digit")
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
        self.split_json, self.train_jsonl, self.heldout_jsonl = (self.split / f for f in ("split.json", "train.jsonl", "heldout.jsonl"))
        self.adapter = self.path / "adapter"
        self.checkpoints = self.path / "checkpoints"
        self.history_jsonl, self.train_json = self.path / "history.jsonl", self.path / "train.json"
        self.merged_16bit, self.merged_4bit, self.gguf = (self.path / f for f in ("merged_16bit", "merged_4bit", "gguf"))
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

        The lock is the kernel's: that of a process which died is free again at once.
        """
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            holder = self.path / ".lock.pid"
            try:
                lock.acquire()
            except Timeout:
                pid = holder.read_text().strip() if holder.exists() else "unknown"
                raise BusyError(
                    f"run folder {self.path} is in use by process {pid}", "wait for it to end, or choose another --run"
                ) from None
            holder.write_text(str(os.getpid()))
            # What a killed process was writing: nobody else writes here while the lock is held.
            for abandoned in [*self.path.glob(".*.tmp"), *self.path.glob("*/.*.tmp"), *self.reports.glob(".*.tmp")]:
                shutil.rmtree(abandoned, ignore_errors=True)
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


# ------------------------------------------------------------------------------------------------------------ writing


@contextmanager
def storage_errors(path: Path | str) -> Iterator[None]:
    """Turns the operating system's complaints about `path` into StorageError."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        mend = (
            "free some space and run the same command again"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "check the path and its permissions"
        )
        if error.errno is None or error.errno in (errno.ENOENT,):
            raise
        raise StorageError(f"cannot write: {reason}", mend, file=error.filename or path) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` (create a file or a folder there); renames it into place on success.

    A folder that stands at `path` is replaced. On any error the temporary is removed and `path` is as it was.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        temporary = scratch / path.name
        try:
            yield temporary
            for file in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
                _sync(file)
            if replaced := path.is_dir() and temporary.is_dir():
                path.rename(scratch / "replaced")
            try:
                os.replace(temporary, path)
            except BaseException:
                if replaced:
                    (scratch / "replaced").rename(path)
                raise
            _sync(path.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Canonical JSON: sorted keys, no NaN, Unicode as it is. Equal values give equal text."""
    if isinstance(value, Record):
        value = value.model_dump(mode="json", by_alias=True)
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent)


def write_json(path: Path, value: Any) -> None:
    """Writes a record or plain value as indented canonical JSON, atomically."""
    write_text(path, dumps(value, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Writes records or plain values, one canonical JSON line each, atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(dumps(row) + "\n")


# ------------------------------------------------------------------------------------------------------------ reading


def read_json(path: Path) -> Any:
    """Reads a JSON file of an earlier stage; ArtifactError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError("is missing", "run the stage that writes it first (make shows the order)", file=path) from None
    except (ValueError, RecursionError, OSError) as error:
        raise ArtifactError(f"cannot be read: {error}", "delete it and run the stage that writes it again", file=path) from None


def read_record(path: Path, kind: type[R]) -> R:
    """Reads a manifest; ArtifactError if it is missing, damaged or of another shape."""
    value = read_json(path)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ArtifactError(_first(error), "delete it and run the stage that writes it again", file=path) from None


def iter_records(path: Path, kind: type[R]) -> Iterator[R]:
    """Yields the records of a JSON Lines file; ArtifactError names the first bad line."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield kind.model_validate_json(line)
                except ValidationError as error:
                    raise ArtifactError(_first(error), "delete it and run the stage that writes it again", file=path, row=number) from None
    except FileNotFoundError:
        raise ArtifactError("is missing", "run the stage that writes it first (make shows the order)", file=path) from None


def read_records(path: Path, kind: type[R]) -> list[R]:
    """`iter_records` as a list."""
    return list(iter_records(path, kind))


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in detail["loc"])
    return f"is damaged ({where + ': ' if where else ''}{detail['msg'].lower()})"


# ------------------------------------------------------------------------------------------------------------- hashes


def sha256_bytes(data: bytes | str) -> str:
    """Hex sha256 of bytes, or of text as UTF-8."""
    return hashlib.sha256(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data).hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a value's canonical JSON."""
    return sha256_bytes(dumps(value))


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise ArtifactError("is missing", "run the stage that writes it first (make shows the order)", file=path) from None


def sha256_tree(folder: Path, keep: Callable[[Path], bool] = lambda _: True) -> str:
    """Hex sha256 over the sorted (relative name, sha256) of the files below `folder` that `keep` accepts."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and keep(p))
    return sha256_json([[p.relative_to(folder).as_posix(), sha256_file(p)] for p in files])


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def source_sha256(*modules: str) -> str:
    """Hash of the harness's own source files, named relative to the package: a stage's fingerprint covers its code."""
    package = Path(__file__).parent
    files = [file for name in modules for file in ([package / name] if name.endswith(".py") else sorted((package / name).glob("*.py")))]
    return sha256_json([[file.relative_to(package).as_posix(), sha256_file(file)] for file in files])


def need_space(path: Path, size_bytes: int) -> None:
    """Raises StorageError if the disk that holds `path` has less than `size_bytes` free."""
    place = path
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size_bytes:
        raise StorageError(
            f"needs {size_bytes / 1e9:.2f} GB and {free / 1e9:.2f} GB are free", "free some space and run the same command again", file=path
        )
