"""llama.cpp's quantisation: which type each tensor takes, and the bytes, from llama.cpp's own code inside xllamacpp.

The choice of types follows llama.cpp src/llama-quant.cpp (`llama_tensor_get_type_impl`, `tensor_type_fallback`) for dense models, with an importance
matrix (`harness.formats.importance`) for the types of `WEIGHED`. The bytes come from `ggml_quantize_chunk`, which xllamacpp's shared object exports: it works on rows and shares
nothing, and ctypes releases the GIL around it, so that rows can be quantised on several threads.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from types import ModuleType

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from harness.errors import ModelError
from harness.models import openmp

T = GGMLQuantizationType

FILE_TYPES: dict[str, tuple[LlamaFileType, GGMLQuantizationType]] = {
    "f32": (LlamaFileType.ALL_F32, T.F32),
    "f16": (LlamaFileType.MOSTLY_F16, T.F16),
    "q8_0": (LlamaFileType.MOSTLY_Q8_0, T.Q8_0),
    "q6_k": (LlamaFileType.MOSTLY_Q6_K, T.Q6_K),
    "q5_k_m": (LlamaFileType.MOSTLY_Q5_K_M, T.Q5_K),
    "q5_0": (LlamaFileType.MOSTLY_Q5_0, T.Q5_0),
    "q4_k_m": (LlamaFileType.MOSTLY_Q4_K_M, T.Q4_K),
    "q4_0": (LlamaFileType.MOSTLY_Q4_0, T.Q4_0),
    "iq4_xs": (LlamaFileType.MOSTLY_IQ4_XS, T.IQ4_XS),
    "q3_k_m": (LlamaFileType.MOSTLY_Q3_K_M, T.Q3_K),
    "q2_k": (LlamaFileType.MOSTLY_Q2_K, T.Q2_K),
}
"""Our name -> (the file's declared type, the type of most of its tensors)."""

WEIGHED = ("q4_k_m", "iq4_xs", "q3_k_m", "q2_k")
"""The types that an importance matrix is used for, where there is one."""
FALLBACK = {T.IQ4_XS: T.IQ4_NL, T.Q2_K: T.Q4_0, T.Q3_K: T.Q4_0, T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0}
"""For rows not divisible by 256: the nearest type with blocks of 32."""


def use_more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's rule for the layers that are most sensitive to quantisation: the first and last eighth, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def tensor_type(
    name: str,
    shape: tuple[int, ...],
    file_type: str,
    *,
    layers: int,
    tied: bool,
    is_70b: bool = False,
    query_groups: int = 1,
    weighed: bool = False,
) -> GGMLQuantizationType:
    """The type llama.cpp gives to one tensor.

    Args:
        name: its GGUF name, such as `blk.3.attn_v.weight`.
        shape: rows first, as in NumPy.
        file_type: a key of FILE_TYPES.
        layers: of the model.
        tied: the model has no `output.weight`: the embedding is used instead.
        is_70b: 80 layers with grouped heads, for which llama.cpp gives attn_v more bits.
        query_groups: heads for each key and value head.
        weighed: there is an importance matrix.
    """
    main = FILE_TYPES[file_type][1]
    if main == T.F32 or len(shape) < 2 or name.endswith("_norm.weight"):
        return T.F32
    if main == T.F16:
        return T.F16
    kind = main
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        kind = T.Q8_0 if main == T.Q8_0 or shape[-1] % GGML_QUANT_SIZES[main][0] else T.Q6_K
    elif name.startswith("blk."):
        _, layer, part = name.split(".", 2)
        kind = _mixed(file_type, part.removesuffix(".weight"), int(layer), layers, query_groups, weighed) or main
        if part in ("attn_v.weight", "attn_qkv.weight") and is_70b and kind in (T.Q3_K, T.Q4_K):
            kind = T.Q5_K
    return _fitting(kind, shape[-1])


