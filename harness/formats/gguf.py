"""GGUF files for llama.cpp, from a Hugging Face folder of a known family (`families`), with PyPI packages alone.

Does the work of llama.cpp's converter (conversion/) and quantiser (src/llama-quant.cpp) on a stream of row chunks, so that memory does not grow with
the model. Other architectures go through a llama.cpp checkout, if the config names one.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from operator import index
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGUFReader, GGUFWriter, ReaderTensor
from gguf.quants import dequantize

from harness.errors import ArtifactError, ConfigError, ModelError
from harness.formats import (
    Checked,
    Sources,
    families,
    llama,
    llama_cpp_checkout,
    quantize,
    safetensors_reader,
    vocabulary,
)
from harness.formats.modelfile import read_chat_template
from harness.storage import atomic_path, need_space

log = logging.getLogger(__name__)

METADATA = 1 << 24
"""Bytes reserved for the metadata keys, mostly the vocabulary."""
CHUNK = 1 << 20
"""Elements that are read, converted and written at a time: 4 MiB as float32."""
HINT = "export it again, or fetch it again"
CHECKOUT = "set export.llama_cpp to a llama.cpp checkout, which converts many more"


def export(sources: Sources, out: Path, name: str) -> Checked:
    """Writes and checks `gguf_<type>`."""
    weights = sources.importance() if name.removeprefix("gguf_") in quantize.WEIGHED else None
    found = write(
        sources.merged_16bit,
        out,
        name.removeprefix("gguf_"),
        threads=sources.threads,
        llama_cpp=sources.llama_cpp,
        importance=weights,
        without_bos=sources.without_bos,
    )["tensors"]
    checks = [f"{found} tensors read back, sizes within the file, sampled values finite"]
    if weights:
        checks.append(f"errors of {len(weights)} tensors weighed by importance, measured on training questions")
    return Checked(found, checks)


def write(
    model_folder: Path,
    out: Path,
    type: str,
    *,
    threads: int = 0,
    llama_cpp: Path | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
    without_bos: bool = False,
) -> dict[str, Any]:
    """Writes `out` atomically and checks it; equal inputs give equal bytes.

    Args:
        model_folder: config.json, tokenizer.json and 16- or 32-bit safetensors.
        type: a key of `quantize.FILE_TYPES`.
        threads: for quantising; 0: one per core.
        llama_cpp: a llama.cpp checkout, used only for models that are not converted here.
        importance: see `harness.formats.importance`; for the types of `quantize.WEIGHED`.
        without_bos: the file tells llama.cpp to put no BOS in front of a prompt, even if the tokenizer adds one to a text.

    Returns:
        The facts of `check`.

    Raises:
        ModelError: a folder that is incomplete, of another architecture, or holds values that do not fit the type.
        ArtifactError: damaged or truncated weights.
        StorageError: no space for the file.
    """
    if type not in quantize.FILE_TYPES:
        raise ConfigError(f"no GGUF type {type!r}", f"use one of {', '.join(quantize.FILE_TYPES)}")
    threads = threads or os.cpu_count() or 1
    config = safetensors_reader.read_json(model_folder / "config.json", "config")
    try:
        llama.check_supported(config, model_folder)
        words = vocabulary.load(model_folder, config)
        planned = llama.plan(model_folder, config, type, importance)
    except (llama.UnsupportedModel, vocabulary.UnsupportedTokenizer) as error:
        if llama_cpp is None:
            raise ModelError(error.problem, CHECKOUT, file=error.file) from None
        with atomic_path(out) as temporary:
            llama_cpp_checkout.convert(llama_cpp, model_folder, temporary, type, threads=threads)
            return check(temporary)
    if without_bos:
        words = replace(words, add_bos=False)
    need_space(out, sum(tensor.size_bytes for tensor in planned) + METADATA)
    with atomic_path(out) as temporary:
        _write(temporary, config, words, read_chat_template(model_folder), planned, type, threads)
        facts = check(temporary)
        if facts["tensors"] != len(planned):
            raise ArtifactError(f"holds {facts['tensors']} tensors of {len(planned)}", "run the export again", file=out)
    return facts


def check_supported(model_folder: Path) -> None:
    """Raises ModelError if the model cannot be written here: cheaper to know before anything else is exported."""
    try:
        llama.check_supported(safetensors_reader.read_json(model_folder / "config.json", "config"), model_folder)
    except llama.UnsupportedModel as error:
        raise ModelError(error.problem, CHECKOUT, file=error.file) from None


def _write(
    path: Path,
    config: dict[str, Any],
    words: vocabulary.Vocabulary,
    chat_template: str,
    planned: list[llama.Planned],
    type: str,
    threads: int,
) -> None:
    writer = GGUFWriter(path, families.find(config, path).name)
    llama.add_settings(writer, config, type)
    words.add_to(writer)
    if weighed := sum(tensor.importance is not None for tensor in planned):
        writer.add_string("quantize.imatrix.dataset", "training questions")
        writer.add_int32("quantize.imatrix.entries_count", weighed)
    if chat_template:
        writer.add_chat_template(chat_template)
    for tensor in planned:
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor.size_bytes, raw_dtype=tensor.kind
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        _write_data(writer, writer.fout[0], planned, type, threads)
    finally:
        writer.close()


def _write_data(
    writer: GGUFWriter,
    file: BinaryIO,
    planned: list[llama.Planned],
    type: str,
    threads: int,
) -> None:
    """Reads and converts chunks on `threads` threads and writes them in order; at most two chunks a thread are in memory."""
    writer.write_padding(file, file.tell())
    waiting: deque[tuple[llama.Planned, bool, Future[np.ndarray]]] = deque()
    written = tenths = 0

    def drain(limit: int) -> None:
        nonlocal written, tenths
        while len(waiting) > limit:
            tensor, is_last, future = waiting.popleft()
            file.write(future.result().data)
            if is_last:
                writer.write_padding(file, tensor.size_bytes)
                written += 1
                if written * 10 // len(planned) > tenths:
                    tenths = written * 10 // len(planned)
                    log.info(f"gguf_{type}: {written} of {len(planned)} tensors")

    with ThreadPoolExecutor(threads) as pool:
        try:
            for tensor in planned:
                for first, count in _chunks(tensor):
                    is_last = first + count == _matrix(tensor)[0]
                    waiting.append((tensor, is_last, pool.submit(_convert, tensor, first, count)))
                    drain(2 * threads)
            drain(0)
        finally:
            pool.shutdown(cancel_futures=True)


def _matrix(tensor: llama.Planned) -> tuple[int, int]:
    """(rows, columns) of a tensor; a vector is one row, unless it is permuted."""
    if len(tensor.shape) == 1:
        return (tensor.shape[0], 1) if tensor.heads else (1, tensor.shape[0])
    return math.prod(tensor.shape[:-1]), tensor.shape[-1]


def _chunks(tensor: llama.Planned) -> Iterator[tuple[int, int]]:
    """(first row, rows) of each chunk: about CHUNK elements, whole heads where rows are permuted."""
    rows, columns = _matrix(tensor)
    unit = rows // tensor.heads if tensor.heads else 1
    step = max(CHUNK // columns // unit, 1) * unit
    for first in range(0, rows, step):
        yield first, min(step, rows - first)


def _convert(tensor: llama.Planned, first: int, count: int) -> np.ndarray:
    """The bytes of some rows of the file's tensor."""
    rows, columns = _matrix(tensor)
    if isinstance(tensor.source, np.ndarray):
        values = tensor.source.reshape(rows, columns)[first : first + count]
    elif len(tensor.shape) == 1:
        values = tensor.source.read().reshape(rows, columns)[first : first + count]
    else:
        values = tensor.source.read(first, count)
    if tensor.heads:
        # Hugging Face rotates the two halves of a head, llama.cpp neighbouring pairs (conversion/llama.py, `permute`).
        half = rows // tensor.heads // 2
        values = values.reshape(-1, 2, half, columns).swapaxes(1, 2).reshape(count, columns)
    if tensor.offset:
        values = values + np.float32(tensor.offset)
    return quantize.quantize(values, tensor.kind, tensor.name, tensor.importance)


