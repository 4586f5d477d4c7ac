"""The Llama architecture in GGUF's words: which models are converted here, which tensors they have, and the keys that describe them.

Follows llama.cpp's conversion/llama.py for what it covers; anything that it would compute differently is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, RopeScalingType, get_tensor_name_map
from gguf.constants import GGML_QUANT_VERSION

from harness.errors import ModelError
from harness.formats import quantize, safetensors_reader

ARCHITECTURES = ("LlamaForCausalLM",)
ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""How rotary embeddings may be scaled, and what that needs in config.json."""


class UnsupportedModel(ModelError):
    """A model that only llama.cpp's own converter can write."""


@dataclass(frozen=True)
class Planned:
    """One tensor of the file to be written."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    source: safetensors_reader.Tensor | np.ndarray
    heads: int = 0
    """Of attn_q and attn_k: rows are to be permuted within each of so many heads."""

    @property
    def size_bytes(self) -> int:
        """Without padding."""
        return quantize.size_bytes(self.kind, self.shape)


def check_supported(config: dict[str, Any], folder: Path) -> None:
    """Raises unless this module converts such a model exactly."""
    names = config.get("architectures") or [config.get("model_type")]
    if names[0] not in ARCHITECTURES:
        raise UnsupportedModel(
            f"its architecture is {names[0]}, and GGUF is written here for {', '.join(ARCHITECTURES)}", file=folder
        )
    if "quantization_config" in config:
        raise ModelError(
            "its weights are quantised already", "export from the 16-bit model (merged_16bit)", file=folder
        )
    needed = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "rms_norm_eps",
    )
    if missing := [key for key in needed if not isinstance(config.get(key), int | float)]:
        raise ModelError(f"config.json has no {missing[0]}", "use the model's own config.json", file=folder)
    if config.get("hidden_act", "silu") != "silu":
        raise UnsupportedModel(f"its activation is {config['hidden_act']}, not silu", file=folder)
    rope = _rope(config)
    if rope["rope_type"] not in ROPE_KEYS:
        raise UnsupportedModel(f"its rotary embedding is scaled by {rope['rope_type']!r}", file=folder)
    if missing := [key for key in ROPE_KEYS[rope["rope_type"]] if not isinstance(rope.get(key), int | float)]:
        raise ModelError(
            f"config.json has no {missing[0]} for its rotary embedding", "use the model's own config.json", file=folder
        )


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary embedding settings under the names of transformers 5, wherever config.json has them."""
    rope = config.get("rope_parameters") or {
        "rope_theta": config.get("rope_theta", 10000.0),
        **(config.get("rope_scaling") or {}),
    }
    return {"rope_type": rope.get("type", "default"), **rope}


def _head_dim(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def plan(model_folder: Path, config: dict[str, Any], type: str) -> list[Planned]:
    """Every tensor of the file, in order: where it comes from, its type, its shape.

    Raises:
        ModelError: tensors are missing, unknown, or of another shape than config.json says.
    """
    found = safetensors_reader.index(model_folder)
    expected = _expected(config)
    tied = bool(config.get("tie_word_embeddings"))
    # Old checkpoints store the rotary frequencies; a tied model may store the output matrix a second time.
    ignored = {name for name in found if name.endswith("rotary_emb.inv_freq")} | ({"lm_head.weight"} if tied else set())
    if missing := sorted(set(expected) - set(found)):
        raise ModelError(
            f"tensor {missing[0]!r} is missing ({len(missing)} in all)", safetensors_reader.MEND, file=model_folder
        )
    if unknown := sorted(set(found) - set(expected) - ignored):
        raise ModelError(
            f"tensor {unknown[0]!r} is not part of a Llama model",
            "merge adapters into the model first",
            file=model_folder,
        )
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, layers)
    planned = []
    if (factors := _rope_factors(config)) is not None:
        planned.append(Planned("rope_freqs.weight", factors.shape, GGMLQuantizationType.F32, factors))
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise ModelError(
                f"tensor {name!r} has shape {found[name].shape}, config.json says {shape}",
                safetensors_reader.MEND,
                file=model_folder,
            )
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise UnsupportedModel(f"tensor {name!r} has no GGUF name", file=model_folder)
        kind = quantize.tensor_type(
            gguf_name, shape, type, layers=layers, tied=tied, is_70b=layers == 80 and heads != kv_heads
        )
        permuted = heads if ".q_proj." in name else kv_heads if ".k_proj." in name else 0
        planned.append(Planned(gguf_name, shape, kind, found[name], permuted))
    return planned


def _expected(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama model's tensors (transformers models/llama/modeling_llama.py)."""
    hidden, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, dim = config["num_attention_heads"], _head_dim(config)
    kv_heads = config.get("num_key_value_heads") or heads
    attention = {
        "q_proj": (heads * dim, hidden),
        "k_proj": (kv_heads * dim, hidden),
        "v_proj": (kv_heads * dim, hidden),
        "o_proj": (hidden, heads * dim),
    }
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for block, matrices, biased in (
            ("self_attn", attention, config.get("attention_bias")),
            ("mlp", mlp, config.get("mlp_bias")),
        ):
            for name, shape in matrices.items():
                shapes[f"{prefix}{block}.{name}.weight"] = shape
                if biased:
                    shapes[f"{prefix}{block}.{name}.bias"] = shape[:1]
        shapes[f"{prefix}input_layernorm.weight"] = shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (rows, hidden)
    return shapes


def _rope_factors(config: dict[str, Any]) -> np.ndarray | None:
    """Llama-3.1's divisors of the rotary frequencies (transformers modeling_rope_utils.py, `_compute_llama3_parameters`)."""
    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    dim = _head_dim(config)
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    wavelengths = 2 * math.pi * float(rope.get("rope_theta", 10000.0)) ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    smooth = (original / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelengths < original / high, 1.0, np.where(wavelengths > original / low, factor, between))
    return factors.astype(np.float32)


def add_settings(writer: GGUFWriter, config: dict[str, Any], type: str) -> None:
    """Writes the keys `general.*` and `llama.*`."""
    heads = config["num_attention_heads"]
    rope = _rope(config)
    writer.add_type("model")
    writer.add_file_type(quantize.FILE_TYPES[type][0])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(_head_dim(config))
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
