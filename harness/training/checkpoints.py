"""Checkpoints that are known to be complete: each is sealed with the hashes of its files once all of them are there.

A checkpoint without a seal was interrupted while it was written; one whose files have other hashes was damaged since. Training resumes from
neither.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import storage
from harness.errors import ArtifactError

log = logging.getLogger(__name__)

SEAL = "sha256.json"
UNREAD = "training_args.bin"
"""Written by the trainer and never read."""
RANDOM_STATES = "rng_state_*.pth"
"""Each of several processes writes its own, possibly after the first has sealed the rest."""


def seal(checkpoint: Path) -> None:
    """Writes the hashes of a checkpoint's files beside them."""
    storage.write_json(checkpoint / SEAL, {name: storage.sha256_file(checkpoint / name) for name in _names(checkpoint)})


def newest_readable(folder: Path) -> Path | None:
    """The newest readable checkpoint in a folder; newer ones that are damaged are removed."""
    for newest in sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True):
        if is_readable(newest):
            remove_truncated_states(newest)
            log.info(f"resuming from {newest.name}")
            return newest
        log.info(f"skipping {newest.name}, which is damaged")
        shutil.rmtree(newest)
    return None


def is_readable(checkpoint: Path) -> bool:
    """Whether a checkpoint is unchanged since it was sealed, and its torch files hold only tensors and plain values: no code in them is run."""
    try:
        hashes = storage.read_json(checkpoint / SEAL)
        if not hashes or {name: storage.sha256_file(checkpoint / name) for name in _names(checkpoint)} != hashes:
            return False
    except (ArtifactError, OSError):
        return False
    return all(_is_loadable(checkpoint / name) for name in hashes if name.endswith((".pt", ".pth", ".bin")))


def remove_truncated_states(checkpoint: Path) -> None:
    """Removes random states that a kill left half written: a process without one resumes from the seed."""
    for file in checkpoint.glob(RANDOM_STATES):
        if not _is_loadable(file):
            file.unlink()


def _is_loadable(file: Path) -> bool:
    import torch
    from transformers.trainer_pt_utils import safe_globals

    try:
        with safe_globals():
            torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # an unpickler raises any kind of error on bytes that are not a pickle
        return False
    return True


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """While a trainer writes checkpoints to `folder`: a disk error becomes a StorageError and leaves no partial checkpoint."""
    try:
        with storage.storage_errors(folder):
            yield
    except BaseException:
        for checkpoint in folder.glob("checkpoint-*"):
            if not (checkpoint / SEAL).exists():
                shutil.rmtree(checkpoint, ignore_errors=True)
        raise


def _names(checkpoint: Path) -> list[str]:
    files = [
        p for p in checkpoint.rglob("*") if p.is_file() and p.name not in (SEAL, UNREAD) and not p.match(RANDOM_STATES)
    ]
    return sorted(p.relative_to(checkpoint).as_posix() for p in files)
