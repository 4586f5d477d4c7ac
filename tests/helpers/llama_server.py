"""A real llama.cpp server on the loopback interface, with the wrong setting that a test chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def start(file: Path, **settings: Any) -> tuple[Any, str]:
    """(the server, which ends when nothing refers to it; its address).

    Args:
        settings: of xllamacpp's `CommonParams`, `sampling__temp` for `sampling.temp`; by default greedy with a context of 512 tokens.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.port, params.verbosity = str(file), 512, 1, 0, -1
    params.sampling.temp, params.sampling.top_k = 0.0, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    for name, value in settings.items():
        *path, last = name.split("__")
        place: Any = params
        for part in path:
            place = getattr(place, part)
        setattr(place, last, value)
    server = xllamacpp.Server(params)
    return server, server.listening_address.rstrip("/")
