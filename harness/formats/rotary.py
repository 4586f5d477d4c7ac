"""Settings of the rotary embedding as transformers 5 reads them from config.json, and which of them llama.cpp computes alike.

Source: transformers modeling_rope_utils.py (`convert_rope_params_to_dict`, `standardize_rope_params`) and the configuration of each family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]

ORIGINAL = "original_max_position_embeddings"
PHI3_ORIGINAL = 4096
"""What transformers takes for Phi-3 if config.json has no ORIGINAL, whatever its rotary settings say."""
KINDS = ("full_attention", "sliding_attention")
"""Kinds of layers, which Gemma 3 rotates differently."""
GEMMA3_THETA = {"full_attention": ("rope_theta", 1e6), "sliding_attention": ("rope_local_base_freq", 1e4)}
"""Kind of layer -> top-level key of its base, and the default."""
CACHE_STEP = 256
"""llama.cpp rounds the cache of a sequence up to a multiple of this, and chooses longrope's factors by the result."""

KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
    "longrope": (ORIGINAL,),
}
"""How rotary embeddings may be scaled, and which positive numbers that needs."""


def settings(config: Config, layers: str = "full_attention") -> dict[str, Any]:
    """`rope_type`, `rope_theta`, `partial_rotary_factor` and what the type needs, for a config that is not `malformed`.

    `rope_scaling` takes precedence over `rope_parameters` (Gemma 3: is added to those of the full layers), and a key that the winner lacks
    is taken from the top level. ORIGINAL at the top level takes precedence over that of the rotary settings.

    Args:
        layers: one of KINDS; matters for Gemma 3 alone.
    """
    if _is(config, "Gemma3"):
        found: dict[str, Any] = {"rope_type": "default"}
        if given := (config.get("rope_parameters") or {}).get(layers):
            found = dict(given)
        if layers == "full_attention":
            found.update(config.get("rope_scaling") or {})
        key, default = GEMMA3_THETA[layers]
    else:
        found = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
        key, default = "rope_theta", 1e4
    found.setdefault("rope_theta", config.get(key, default))
    found.setdefault("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    found.setdefault("rope_type", found.get("type", "default"))
    if found["rope_type"] in ("llama3", "longrope"):
        if ORIGINAL in config or _is(config, "Phi3"):
            found[ORIGINAL] = config.get(ORIGINAL, PHI3_ORIGINAL)
        found.setdefault(ORIGINAL, config.get("max_position_embeddings"))
    return found


def malformed(config: Config) -> str | None:
    """Why transformers cannot read these settings, or reads none of them; None if it can."""
    for key in ("rope_scaling", "rope_parameters"):
        found = config.get(key) or {}
        if not isinstance(found, Mapping):
            return f"its {key} is {found!r}, not a mapping"
        kinds = [found[kind] for kind in KINDS if kind in found]
        if not _is(config, "Gemma3"):
            if kinds:
                return f"its {key} differ by kind of layer, which transformers reads for Gemma 3 alone"
        elif key == "rope_parameters" and found and not kinds:
            return f"its {key} are not given by kind of layer ({', '.join(KINDS)}), as transformers needs them"
        elif not all(kind is None or isinstance(kind, Mapping) for kind in kinds):
            return f"its {key} of a kind of layer are not a mapping"
    return None


def problem(config: Config, head_dim: int) -> str | None:
    """Why llama.cpp would rotate otherwise than transformers, whatever the family; None if it would not."""
    found = settings(config)
    if not positive(found["rope_theta"]):
        return f"its rope_theta is {found['rope_theta']!r}, not a number"
    if not positive(found["partial_rotary_factor"]):
        return f"its partial_rotary_factor is {found['partial_rotary_factor']!r}, not a number"
    if (rotated := int(head_dim * found["partial_rotary_factor"])) % 2:
        return f"it rotates {rotated} elements of each head, and llama.cpp rotates pairs"
    for key in KEYS.get(found["rope_type"], ()):
        if found.get(key) is not None and not positive(found[key]):
            return f"its rotary embedding has {key} {found[key]!r}, not a positive number"
    if found["rope_type"] == "llama3":
        low, high = (found.get(f"{side}_freq_factor") or 0 for side in ("low", "high"))
        if low and high and low >= high:
            return f"its rotary embedding has low_freq_factor {low}, which is not below high_freq_factor {high}"
    if found["rope_type"] == "longrope":
        factor = found.get("attention_factor")
        if factor is not None and not positive(factor):
            return f"its rotary embedding has attention_factor {factor!r}, not a positive number"
        if (found[ORIGINAL] or CACHE_STEP) < CACHE_STEP:
            return f"its {ORIGINAL} is {found[ORIGINAL]}, and llama.cpp's cache has {CACHE_STEP} tokens at least"
    return None


def context_length(config: Config) -> int:
    """Maximum tokens that both rotate alike.

    With longrope transformers takes other factors from the first token on for a longer text; llama.cpp chooses them by the size of its cache.
    """
    longest, found = config["max_position_embeddings"], settings(config)
    return min(longest, found[ORIGINAL] // CACHE_STEP * CACHE_STEP) if found["rope_type"] == "longrope" else longest


def positive(value: object) -> bool:
    """Whether a value of config.json is a number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is(config: Config, family: str) -> bool:
    return str((config.get("architectures") or [""])[0]).startswith(f"{family}For")
