"""The trainable parameters and their gradients, each as views of one tensor: so that one kernel instead of hundreds clears, sums and updates them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

import torch

BLOCK = 256
"""Elements that share a scale in an 8-bit state of bitsandbytes."""
SMALLEST = 4096
"""Elements below which bitsandbytes keeps a parameter's state in 32 bits."""


class Flat:
    """Parameters of one type on one device: their memory is moved into one tensor, and their gradients stay in another.

    CUDA graphs need gradients whose address does not change.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]):
        self.parameters = list(parameters)
        self.weights = torch.cat([p.detach().flatten() for p in self.parameters])
        self.gradients = torch.zeros_like(self.weights)
        for parameter, view in zip(self.parameters, self._views(self.weights), strict=True):
            parameter.data = view
        self._held = list(zip(self.parameters, self._views(self.gradients), strict=True))

    def clear(self) -> None:
        """Zeroes the gradients and reattaches them to the parameters after a trainer's zero_grad."""
        self.gradients.zero_()
        for parameter, view in self._held:
            parameter.grad = view

    def fuse_small_updates(self, optimizer: torch.optim.Optimizer) -> None:
        """Lets an 8-bit AdamW of bitsandbytes that has no states yet update neighbouring parameters as one: the result is the same to the bit.

        bitsandbytes launches a kernel for each parameter and synchronises. Only parameters whose size is a multiple of `BLOCK` are fused, so that no
        block of a state covers two of them; those below `SMALLEST`, whose state is kept in 32 bits, are not.
        """
        group_of = {id(p): n for n, group in enumerate(optimizer.param_groups) for p in group["params"]}
        for group in optimizer.param_groups:
            group["params"] = []
        end = 0
        for (n, joins), run in groupby(
            self.parameters, lambda p: (group_of[id(p)], p.numel() >= SMALLEST and p.numel() % BLOCK == 0)
        ):
            neighbours = list(run)
            begin, end = end, end + sum(p.numel() for p in neighbours)
            if joins:
                neighbours = [torch.nn.Parameter(self.weights[begin:end])]
                self._held.append((neighbours[0], self.gradients[begin:end]))
            optimizer.param_groups[n]["params"] += neighbours

    def _views(self, flat: torch.Tensor) -> Iterator[torch.Tensor]:
        for part, parameter in zip(flat.split([p.numel() for p in self.parameters]), self.parameters, strict=True):
            yield part.view_as(parameter)
