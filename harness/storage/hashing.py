"""Canonical JSON and hashes: equal values give equal text, equal files equal hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness.errors import ArtifactError
from harness.records.base import Record


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Canonical JSON: sorted keys, no NaN, Unicode as it is. Equal values give equal text."""
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
        raise ArtifactError(
            "is missing", "run the stage that writes it first (make shows the order)", file=path
        ) from None


def sha256_tree(folder: Path, keep: Callable[[Path], bool] = lambda _: True) -> str:
    """Hex sha256 over the sorted (relative name, sha256) of the files below `folder` that `keep` accepts."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and keep(p))
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter's lock
        hashes = list(pool.map(sha256_file, files))
    return sha256_json([[p.relative_to(folder).as_posix(), sha256] for p, sha256 in zip(files, hashes, strict=True)])


def source_sha256(*modules: str) -> str:
    """Hash of the harness's own source files, named relative to the package: a stage's fingerprint covers its code."""
    package = Path(__file__).parent.parent
    files = [
        file
        for name in modules
        for file in ([package / name] if name.endswith(".py") else sorted((package / name).glob("*.py")))
    ]
    return sha256_json([[file.relative_to(package).as_posix(), sha256_file(file)] for file in files])
