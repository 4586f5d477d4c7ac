"""Atomic writes: a file or folder is either complete or absent.

It is written under a temporary name in its own folder, flushed to disk, and renamed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import HarnessError, StorageError

REPLACED = "replaced"
"""Path, within a scratch folder, of the folder that is being replaced."""


@contextmanager
def storage_errors(path: Path | str) -> Iterator[None]:
    """Turns disk errors while writing `path` into StorageError.

    An error on a file that was being read for it names that file. Libraries with native writers raise their own errors: they are recognised by the
    errno in the text (safetensors) or by their wording (torch).
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
            raise StorageError("cannot write: torch could not write all of it", FULL_HINT, file=path) from error
        raise


FULL = {errno.ENOSPC, errno.EDQUOT}
ONLY_ON_WRITING = FULL | {errno.EFBIG, errno.EROFS}
FULL_HINT = "free some space and run the same command again"


def _storage_error(path: Path, number: int, named: str | bytes | None) -> StorageError:
    hints = {
        errno.EFBIG: "raise the limit on the size of files (ulimit -f) and run the same command again",
        **dict.fromkeys(FULL, FULL_HINT),
    }
    hint, reason = hints.get(number, "check the path and its permissions"), os.strerror(number).lower()
    other = Path(os.fsdecode(named)) if named and number not in ONLY_ON_WRITING else path
    # A written file is below the path, below a scratch folder beside it, or a parent folder of it.
    writing = other == path or path.parent in other.parents or other in path.parents
    return StorageError(f"cannot {'write' if writing else 'read'}: {reason}", hint, file=other)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` (create a file or a folder there); renames it into place on success.

    A folder at `path` is replaced. On any error the temporary is removed and `path` is unchanged; after a kill this happens when the run
    folder's lock is next taken.
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
            clear_scratch(scratch)


def clear_scratch(scratch: Path) -> None:
    """Removes a scratch folder of `atomic_path`; moves the folder that was being replaced back if its place is empty."""
    aside = scratch / REPLACED
    # A run may be untrusted: links are not followed.
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


def need_space(path: Path, size_bytes: int) -> None:
    """Raises StorageError if the disk that holds `path` has less than `size_bytes` free."""
    place = path
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size_bytes:
        raise StorageError(
            f"needs {size_bytes / 1e9:.2f} GB and {free / 1e9:.2f} GB are free",
            "free some space and run the same command again",
            file=path,
        )
