"""Drop-in faster operations: grouped attention of a single query, fused RMSNorm, NF4 dequantisation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

GROUPED = "harness_grouped_sdpa"
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""cuDNN's is left out: it builds a plan for each shape."""


def group_attention(model: Any) -> None:
    """Has a transformers model whose attention is PyTorch's (sdpa) use `grouped_attention`."""
    if model.config.get_text_config(decoder=True)._attn_implementation == "sdpa":
        AttentionInterface.register(GROUPED, grouped_attention)
        AttentionMaskInterface.register(GROUPED, sdpa_mask)
        model.set_attn_implementation(GROUPED)


def grouped_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers asks for it; for a single query per row, the heads of a group become queries of their shared key-value head.

    The masked kernels know no groups: transformers would copy keys and values per query head, four times the memory traffic for Llama-3 8B.
    """
    with sdpa_kernel(KERNELS) if query.is_cuda else nullcontext():
        return _grouped_attention(module, query, key, value, attention_mask, **options)


def _grouped_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    groups = getattr(module, "num_key_value_groups", 1)
    if query.shape[2] != 1 or groups == 1 or attention_mask is None or options.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    rows, heads, _, _ = query.shape
    grouped = query.reshape(rows, heads // groups, groups, -1)
    found = functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=attention_mask, scale=options.get("scaling")
    )
    return found.reshape(rows, 1, heads, -1), None


def dequantise(model: Any) -> int:
    """Replaces bitsandbytes' 4-bit layers by plain ones with the same weights in the compute dtype; returns how many.

    bitsandbytes does the same before each product of more than a few rows, again at every step: the numbers are the same, and the memory that
    of a 16-bit model.
    """
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Linear4bit

    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, Linear4bit)
    ]
    for parent, name, child in found:
        dtype = child.compute_dtype or model.dtype
        with torch.device("meta"):
            plain: Any = torch.nn.Linear(child.in_features, child.out_features, bias=False)
        weight: Any = child.weight
        plain.weight = torch.nn.Parameter(
            dequantize_4bit(weight.data, weight.quant_state).to(dtype), requires_grad=False
        )
        plain.bias = None if child.bias is None else torch.nn.Parameter(child.bias.to(dtype), requires_grad=False)
        setattr(parent, name, plain)
    return len(found)


def quantised_elements(model: Any) -> int:
    """Weights held in bitsandbytes' 4 bits."""
    from bitsandbytes.nn.modules import Linear4bit

    return sum(child.in_features * child.out_features for child in model.modules() if isinstance(child, Linear4bit))


def fuse_norms(model: Any) -> int:
    """Has RMSNorm layers computed by one kernel instead of eight; returns how many.

    A layer is taken only if the kernel gives what its own forward gives (Gemma's, for one, add 1 to the weight).
    """
    fused = 0
    for module in model.modules():
        eps, weight = getattr(module, "variance_epsilon", None), getattr(module, "weight", None)
        if eps is None or weight is None or not type(module).__name__.endswith("RMSNorm"):
            continue
        forward: Callable[[torch.Tensor], torch.Tensor] = _fused_norm(weight, eps)
        probe = torch.linspace(-3, 3, 2 * weight.numel(), device=weight.device).to(weight.dtype).view(2, -1)
        if torch.allclose(forward(probe).float(), module(probe).float(), rtol=2**-6, atol=2**-6):
            module.forward = forward
            fused += 1
    return fused


def _fused_norm(weight: torch.Tensor, eps: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda hidden_states: functional.rms_norm(hidden_states, weight.shape, weight, eps)
