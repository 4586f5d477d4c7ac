"""llama.cpp's C interface (llama.h) through ctypes: the functions that answering needs, and a check that the library matches the declarations.

llama.h promises no stable layout: fields of the parameter structures move between releases. So a library is used only if its default
parameters are the ones below, field by field, and if `llama_loading` finds that it computes what NumPy does.

A generated binding was considered: llama-cpp-py-sync 0.11739, the one on PyPI that is kept up with llama.cpp, is bound to its own library,
which needs glibc 2.38 (Debian 12 has 2.36), and llama-cpp-python has to be compiled.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_float,
    c_int8,
    c_int32,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Any

from harness.errors import ConfigError

RESERVE = 256
"""Bytes behind the known fields of a structure: a later library may have more of them, and returns and takes them by value."""


class ModelParams(Structure):
    """`llama_model_params`."""

    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
        ("reserve", c_int8 * RESERVE),
    )


class ContextParams(Structure):
    """`llama_context_params`."""

    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("moe_cache_size", c_size_t),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
        ("reserve", c_int8 * RESERVE),
    )


class ContextParamsBeforeMoeCache(Structure):
    """`llama_context_params` before llama.cpp cached experts (b11434 is such a release)."""

    _fields_ = tuple(field for field in ContextParams._fields_ if field[0] != "moe_cache_size")


LAYOUTS = (ContextParams, ContextParamsBeforeMoeCache)
"""Of `llama_context_params`, the pinned release's first."""


class Batch(Structure):
    """`llama_batch`."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", c_void_p),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", c_void_p),
    )


SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_version": (c_char_p, []),
    "llama_backend_init": (None, []),
    "llama_supports_gpu_offload": (c_bool, []),
    "llama_log_set": (None, [c_void_p, c_void_p]),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_size": (c_uint64, [c_void_p]),
    "llama_model_n_layer": (c_int32, [c_void_p]),
    "llama_model_n_embd": (c_int32, [c_void_p]),
    "llama_model_n_head": (c_int32, [c_void_p]),
    "llama_model_n_head_kv": (c_int32, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
    "llama_free": (None, [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_memory_seq_cp": (None, [c_void_p, c_int32, c_int32, c_int32, c_int32]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits_ith": (POINTER(c_float), [c_void_p, c_int32]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, c_void_p, c_int32, c_bool, c_bool]),
}
"""Name -> (result, arguments) of each function of llama.h that is called."""

MODEL_DEFAULTS = {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "main_gpu": 0,
    "vocab_only": False,
    "use_extra_bufts": True,
    "no_alloc": False,
}
CONTEXT_DEFAULTS = {
    "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_threads": 4, "n_threads_batch": 4, "ctx_type": 0,
    "rope_scaling_type": -1, "pooling_type": -1, "attention_type": -1, "flash_attn_type": -1, "rope_freq_base": 0.0, "rope_freq_scale": 0.0,
    "yarn_ext_factor": -1.0, "yarn_attn_factor": -1.0, "yarn_beta_fast": -1.0, "yarn_beta_slow": -1.0, "defrag_thold": -1.0, "cb_eval": None,
    "type_k": 1, "type_v": 1, "moe_cache_size": 0, "abort_callback": None, "embeddings": False, "offload_kqv": True, "op_offload": True,
    "kv_unified": False, "samplers": None, "n_samplers": 0, "ctx_other": None,
}  # fmt: skip
"""llama.cpp's defaults by name; a library with another layout shows other values."""

LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)
ERROR = 4
"""`GGML_LOG_LEVEL_ERROR`."""


class Library:
    """A loaded and checked llama.cpp; its functions are attributes.

    Attributes:
        version: of the package or library, for the record.
        first_error: the first line that llama.cpp logged as an error since this was emptied: later ones only say that it gave up.

    Raises:
        ConfigError: the file is not a llama.cpp library, or of another version than the one declared here.
    """

    def __init__(self, path: Path, version: str):
        self.path, self.first_error = path, ""
        try:
            self._functions = ctypes.CDLL(str(path))
            for name, (result, arguments) in SIGNATURES.items():
                function = getattr(self._functions, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise ConfigError(f"cannot be used as llama.cpp's library ({error})", HINT, file=path) from None
        self.version = version or f"llama.cpp {self.llama_version().decode(errors='replace')}"
        self._log = LOG(self._keep_error)
        self.keep_first_error()
        self.llama_backend_init()
        self._use_layout_that_fits()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._functions, name)

    def _use_layout_that_fits(self) -> None:
        """Declares the context parameters as the release has them: by the first layout whose defaults read right."""
        found = []
        for layout in LAYOUTS:
            self._functions.llama_context_default_params.restype = layout
            self._functions.llama_init_from_model.argtypes = [c_void_p, layout]
            if not (wrong := wrong_defaults(self)):
                return
            found.append(wrong)
        raise ConfigError(
            f"is a version of llama.cpp that this project does not support: {found[0]}", HINT, file=self.path
        )

    def keep_first_error(self) -> None:
        """Empties `first_error` and takes llama.cpp's log, which other code of this process may have taken meanwhile."""
        self.first_error = ""
        self.llama_log_set(ctypes.cast(self._log, c_void_p), None)

    def _keep_error(self, level: int, text: bytes, _: object) -> None:
        if level == ERROR and not self.first_error and (line := text.decode(errors="replace").strip()):
            self.first_error = line.partition(": ")[2] or line


HINT = "install the pinned xllamacpp, or name a libllama of its release in predict.libllama"


def wrong_defaults(library: Any) -> str | None:
    """Describes the first default parameter that is not at its expected place."""
    for structure, expected in (
        (library.llama_model_default_params(), MODEL_DEFAULTS),
        (library.llama_context_default_params(), CONTEXT_DEFAULTS),
    ):
        for name, value in expected.items():
            if hasattr(structure, name) and (found := getattr(structure, name)) != value:
                return f"its default {name} reads {found}, not {value}"
    return None
