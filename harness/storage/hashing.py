"""Canonical JSON and hashes: equal values give equal text, equal files equal hashes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness.records.base import Record
from harness.storage.run_folder import missing


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Canonical JSON: sorted keys, no NaN, Unicode unescaped. Equal values give equal text."""
    if isinstance(value, Record):
        value = value.model_dump(mode="json", by_alias=True)
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent)


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
        raise missing(path) from None


def sha256_tree(folder: Path, keep: Callable[[Path], bool] = lambda _: True) -> str:
    """Hex sha256 over the sorted (relative name, sha256) of the files below `folder` that `keep` accepts."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and keep(p))
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter's lock
        hashes = list(pool.map(sha256_large, files))
    return sha256_json([[p.relative_to(folder).as_posix(), sha256] for p, sha256 in zip(files, hashes, strict=True)])


# -------------------------------------------------------------------------------------------------------- large files

LARGE_BYTES = 32 * 1024 * 1024
"""Hashes of files from this size on (a tenth of a second and more) are cached."""
SETTLED_SECONDS = 2.0
"""A file modified more recently than this may change again within one timestamp tick, so its hash is not cached."""


def sha256_large(path: Path) -> str:
    """Hex sha256 of a file that may be large: hashed once, then taken from the user's cache while size, time and inode are the same.

    Known limit: a change of contents that keeps size, time and inode is not detected.

    Raises:
        ArtifactError: the file is missing.
    """
    try:
        before = path.stat()
    except FileNotFoundError:
        return sha256_file(path)  # says so
    if before.st_size < LARGE_BYTES:
        return sha256_file(path)
    stamp = f"{before.st_size} {before.st_mtime_ns} {before.st_ino}"
    note = cache_folder("hashes") / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    try:
        known, _, digest = note.read_text(encoding="ascii").strip().rpartition(" ")
        if known == stamp and re.fullmatch(r"[0-9a-f]{64}", digest):
            return digest
    except (OSError, ValueError):
        pass
    began = time.time()
    digest = sha256_file(path)
    after = path.stat()
    unchanged = (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    if unchanged and began - after.st_mtime > SETTLED_SECONDS:
        remember(note, f"{stamp} {digest}\n")
    return digest


def cache_folder(kind: str) -> Path:
    """Where this user's notes of one kind are kept: below XDG_CACHE_HOME, or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "qa-harness" / kind


def remember(note: Path, text: str) -> None:
    """Writes a cache file; errors are ignored, because a missing cache only costs time."""
    temporary = note.with_name(f"{note.name}.{os.getpid()}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="ascii")
        temporary.replace(note)
    except OSError:
        return
