"""Finds llama.cpp's library, loads it, and checks its numbers with a generated one-layer model."""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from harness.backends.libllama import HINT, Library
from harness.backends.llama_context import Context, Model
from harness.errors import ConfigError, ModelError
from harness.formats import quantize
from harness.models import openmp

OLDER = ("libggml-base", "libggml-cpu", "libggml")
"""Libraries that libllama needs, in loading order."""
CPP_RUNTIME = "libstdc++.so.6"


@cache
def load(path: str | None = None) -> Library:
    """llama.cpp's library, checked: xllamacpp's, or the shared object at `path`, or the one in that folder.

    Raises:
        ConfigError: not a library, or another version; ModelError: xllamacpp is not installed.
    """
    if path is None:
        module = quantize.extension()
        library = Library(Path(sys.modules[module.Server.__module__].__file__ or ""), f"xllamacpp {module.__version__}")
    else:
        file = _find(Path(path))
        openmp.wait_briefly()
        _load_neighbours(file.parent)
        library = Library(file, "")
    check_numbers(library)
    return library


def _find(path: Path) -> Path:
    if path.is_dir():
        found = sorted(p for pattern in ("libllama*.so*", "libllama*.dylib", "llama.dll") for p in path.glob(pattern))
        if not found:
            raise ConfigError(f"predict.libllama: {path} has no libllama", "name the shared object itself")
        path = found[0]
    if not path.is_file():
        raise ConfigError(f"predict.libllama: {path} does not exist", "name llama.cpp's shared object, or its folder")
    return path.resolve()


def _load_neighbours(folder: Path) -> None:
    """Loads the libraries that a multi-file libllama needs, and its backends (CPU variants, CUDA).

    The C++ runtime goes first: nvcc may link it into libggml-cuda, whose copy would otherwise serve libllama as well and crash it.
    """
    with suppress(OSError):
        ctypes.CDLL(CPP_RUNTIME, ctypes.RTLD_GLOBAL)
    for name in OLDER:
        for file in sorted(folder.glob(f"{name}.so*")) or sorted(folder.glob(f"{name}.dylib")):
            try:
                loaded = ctypes.CDLL(str(file), ctypes.RTLD_GLOBAL)
            except OSError as error:
                raise ConfigError(
                    f"predict.libllama: {file} cannot be loaded ({error})", "install what it needs"
                ) from None
            if hasattr(loaded, "ggml_backend_load_all_from_path"):
                loaded.ggml_backend_load_all_from_path(str(folder).encode())
            break


# ------------------------------------------------------------------------------------------------- a model to check with

ROWS, WIDTH = 16, 32
"""Vocabulary and hidden size of the model that a library is checked with."""
TOLERANCE = 0.02
"""Largest difference of a logit: the cache holds values in 16 bits."""


def check_numbers(library: Library) -> None:
    """Runs two sequences through a model of one layer and compares with NumPy; this checks the layout of
    batch, positions, sequences and logits.

    Raises:
        ConfigError: the numbers differ.
    """
    sequences = [[1, 5, 9, 2], [3, 3, 7]]
    embedding, output = check_weights()
    with tempfile.TemporaryDirectory(prefix="harness-") as folder:
        file = Path(folder) / "check.gguf"
        write_check_model(file, embedding, output)
        model = Model(library, file, gpu_layers=0)
        try:
            context = Context(model, sequences=2, tokens=256, threads=1)
            rows = [(token, at, i, True) for i, ids in enumerate(sequences) for at, token in enumerate(ids)]
            found = context.decode(rows).copy()
            context.close()
        except ModelError as error:
            raise ConfigError(f"does not compute as expected ({error.problem})", HINT, file=library.path) from None
        finally:
            model.close()
    expected = np.concatenate([_expected_logits(ids, embedding, output) for ids in sequences])
    if not np.allclose(found, expected, atol=TOLERANCE):
        raise ConfigError(
            f"computes other logits than expected (off by {np.abs(found - expected).max():.3g})",
            HINT,
            file=library.path,
        )


def check_weights() -> tuple[np.ndarray, np.ndarray]:
    """Embedding and output of the check model, each of shape (ROWS, WIDTH); deterministic."""
    random = np.random.default_rng(0)
    return random.standard_normal((ROWS, WIDTH), np.float32), random.standard_normal((ROWS, WIDTH), np.float32) / 8


def _expected_logits(ids: Sequence[int], embedding: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Of the model of `write_check_model`: q and k are 0, so that each position attends equally to all before it; v and o are identities."""

    def norm(rows: np.ndarray) -> np.ndarray:
        return rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-5)

    rows = embedding[list(ids)]
    means = np.cumsum(norm(rows), axis=0) / np.arange(1, len(ids) + 1)[:, None]
    return norm(rows + means) @ output.T


def write_check_model(path: Path, embedding: np.ndarray, output: np.ndarray) -> None:
    """Writes a GGUF file of one layer with these weights, whose logits `_expected_logits` gives."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_vocab_size(ROWS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH)
    writer.add_tokenizer_model("none")
    identity, nothing, ones = (
        np.eye(WIDTH, dtype=np.float32),
        np.zeros((WIDTH, WIDTH), np.float32),
        np.ones(WIDTH, np.float32),
    )
    tensors = {
        "token_embd": embedding,
        "output": output,
        "output_norm": ones,
        "blk.0.attn_norm": ones,
        "blk.0.ffn_norm": ones,
    }
    tensors |= {f"blk.0.{name}": nothing for name in ("attn_q", "attn_k", "ffn_gate", "ffn_up", "ffn_down")}
    tensors |= {f"blk.0.{name}": identity for name in ("attn_v", "attn_output")}
    for name, values in tensors.items():
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