def _mixed(
    file_type: str, part: str, layer: int, layers: int, query_groups: int, weighed: bool
) -> GGMLQuantizationType | None:
    """The type of one part of a layer in a mixed file; None: that of most tensors."""
    is_value = part in ("attn_v", "attn_qkv")
    if file_type in ("q4_k_m", "q5_k_m"):
        return T.Q6_K if (is_value or part == "ffn_down") and use_more_bits(layer, layers) else None
    if file_type == "iq4_xs":
        if is_value and query_groups >= 4:
            return T.Q5_K
        return T.Q5_K if part == "ffn_down" and layer < layers // 8 and not weighed else None
    if file_type == "q3_k_m":
        if is_value:
            return T.Q5_K if layer < 2 else T.Q4_K
        if part == "ffn_down":
            return T.Q5_K if layer < layers // 16 else T.Q4_K
        return T.Q4_K if part == "attn_output" else None
    if file_type == "q2_k":
        if is_value:
            return T.Q4_K if query_groups >= 4 else T.Q3_K
        return T.Q3_K if part in ("ffn_down", "attn_output") else None
    return None


def _fitting(kind: GGMLQuantizationType, columns: int) -> GGMLQuantizationType:
    if columns % GGML_QUANT_SIZES[kind][0]:
        kind = FALLBACK.get(kind, T.F16)
    return T.F16 if columns % GGML_QUANT_SIZES[kind][0] else kind


def size_bytes(kind: GGMLQuantizationType, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of that type."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape)) // block * block_bytes


def quantize(
    values: np.ndarray, kind: GGMLQuantizationType, name: str, importance: np.ndarray | None = None
) -> np.ndarray:
    """The bytes of float32 rows (rows, columns) in that type, as a flat uint8 array.

    Args:
        importance: float32 of shape (columns,), what the error of each column is weighed with.
    Raises:
        ModelError: naming the tensor, if a value is not finite or does not fit the type.
    """
    if not np.isfinite(values).all():
        raise ModelError(
            f"tensor {name!r} holds values that are not finite numbers",
            "check the training; export an earlier checkpoint",
        )
    if kind == T.F32:
        return np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8)
    if kind == T.F16:
        with np.errstate(over="ignore"):
            half = np.ascontiguousarray(values, "<f2")
        if np.isinf(half).any():
            raise ModelError(
                f"tensor {name!r} holds {np.abs(values).max():.6g}, beyond float16's 65504",
                "export f32 or q8_0 instead of this type",
            )
        return half.reshape(-1).view(np.uint8)
    library = _library()
    source = np.ascontiguousarray(values, np.float32)
    rows, columns = source.shape
    out = np.empty(size_bytes(kind, source.shape), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    if weights is not None and weights.shape != (columns,):
        raise ModelError(f"importance of {name!r} has shape {weights.shape}, not ({columns},)", "export again")
    pointer = None if weights is None else weights.ctypes.data
    written = library.ggml_quantize_chunk(kind, source.ctypes.data, out.ctypes.data, 0, rows, columns, pointer)
    if written != out.nbytes or not library.ggml_validate_row_data(kind, out.ctypes.data, out.nbytes):
        raise ModelError(
            f"tensor {name!r} does not fit {kind.name} (values up to {np.abs(values).max():.6g})",
            "export f32 instead of this type",
        )
    return out


@cache
def extension() -> ModuleType:
    """xllamacpp, imported; ModelError if it is not installed."""
    openmp.wait_briefly()
    try:
        import xllamacpp
    except (ImportError, OSError) as error:
        raise ModelError(
            f"xllamacpp cannot be imported ({error})",
            "install the project with its gguf extra, and the system's libgomp",
        ) from error
    return xllamacpp


@cache
def _library() -> ctypes.CDLL:
    """xllamacpp's shared object, with the signatures of ggml.h."""
    library = ctypes.CDLL(sys.modules[extension().Server.__module__].__file__)
    pointer, size, count = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    library.ggml_quantize_chunk.restype = size
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, pointer, size]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    return library