# -------------------------------------------------------------------------------------------------------------- check


def check(path: Path) -> dict[str, Any]:
    """Opens a GGUF file again and reads every header and a sample of every tensor.

    Returns:
        `architecture`, `tensors`, `parameters`, `size_bytes`, `types` (type -> tensors), `context_length`, `vocabulary`, `pre`, `end_ids`.

    Raises:
        ArtifactError: not GGUF, truncated, without the keys a model needs, or with values that are not finite.
    """
    if not path.is_file():
        raise ArtifactError("is missing", HINT, file=path)
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ArtifactError("is not a GGUF file", HINT, file=path)
    try:
        return _facts(_Reader(path), path)
    except KeyError as error:
        raise ArtifactError(f"has no {error.args[0]}", HINT, file=path) from None
    except (
        ValueError,
        IndexError,
        TypeError,
        AttributeError,
        ArithmeticError,
        MemoryError,
        RecursionError,
        OSError,
    ) as error:
        # Errors of the package and NumPy on a malformed file.
        raise ArtifactError(f"is truncated or damaged ({error})", HINT, file=path) from None


def _facts(reader: GGUFReader, path: Path) -> dict[str, Any]:
    architecture = reader.fields["general.architecture"].contents()
    fields = {
        name: reader.fields[name.replace("*", architecture)] for name in ("*.context_length", "tokenizer.ggml.tokens")
    }
    for tensor in reader.tensors:
        if not np.isfinite(_sample(tensor)).all():
            raise ArtifactError(f"tensor {tensor.name!r} holds values that are not finite", HINT, file=path)

    def value(key: str) -> Any:
        field = reader.fields.get(key)
        return None if field is None else field.contents()

    return {
        "architecture": architecture,
        "tensors": len(reader.tensors),
        "parameters": sum(int(tensor.n_elements) for tensor in reader.tensors),
        "size_bytes": path.stat().st_size,
        "types": dict(sorted(Counter(tensor.tensor_type.name for tensor in reader.tensors).items())),
        "context_length": index(fields["*.context_length"].contents()),
        "vocabulary": len(fields["tokenizer.ggml.tokens"].data),
        "pre": value("tokenizer.ggml.pre"),
        "end_ids": sorted(
            {index(i) for key in vocabulary.END_KEYS if (i := value(f"tokenizer.ggml.{key}_token_id")) is not None}
        ),
    }


class _Reader(GGUFReader):
    """Refuses a value that extends beyond the file: the package would keep reading for the claimed length of an array."""

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        found = super()._get(offset, dtype, count, override_order)
        if found.size < count:
            raise ValueError(f"it ends at byte {self.data.size}, inside a value")
        return found


def _sample(tensor: ReaderTensor) -> np.ndarray:
    """The first and last row as float32; nothing of the few types that the gguf package cannot decode."""
    rows = tensor.data.reshape(-1, tensor.data.shape[-1])
    try:
        with np.errstate(all="ignore"):
            return dequantize(rows[[0, -1]], tensor.tensor_type)
    except NotImplementedError:
        return np.empty(0, np.float32)
