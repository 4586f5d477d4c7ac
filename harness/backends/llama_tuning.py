"""How many threads and sequences answer fastest: measured on the loaded model, for a second or two.

Neither can be guessed: a small model's threads wait for one another longer than they compute, a busy machine has fewer cores than it says,
and a GPU takes many sequences at the price of one.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from harness.backends import cores
from harness.backends.llama_context import Context, Model

TOKENS = 256
"""Of a sequence while measuring."""
STEPS, SECONDS = 12, 0.12
"""Steps that one setting is measured with, at most and for so long at most; at least one, behind one that is not counted."""
BUDGET = 2.0
"""Seconds after which no further setting is tried: a large model's step takes a second by itself."""
SEQUENCES = (8, 16, 32, 64)
LEAST_GAIN = 1.05
"""A larger setting must be so much faster than the one before: the smaller one needs less memory and wastes less at the end."""
CACHE_BYTES = 4 << 30
"""Memory that the sequences' keys and values may take, at most."""


@dataclass(frozen=True)
class Setting:
    """What is used, and how fast it was when it was measured."""

    threads: int
    sequences: int
    tokens_per_second: float = 0.0
    """Of a step of all sequences; 0: not measured."""


def measure(model: Model, *, threads: int, sequences: int, tokens: int, unit: int) -> Setting:
    """The fastest setting, or the one that is asked for.

    Args:
        threads, sequences: 0: to be measured.
        tokens: of prompt and answer that a sequence must hold.
        unit: the number of sequences is a multiple of this.
    """
    if threads and sequences:
        return Setting(threads, sequences)
    room = max(unit, CACHE_BYTES // max(tokens * model.cache_bytes(), 1) // unit * unit)
    candidates = [sequences] if sequences else [n for n in SEQUENCES if n <= room and n % unit == 0] or [unit]
    end = time.perf_counter() + BUDGET
    best = _best_threads(model, candidates[0], [threads] if threads else thread_candidates(cores()), end)
    for count in candidates[1:]:
        if time.perf_counter() > end:
            break
        found = _measured(model, best.threads, count)
        if found.tokens_per_second < LEAST_GAIN * best.tokens_per_second:
            break
        best = found
    return best


def thread_candidates(count: int) -> list[int]:
    """All cores, half of them, and so on down to one: the likely ones first."""
    found = [count]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found


def _best_threads(model: Model, sequences: int, candidates: list[int], end: float) -> Setting:
    """The fewest threads that are about as fast as any; fewer than half of the best are not tried once they are slower."""
    best = _measured(model, candidates[0], sequences)
    for threads in candidates[1:]:
        if time.perf_counter() > end:
            break
        found = _measured(model, threads, sequences)
        if found.tokens_per_second * LEAST_GAIN < best.tokens_per_second:
            break
        best = found
    return best


def _measured(model: Model, threads: int, sequences: int) -> Setting:
    """Decodes one token of every sequence, again and again, and takes the median time."""
    context = Context(model, sequences=sequences, tokens=TOKENS, threads=threads)
    times: list[float] = []
    try:
        began = time.perf_counter()
        for at in range(STEPS + 1):
            start = time.perf_counter()
            context.decode([(0, at, place, True) for place in range(sequences)])
            # The first step reads the weights and lays out the memory.
            if at:
                times.append(time.perf_counter() - start)
            if times and time.perf_counter() - began > SECONDS:
                break
    finally:
        context.close()
    return Setting(threads, sequences, sequences / statistics.median(times))
