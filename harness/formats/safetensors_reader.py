"""Reading safetensors as a stream: headers first, then rows on demand, so that no tensor ever has to be in memory whole.

The format (huggingface/safetensors, README "Format"): 8 bytes little-endian header length, a JSON header {name: {dtype, shape,
data_offsets}}, then the data. A sharded model adds `model.safetensors.index.json` with {weight_map: {name: file}}.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import ArtifactError, ModelError
from harness.storage import strict_json

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HINT = "copy or export the model again"
HEADER_LIMIT = 100_000_000
"""Bytes; the limit of the reference implementation. A larger length means that the file is something else."""

# bfloat16 has no NumPy type: it is read as its bits, which are the upper half of a float32.
DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class Tensor:
    """Where one tensor is on disk."""

    name: str
    file: Path
    dtype: str
    """`F32`, `F16` or `BF16`."""
    shape: tuple[int, ...]
    start: int
    """Offset of the first byte in `file`."""

    @property
    def row_length(self) -> int:
        """Elements in a row: the last dimension, or all of a vector; 1 of a single number."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Rows when seen as a matrix; a vector is one row."""
        return prod(self.shape[:-1])

    def read(self, first: int = 0, count: int | None = None) -> np.ndarray:
        """Rows `first` to `first + count` as float32, of shape (count, row_length)."""
        raw = self.raw(first, count)
        return (
            (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
            if self.dtype == "BF16"
            else raw.astype(np.float32, copy=False)
        )

    def raw(self, first: int = 0, count: int | None = None) -> np.ndarray:
        """The same rows as stored in the file; bfloat16, which NumPy lacks, as uint16."""
        count = self.rows - first if count is None else count
        dtype = np.dtype(DTYPES[self.dtype])
        elements = count * self.row_length
        with self.file.open("rb") as file:
            file.seek(self.start + first * self.row_length * dtype.itemsize)
            raw = np.fromfile(file, dtype=dtype, count=elements)
        if raw.size != elements:
            raise ArtifactError(f"ends inside tensor {self.name!r}", HINT, file=self.file)
        return raw.reshape(count, self.row_length)


def index(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a model folder by name, from the headers alone.

    Raises:
        ModelError: no safetensors in the folder, or tensors that are not 16- or 32-bit floats.
        ArtifactError: a file that is missing from the index, truncated, or not safetensors.
    """
    if (folder / INDEX).is_file():
        weight_map = _json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ArtifactError("has no weight_map", HINT, file=folder / INDEX)
        # An index may only give plain file names, so that it cannot lead out of the folder.
        stray = next(
            (
                name
                for name in weight_map.values()
                if not isinstance(name, str) or Path(name).name != name or "\0" in name
            ),
            None,
        )
        if stray is not None:
            raise ArtifactError(
                f"names {str(stray)[:80]!r}, which is not a file of its folder", HINT, file=folder / INDEX
            )
        files = [folder / name for name in sorted(set(weight_map.values()))]
    elif (folder / WHOLE).is_file():
        weight_map, files = None, [folder / WHOLE]
    else:
        raise ModelError(
            "has no weights", f"it needs {WHOLE} or {INDEX} (pickled .bin weights are not read)", file=folder
        )
    tensors = {tensor.name: tensor for file in files for tensor in _header(file)}
    if weight_map is not None and (missing := sorted(set(weight_map) - set(tensors))):
        raise ArtifactError(
            f"names tensor {missing[0]!r}, which {weight_map[missing[0]]} does not hold", HINT, file=folder / INDEX
        )
    return tensors


def _header(file: Path) -> list[Tensor]:
    if not file.is_file():
        raise ArtifactError("is missing, though the index names it", HINT, file=file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(HEADER_LIMIT, size - 8):
            raise ArtifactError("is truncated or not a safetensors file", HINT, file=file)
        try:
            header = strict_json.loads(stream.read(length).decode("utf-8"))
            entries = [(name, *_entry(entry)) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ArtifactError("has a damaged safetensors header", HINT, file=file) from None
    tensors = []
    for name, dtype, shape, start, end in entries:
        if dtype not in DTYPES:
            raise ModelError(
                f"tensor {name!r} is {dtype}, not a 16- or 32-bit float",
                "use the 16-bit model (merged_16bit), not a quantised one",
                file=file,
            )
        if end - start != prod(shape) * np.dtype(DTYPES[dtype]).itemsize:
            raise ArtifactError(f"tensor {name!r} does not fit its size", HINT, file=file)
        if 8 + length + end > size:
            raise ArtifactError(
                f"is truncated: {size} bytes, tensor {name!r} ends at {8 + length + end}", HINT, file=file
            )
        tensors.append(Tensor(name, file, dtype, shape, 8 + length + start))
    return tensors


def _entry(entry: dict[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype, shape, start, end) of a tensor in a header; TypeError if one has the wrong type."""
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if (
        not isinstance(dtype, str)
        or not isinstance(shape, list)
        or any(type(n) is not int or n < 0 for n in (*shape, start, end))
    ):
        raise TypeError
    return dtype, tuple(shape), start, end


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot be read as JSON ({error})", HINT, file=file) from None
    if not isinstance(value, dict):
        raise ModelError("is not a JSON object", HINT, file=file)
    return value


def read_json(file: Path, what: str) -> dict[str, Any]:
    """A JSON object of a model folder; ModelError, saying that the folder has no `what`, if it is not there."""
    if not file.is_file():
        raise ModelError(f"has no {what}", f"put {file.name} beside the weights", file=file.parent)
    return _json(file)
