"""AdamW in 8 bits on parameters in one tensor and on the same parameters separately."""

from __future__ import annotations

import io
from typing import Any

import torch
from bitsandbytes.optim.adamw import AdamW

from harness.training.flat_parameters import Flat

SHAPES = [(16, 512), (512, 16), (3, 100), (16, 300), (16, 256), (64, 64), (8, 256), (128, 96)]
"""Whole blocks twice, too small, not whole, whole twice, too small for 8 bits, whole."""


DECAYED = (0, 1, 2, 3, 4, 6, 7)


STEPS = 6


def parameters(device: str) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in SHAPES]


def adamw(of: list[torch.nn.Parameter]) -> AdamW:
    groups: Any = [{"params": [of[n] for n in DECAYED], "weight_decay": 0.1}, {"params": [of[5]], "weight_decay": 0.0}]
    return AdamW(groups, lr=1e-2, optim_bits=8)


def gradients(step: int, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [(torch.randn(shape, generator=generator) * 10.0 ** (n - 4)).to(device) for n, shape in enumerate(SHAPES)]


def compare(device: str) -> None:
    """Asserts that fused parameters take the same steps to the bit, before and after a checkpoint."""
    alone, together = parameters(device), parameters(device)
    apart, flat = adamw(alone), Flat(together)
    joined = adamw(together)
    flat.fuse_small_updates(joined)
    for step in range(STEPS):
        if step == STEPS // 2:
            saved = io.BytesIO()
            torch.save(joined.state_dict(), saved)
            saved.seek(0)
            joined = adamw(together)
            flat = Flat(together)
            flat.fuse_small_updates(joined)
            joined.load_state_dict(torch.load(saved, weights_only=True))
        flat.clear()
        for parameter, other, gradient in zip(alone, together, gradients(step, device), strict=True):
            parameter.grad = gradient
            assert other.grad is not None and not other.grad.any()
            other.grad += gradient
        apart.step()
        joined.step()
        for n, (parameter, other) in enumerate(zip(alone, together, strict=True)):
            assert torch.equal(parameter, other), (step, n)
            other.grad = None  # as a trainer's zero_grad leaves it
    assert not any(torch.equal(new, old) for new, old in zip(alone, parameters(device), strict=True))
