"""Compute dtype and attention kernel by device, for training, prediction and the doctor."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Capability = tuple[int, int]
"""CUDA compute capability, such as (9, 0) for an H200 and (7, 5) for a T4."""
Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["sdpa", "flash_attention_2", "xformers"]
AMPERE: Capability = (8, 0)
"""From this compute capability on there are bf16 tensor cores, and flash attention has kernels (flash-attn's, and PyTorch's for rows laid end to end)."""


def capability() -> Capability | None:
    """The lowest compute capability of the visible CUDA devices; None without any."""
    import torch

    if not torch.cuda.is_available():
        return None
    return min(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))


def compute_dtype_name(device: str, capability: Capability | None) -> Dtype:
    """float32 on the CPU; on CUDA bfloat16, or float16 for cards without bf16 units.

    By the compute capability, because `torch.cuda.is_bf16_supported()` also says yes where bf16 is emulated, many times slower than fp16.
    """
    if device != "cuda":
        return "float32"
    return "bfloat16" if capability is not None and capability >= AMPERE else "float16"


def compute_dtype(device: str) -> torch.dtype:
    """`compute_dtype_name` as torch's, for the devices of this machine."""
    import torch

    return getattr(torch, compute_dtype_name(device, capability() if device == "cuda" else None))


def attention(
    device: str,
    capability: Capability | None,
    *,
    engine: Literal["unsloth", "transformers"] = "transformers",
    installed: Callable[[str], bool] = lambda name: find_spec(name) is not None,
) -> Attention:
    """The attention kernel: flash-attn where it is installed and the card has its kernels, otherwise PyTorch's own (sdpa).

    Args:
        engine: Unsloth takes xformers, if it is installed, before sdpa; transformers has no such kernel. For transformers the result is its
            `attn_implementation`.
        installed: returns whether a package can be imported.
    """
    if device != "cuda":
        return "sdpa"
    if capability is not None and capability >= AMPERE and installed("flash_attn"):
        return "flash_attention_2"
    return "xformers" if engine == "unsloth" and installed("xformers") else "sdpa"


def wants_xformers(capability: Capability | None) -> bool:
    """Whether the set-up installs xformers: for cards before Ampere, for which neither flash-attn nor sdpa has a flash kernel."""
    return capability is not None and capability < AMPERE
