"""Run folders: paths, atomic writes, hashes, locks.

A file is either wholly there or not there: it is written under a temporary name in its own folder, flushed to disk, and renamed.
A stage writes its manifest last, so that the manifest's existence means that the stage finished.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import ValidationError

from harness import strict_json
from harness.errors import ArtifactError, BusyError, ConfigError, HarnessError, StorageError
from harness.records import SCHEMA_VERSION, Comparison, Manifest, PredictionManifest, Question, Record, ScoreManifest, SplitManifest

R = TypeVar("R", bound=Record)
WRITE_AGAIN = "delete it and run the stage that writes it again"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
REPLACED = "replaced"
"""In a scratch folder, where the folder that is being replaced stands."""
MAX_JSON_BYTES = 100_000_000
"""Of a manifest, a comparison or a baseline: four times the baseline of a hundred thousand questions in six variants."""
MAX_LINE_BYTES = 16_000_000
"""Of one record in a JSON Lines file: a million token ids and their text."""


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
                        f"run folder {self.path} is in use by {_holder(lock)}", "wait for it to end, or choose another --run"
                    ) from None
                lock.truncate(0)
                # On a full disk the holder is not named; that is no reason to refuse what may need no space.
                with suppress(OSError):
                    lock.write(f"{os.getpid()} {socket.gethostname()}".encode())
            # What a killed process was writing: nobody else writes here while the lock is held.
            for folder in [self.path, self.reports, *(p for p in self.path.iterdir() if p.is_dir() and not p.is_symlink())]:
                for abandoned in list(folder.glob(".*.tmp")):
                    _clear(abandoned)
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


# ------------------------------------------------------------------------------------------------------------ writing


@contextmanager
def storage_errors(path: Path | str) -> Iterator[None]:
    """Turns what goes wrong on the disk while `path` is written into StorageError.

    A file that was being read for it is named itself. Libraries that write with code of their own raise errors of their own: they are known by the
    operating system's number in the text (safetensors), or by their words (torch).
    """
    try:
        yield
    except HarnessError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        raise _storage_error(Path(path), error.errno, error.filename) from error
    except Exception as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            raise _storage_error(Path(path), int(found[1]), None) from error
        if "PytorchStreamWriter" in str(error) or "inline_container" in str(error):
            raise StorageError("cannot write: torch could not write all of it", FULL_MEND, file=path) from error
        raise


FULL = {errno.ENOSPC, errno.EDQUOT}
ONLY_ON_WRITING = FULL | {errno.EFBIG, errno.EROFS}
FULL_MEND = "free some space and run the same command again"


def _storage_error(path: Path, number: int, named: str | bytes | None) -> StorageError:
    mends = {
        errno.EFBIG: "raise the limit on the size of files (ulimit -f) and run the same command again",
        **dict.fromkeys(FULL, FULL_MEND),
    }
    mend, reason = mends.get(number, "check the path and its permissions"), os.strerror(number).lower()
    other = Path(os.fsdecode(named)) if named and number not in ONLY_ON_WRITING else path
    # What is written stands below the path, below a scratch folder beside it, or is a folder on the way to it.
    writing = other == path or path.parent in other.parents or other in path.parents
    return StorageError(f"cannot {'write' if writing else 'read'}: {reason}", mend, file=other)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` (create a file or a folder there); renames it into place on success.

    A folder that stands at `path` is replaced. On any error the temporary is removed and `path` is as it was; after a kill, once the run folder's
    lock is taken again.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        temporary = scratch / path.name
        try:
            yield temporary
            for file in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
                _sync(file)
            if path.is_dir() and temporary.is_dir():
                (scratch / REPLACED).mkdir()
                path.rename(scratch / REPLACED / path.name)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            _clear(scratch)


def _clear(scratch: Path) -> None:
    """Removes a scratch folder of `atomic_path`; the folder that was to be replaced goes back if no other came in its place."""
    aside = scratch / REPLACED
    # A run may come from somebody else: nothing is fetched from behind a link.
    for old in [] if scratch.is_symlink() or aside.is_symlink() else aside.glob("*"):
        if not (scratch.parent / old.name).exists():
            old.rename(scratch.parent / old.name)
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
    """Writes a record or plain value as indented canonical JSON, atomically; a manifest with its checksum."""
    write_text(path, dumps(sealed(value) if isinstance(value, Manifest) else value, indent=2) + "\n")


def sealed(manifest: Manifest) -> dict[str, Any]:
    """A manifest as JSON values, with the checksum of all the others."""
    value = manifest.model_dump(mode="json", by_alias=True)
    return value | {"checksum": _checksum(value)}


def _checksum(value: dict[str, Any]) -> str:
    return sha256_json({key: part for key, part in value.items() if key != "checksum"})


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Writes records or plain values, one canonical JSON line each, atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(dumps(row) + "\n")


# ------------------------------------------------------------------------------------------------------------ reading


def _open(path: Path) -> BinaryIO:
    # A pipe would be waited for, perhaps for ever.
    if path.exists() and not path.is_file():
        raise ArtifactError("is not a file", WRITE_AGAIN, file=path)
    return path.open("rb")


def read_json(path: Path) -> Any:
    """Reads a JSON file of an earlier stage; ArtifactError if it is missing, damaged, or not what its checksum says."""
    try:
        with _open(path) as file:
            data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise ArtifactError(f"has more than {MAX_JSON_BYTES / 1e6:.0f} MB", WRITE_AGAIN, file=path)
        value = strict_json.loads(data.decode("utf-8"))
    except FileNotFoundError:
        raise ArtifactError("is missing", "run the stage that writes it first (make shows the order)", file=path) from None
    except (ValueError, OSError) as error:
        raise ArtifactError(f"cannot be read: {error}", WRITE_AGAIN, file=path) from None
    if isinstance(value, dict) and value.get("checksum") and value["checksum"] != _checksum(value):
        raise ArtifactError("is damaged or was changed: its checksum is another", WRITE_AGAIN, file=path)
    return value


def read_record(path: Path, kind: type[R]) -> R:
    """Reads a manifest; ArtifactError as `read_json`, or if it is of another shape."""
    value = read_json(path)
    try:
        record = kind.model_validate(value)
    except ValidationError as error:
        raise ArtifactError(_first(error), WRITE_AGAIN, file=path) from None
    return record.model_copy(update={"checksum": ""}) if isinstance(record, Manifest) else record


def iter_records(path: Path, kind: type[R]) -> Iterator[R]:
    """Yields the records of a JSON Lines file; ArtifactError names the first bad line."""
    try:
        with _open(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
                if len(line) > MAX_LINE_BYTES:
                    raise ArtifactError(f"has more than {MAX_LINE_BYTES / 1e6:.0f} MB in one line", WRITE_AGAIN, file=path, row=number)
                try:
                    yield kind.model_validate_json(line)
                except ValidationError as error:
                    raise ArtifactError(_first(error), WRITE_AGAIN, file=path, row=number) from None
    except FileNotFoundError:
        raise ArtifactError("is missing", "run the stage that writes it first (make shows the order)", file=path) from None


def read_records(path: Path, kind: type[R]) -> list[R]:
    """`iter_records` as a list."""
    return list(iter_records(path, kind))


def check_written(path: Path, sha256: str, command: str) -> None:
    """Raises ArtifactError unless the file has the hash that its manifest keeps; an empty one was never kept.

    Args:
        command: the verb, with its options, that writes the file again.
    """
    if sha256 and sha256_file(path) != sha256:
        verb = command.partition(" ")[0]
        raise ArtifactError(f"is damaged or was changed: it is not what {verb} wrote", f"run harness {command} again", file=path)


def read_split(run: RunFolder) -> tuple[SplitManifest, list[Question]]:
    """The split and its held-out questions; ArtifactError if either is missing or not what split wrote."""
    split = read_record(run.split_json, SplitManifest)
    check_written(run.heldout_jsonl, split.heldout_sha256, "split")
    return split, read_records(run.heldout_jsonl, Question)


def read_scored(run: RunFolder, variant: str, comparison: Comparison | None = None) -> ScoreManifest:
    """The manifest of a variant's scores.

    Raises:
        ArtifactError: they are not whole, not of the answers beside them, or not those that the comparison tells of.
    """
    lines, path = run.score(variant)
    manifest = read_record(path, ScoreManifest)
    check_written(lines, manifest.lines_sha256, "score")
    answers = run.prediction(variant)[1]
    if answers.exists() and read_record(answers, PredictionManifest).key != manifest.prediction_key:
        raise ArtifactError("was scored from other answers than those beside it", "run harness score and compare again", file=path)
    if comparison:
        told = comparison.variants[variant]
        if (manifest.metrics, manifest.finish, manifest.split_id) != (told.metrics, told.finish, comparison.split_id):
            raise ArtifactError(f"is not of the present scores of {variant}", "run harness compare again", file=run.comparison_json)
    return manifest


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in detail["loc"])
    if where in ("schema_version", "schema"):
        return f"was written by another version of the harness (its {where} is not {SCHEMA_VERSION})"
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
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter's lock
        hashes = list(pool.map(sha256_file, files))
    return sha256_json([[p.relative_to(folder).as_posix(), sha256] for p, sha256 in zip(files, hashes, strict=True)])


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
