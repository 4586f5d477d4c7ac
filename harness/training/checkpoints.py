"""Checkpoints that are known to be whole: each is sealed with the hashes of its files once all of them are there.

An unsealed checkpoint is one whose writing was interrupted; a sealed one whose files have other hashes was damaged since. Neither is gone on from.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import storage
from harness.errors import ArtifactError

SEAL = "sha256.json"
UNREAD = "training_args.bin"
"""Written by the trainer and never read."""
RANDOM_STATES = "rng_state_*.pth"
"""Each process of several writes its own, perhaps after the first has sealed the rest."""


def seal(checkpoint: Path) -> None:
    """Writes the hashes of a checkpoint's files beside them."""
    storage.write_json(checkpoint / SEAL, {name: storage.sha256_file(checkpoint / name) for name in _names(checkpoint)})


def is_readable(checkpoint: Path) -> bool:
    """Whether a checkpoint is the one that was sealed, and its torch files hold tensors and plain values: no code in them is run."""
    try:
        hashes = storage.read_json(checkpoint / SEAL)
        if not hashes or {name: storage.sha256_file(checkpoint / name) for name in _names(checkpoint)} != hashes:
            return False
    except (ArtifactError, OSError):
        return False
    return all(_is_loadable(checkpoint / name) for name in hashes if name.endswith((".pt", ".pth", ".bin")))


def remove_torn_states(checkpoint: Path) -> None:
    """Removes the random states that a kill left half written: without its own, a process goes on with the seed's."""
    for file in checkpoint.glob(RANDOM_STATES):
        if not _is_loadable(file):
            file.unlink()


def _is_loadable(file: Path) -> bool:
    import torch
    from transformers.trainer_pt_utils import safe_globals

    try:
        with safe_globals():
            torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # what an unpickler raises on bytes that are no pickle has no end
        return False
    return True


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Where a trainer writes checkpoints: an error of the disk becomes a StorageError, and none leaves half a checkpoint."""
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
