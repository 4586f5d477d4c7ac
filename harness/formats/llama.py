"""A Hugging Face model as GGUF: the tensors of the file, their types, and the keys that describe them.

What differs between families is in `families`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType, get_tensor_name_map
from gguf.constants import GGML_QUANT_VERSION

from harness.errors import ModelError
from harness.formats import families, quantize, rotary, safetensors_reader
from harness.formats.families import UnsupportedModel

ROWS = 1024
"""Of a matrix that is compared with another at a time."""


@dataclass(frozen=True)
class Planned:
    """One tensor of the file to be written."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    source: safetensors_reader.Tensor | np.ndarray
    heads: int = 0
    """Of attn_q and attn_k: number of heads within which rows are permuted."""
    offset: float = 0.0
    """Is added to the values."""
    importance: np.ndarray | None = None
    """Of each column, where the type is chosen with an importance matrix."""

    @property
    def size_bytes(self) -> int:
        """Without padding."""
        return quantize.size_bytes(self.kind, self.shape)


def check_supported(config: dict[str, Any], folder: Path) -> None:
    """Raises unless such a model is converted here exactly."""
    family = families.find(config, folder)
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
    families.check(config, family, folder)
    rope = rotary.settings(config)
    if rope["rope_type"] not in family.rope_types:
        raise UnsupportedModel(f"its rotary embedding is scaled by {rope['rope_type']!r}", file=folder)
    if rope["partial_rotary_factor"] != 1.0 and not family.fused:
        raise UnsupportedModel(f"it rotates a part of each head ({rope['partial_rotary_factor']})", file=folder)
    if missing := [key for key in rotary.KEYS[rope["rope_type"]] if not isinstance(rope.get(key), int | float)]:
        raise ModelError(
            f"config.json has no {missing[0]} for its rotary embedding", "use the model's own config.json", file=folder
        )
    if rope["rope_type"] == "longrope":
        for key in ("long_factor", "short_factor"):
            if len(rope.get(key) or ()) != _rotated(config) // 2:
                raise ModelError(
                    f"config.json has no {key} of {_rotated(config) // 2} numbers",
                    "use the model's own config.json",
                    file=folder,
                )


def _rotated(config: dict[str, Any]) -> int:
    """Elements of a head that are rotated."""
    return int(families.head_dim(config) * rotary.settings(config)["partial_rotary_factor"])


def plan(
    model_folder: Path, config: dict[str, Any], type: str, importance: Mapping[str, np.ndarray] | None = None
) -> list[Planned]:
    """Every tensor of the file, in order: where it comes from, its type, its shape.

    Args:
        importance: GGUF tensor name -> weight of each column (`harness.formats.importance`); used by the types of `quantize.WEIGHED`.
    Raises:
        ModelError: tensors are missing, unknown, or of another shape than config.json says.
    """
    found = safetensors_reader.index(model_folder)
    family = families.find(config, model_folder)
    if families.tied(config) and _two_embeddings(found):
        # transformers ties nothing that the file holds twice with different values (modeling_utils.py, `tie_weights`).
        config = config | {"tie_word_embeddings": False}
        families.check(config, family, model_folder)
    expected = families.expected(config, family)
    tied = families.tied(config)
    _check_names(found, expected, tied, family.name, model_folder)
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    names = get_tensor_name_map(family.arch, layers)
    weights = importance if importance and type in quantize.WEIGHED else {}
    planned = []
    for name, factors in _rope_tensors(config).items():
        planned.append(Planned(name, factors.shape, GGMLQuantizationType.F32, factors))
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise ModelError(
                f"tensor {name!r} has shape {found[name].shape}, config.json says {shape}",
                safetensors_reader.HINT,
                file=model_folder,
            )
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise UnsupportedModel(f"tensor {name!r} has no GGUF name", file=model_folder)
        kind = quantize.tensor_type(
            gguf_name,
            shape,
            type,
            layers=layers,
            tied=tied,
            is_70b=layers == 80 and heads != kv_heads,
            query_groups=heads // kv_heads,
            weighed=bool(weights),
        )
        permuted = heads if ".q_proj." in name else kv_heads if ".k_proj." in name else 0
        offset = family.norm_offset if name.endswith("norm.weight") else 0.0
        permuted = permuted if family.permuted else 0
        planned.append(Planned(gguf_name, shape, kind, found[name], permuted, offset, weights.get(gguf_name)))
    return planned


def _check_names(
    found: Mapping[str, safetensors_reader.Tensor],
    expected: Mapping[str, tuple[int, ...]],
    tied: bool,
    family: str,
    folder: Path,
) -> None:
    """Raises ModelError if a tensor is missing or unknown."""
    # Old checkpoints store the rotary frequencies; a tied model may store the output matrix a second time.
    ignored = {name for name in found if name.endswith("rotary_emb.inv_freq")} | ({"lm_head.weight"} if tied else set())
    if missing := sorted(set(expected) - set(found)):
        raise ModelError(
            f"tensor {missing[0]!r} is missing ({len(missing)} in all)", safetensors_reader.HINT, file=folder
        )
    if unknown := sorted(set(found) - set(expected) - ignored):
        raise ModelError(
            f"tensor {unknown[0]!r} is not part of a {family} model",
            "merge adapters into the model first",
            file=folder,
        )


def _two_embeddings(found: Mapping[str, safetensors_reader.Tensor]) -> bool:
    """Whether an output matrix is stored that is not the embedding."""
    output, embedding = found.get("lm_head.weight"), found.get("model.embed_tokens.weight")
    if output is None or embedding is None:
        return False
    if output.shape != embedding.shape:
        return True
    pieces = ((first, min(ROWS, output.rows - first)) for first in range(0, output.rows, ROWS))
    return not all(np.array_equal(output.read(*piece), embedding.read(*piece)) for piece in pieces)


def _rope_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Tensors of the file that have no counterpart in the model: divisors of the rotary frequencies."""
    rope = rotary.settings(config)
    if rope["rope_type"] == "longrope":
        return {
            f"rope_factors_{name}.weight": np.array(rope[f"{name}_factor"], np.float32) for name in ("long", "short")
        }
    factors = _rope_factors(config)
    return {} if factors is None else {"rope_freqs.weight": factors}


def _rope_factors(config: dict[str, Any]) -> np.ndarray | None:
    """Llama-3.1's divisors of the rotary frequencies (transformers modeling_rope_utils.py, `_compute_llama3_parameters`)."""
    rope = rotary.settings(config)
    if rope["rope_type"] != "llama3":
        return None
    dim = families.head_dim(config)
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    wavelengths = 2 * math.pi * float(rope.get("rope_theta", 10000.0)) ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    smooth = (original / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelengths < original / high, 1.0, np.where(wavelengths > original / low, factor, between))
    return factors.astype(np.float32)


def add_settings(writer: GGUFWriter, config: dict[str, Any], type: str) -> None:
    """Writes the keys `general.*` and those of the architecture."""
    heads, dim = config["num_attention_heads"], families.head_dim(config)
    family, rope = families.find(config, Path()), rotary.settings(config)
    writer.add_type("model")
    writer.add_file_type(quantize.FILE_TYPES[type][0])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(families.context_length(config, family))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(_rotated(config))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_attn_factors(_longrope_scale(config))
    family.settings(writer, config)


def _longrope_scale(config: dict[str, Any]) -> float:
    """The factor by which rotated queries and keys are scaled (transformers modeling_rope_utils.py, `_compute_longrope_parameters`)."""
    rope = rotary.settings(config)
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    original = rope["original_max_position_embeddings"]
    factor = rope.get("factor") or config["max_position_embeddings"] / original
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
