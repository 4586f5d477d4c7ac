"""The models of the shipped configs, by name, so that the doctor can describe them before anything is downloaded."""

from __future__ import annotations

import os
from typing import Any

from harness.config import Model
from harness.errors import ModelError
from harness.models import base_model
from harness.training.plan import Shape

GATED = ("meta-llama/", "mistralai/Mistral-7B-Instruct", "google/gemma")
"""Beginnings of names whose licence has to be accepted on the hub first."""


def _sizes(
    hidden: int, layers: int, heads: int, key_value_heads: int, intermediate: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
    } | more


LLAMA_8B = _sizes(4096, 32, 32, 8, 14336, 128256)
SIZES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": _sizes(576, 30, 9, 3, 1536, 49152, tie_word_embeddings=True),
    "meta-llama/Meta-Llama-3-8B": LLAMA_8B,
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA_8B,
    "unsloth/llama-3-8b": LLAMA_8B,
    "meta-llama/Llama-3.2-3B-Instruct": _sizes(3072, 28, 24, 8, 8192, 128256, tie_word_embeddings=True),
    "Qwen/Qwen3-4B": _sizes(2560, 36, 32, 8, 9728, 151936, head_dim=128, tie_word_embeddings=True),
    "mistralai/Mistral-7B-Instruct-v0.3": _sizes(4096, 32, 32, 8, 14336, 32768),
    "microsoft/Phi-4-mini-instruct": _sizes(3072, 32, 24, 8, 8192, 200064, tie_word_embeddings=True),
    "google/gemma-3-4b-it": _sizes(2560, 34, 8, 4, 10240, 262208, head_dim=256, tie_word_embeddings=True),
}
"""Of the models' public config.json (of Gemma's text part)."""


def shape(model: Model) -> Shape | None:
    """The size of a shipped config's model, without its files; None for any other."""
    try:
        found = SIZES.get(base_model.hub_name(model))
    except ModelError:
        return None
    return Shape.of(found) if found else None


def gate(model: Model) -> tuple[str, str] | None:
    """(problem, fix) for a model whose licence has to be accepted first; None for any other."""
    name = model.path.removeprefix("hub:")
    if not name.startswith(GATED):
        return None
    accept = f"accept its licence on https://huggingface.co/{name}"
    if _has_token():
        return "gated; a token is set", f"{accept}, if that is not done yet"
    return "gated, and neither HF_TOKEN is set nor a login kept", f"{accept}, then set HF_TOKEN or run `hf auth login`"


def _has_token() -> bool:
    """Whether the hub's library would send a token, which itself is never read."""
    if os.environ.get("HF_TOKEN"):
        return True
    try:
        from huggingface_hub import get_token
    except ImportError:
        return False
    return bool(get_token())
