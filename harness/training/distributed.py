"""Rank and world size of this process under torchrun. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Processes:
    """The place of this process among those of a training."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    """Rank on its host, which is the number of its device."""

    @property
    def writes(self) -> bool:
        """One process writes; the others only compute."""
        return self.rank == 0


def processes() -> Processes:
    """From torchrun's environment; a single process without it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return (
        Processes(int(os.environ["RANK"]), world, int(os.environ.get("LOCAL_RANK", "0"))) if world > 1 else Processes()
    )


def broadcast(value: Any, among: Processes, *, cpu: bool) -> Any:
    """The writer's value, on every process; starts the process group if it is not there."""
    if among.world == 1:
        return value
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=cpu)
    return broadcast_object_list([value])[0]
