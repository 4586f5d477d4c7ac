"""How OpenMP's threads wait for one another in PyTorch and llama.cpp."""

from __future__ import annotations

import os

SPINS = 1000
"""Turns of the loop in which a thread waits at a barrier before it sleeps.

By default libgomp spins much longer, which on a machine with other work takes the core of the thread that is waited for: several times slower.
Sleeping at once makes a small model wait until its threads have woken up: with 1,000 turns training the embedded model is 2 to 9% faster on two cores, and
SmolLM2 in GGUF answers 1.7 times as fast on 16 (docs/gguf.md).
"""


def wait_briefly() -> None:
    """Sets it for libraries that are loaded later, unless the user chose how threads wait. libgomp reads it once, when it is loaded."""
    if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
        os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": str(SPINS)}
