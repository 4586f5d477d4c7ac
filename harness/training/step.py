"""One optimiser step: rows split by the plan, forward and backward pass, gradients summed over the devices."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from harness.errors import TrainingError
from harness.training import packing
from harness.training.flat_parameters import Flat
from harness.training.plan import BUCKET, PADDING_PARTS, Plan, cut, padded_size
from harness.training.rows import Rows, packed, padded

log = logging.getLogger(__name__)

MODEL_INPUTS = ("input_ids", "labels", "position_ids", "attention_mask")
ComputeLoss = Callable[[Any, dict[str, Any], Any], torch.Tensor]
"""(model, inputs, labelled tokens of the whole step) -> this micro-batch's share of the step's loss."""


@dataclass
class _Graph:
    """A captured micro-batch of one size."""

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, torch.Tensor]
    loss: torch.Tensor
    read: list[torch.Tensor]
    """What the model's modules held at the capture: memory that the graph reads for as long as it lives."""


class Stepper:
    """Processes the rows of whole steps; `step` leaves the gradients in the parameters.

    Args:
        plan: how to split them; tightened when the device runs out of memory.
        longest: tokens of the longest row.
        flat: the trainable parameters and their gradients; graphs and several processes need it.
        rank, world: this process and the number of them: each takes every `world`-th row.
        backward: from a loss to gradients; scales the loss first where 16 bits are fp16.
    """

    def __init__(
        self,
        model: Any,
        plan: Plan,
        *,
        pad_id: int,
        longest: int,
        device: torch.device,
        flat: Flat | None = None,
        rank: int = 0,
        world: int = 1,
        backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
    ):
        self.plan, self.pad_id, self.device, self.rank, self.world = (
            plan,
            pad_id,
            device,
            rank,
            world,
        )
        self._backward = backward
        self.last: list[str] = []
        """Names of the rows of the last step."""
        # Padding is one extra segment of the packed sequence, of up to an eighth of the tokens.
        self._longest = max(padded_size(longest), padded_size(max(plan.tokens, longest)) // PADDING_PARTS, BUCKET)
        self._spaces = packing.namespaces(model) if plan.packed else []
        if self._spaces:
            packing.allow_long_sequences(model)
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._problem = ""
        self._pool = torch.cuda.graph_pool_handle() if plan.graphs else None
        self._items = torch.ones((), device=device)
        self._flat = flat
        if world > 1:
            assert flat is not None
            torch.distributed.broadcast(flat.weights, 0)

    def step(self, compute_loss: ComputeLoss, model: Any, rows: Rows, items: Any) -> torch.Tensor:
        """Loss of the whole step, a scalar on the device without gradient.

        Raises:
            TrainingError: out of memory with a single row.
        """
        self.last = rows.names
        mine = rows.take(range(self.rank, len(rows.ids), self.world))
        while True:
            try:
                loss = self._try(compute_loss, model, mine, items)
                break
            except torch.OutOfMemoryError:
                pass
            # Outside the handler, whose traceback would keep the activations alive.
            self._tighten()
        if self.world > 1:
            assert self._flat is not None
            torch.distributed.all_reduce(self._flat.gradients)
            torch.distributed.all_reduce(loss)
        return loss

    def _try(self, compute_loss: ComputeLoss, model: Any, rows: Rows, items: Any) -> torch.Tensor:
        if self._flat is not None:
            self._flat.clear()
        total = torch.zeros((), device=self.device)
        for group in cut(rows.lengths, self.plan):
            total += self._micro_batch(compute_loss, model, rows.take(group), items)
        return total

    def _micro_batch(self, compute_loss: ComputeLoss, model: Any, rows: Rows, items: Any) -> torch.Tensor:
        if not self.plan.packed:
            return self._forward_backward(compute_loss, model, self._moved(padded(rows, self.pad_id)), items)
        size = padded_size(sum(rows.lengths))
        inputs = packed(rows, self.pad_id, size, max(self.plan.rows, len(rows.ids)))
        if not self.plan.graphs:
            return self._forward_backward(compute_loss, model, self._moved(inputs), items)
        self._items.copy_(torch.as_tensor(items, dtype=torch.float32), non_blocking=True)
        key = size, len(inputs["at"])
        if key not in self._graphs:
            moved = self._moved(inputs)
            # Run the first micro-batch eagerly, which compiles the kernels, and any one whose capture failed.
            if not self._graphs or not self._capture(key, compute_loss, model, moved):
                loss = self._forward_backward(compute_loss, model, moved, self._items)
                if not self._capture(key, compute_loss, model, moved):
                    self.plan = replace(self.plan, graphs=False)
                    log.info(f"steps cannot be captured as CUDA graphs ({self._problem}): continuing without")
                return loss
        found = self._graphs[key]
        for name, tensor in inputs.items():
            found.inputs[name].copy_(tensor.pin_memory(), non_blocking=True)
        found.graph.replay()
        return found.loss

    def _capture(
        self, key: tuple[int, int], compute_loss: ComputeLoss, model: Any, inputs: dict[str, torch.Tensor]
    ) -> bool:
        try:
            if not self._graphs:
                # Capture once into a throw-away graph with its own memory: it loads the kernels that are chosen only while capturing.
                self._record(compute_loss, model, inputs, pool=None)
            self._graphs[key] = self._record(compute_loss, model, inputs, pool=self._pool)
        except RuntimeError as error:
            self._problem = str(error).splitlines()[0]
            return False
        return True

    def _record(self, compute_loss: ComputeLoss, model: Any, inputs: dict[str, torch.Tensor], *, pool: Any) -> _Graph:
        graph = torch.cuda.CUDAGraph()
        # Relaxed mode: loading a kernel's code is allowed during the capture, and is not part of the graph.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="relaxed"):
            loss = self._forward_backward(compute_loss, model, inputs, self._items)
        return _Graph(graph, inputs, loss, packing.held(model))

    def _forward_backward(
        self, compute_loss: ComputeLoss, model: Any, inputs: dict[str, torch.Tensor], items: Any
    ) -> torch.Tensor:
        if not self._spaces:
            known = {name: tensor for name, tensor in inputs.items() if name in MODEL_INPUTS}
            loss = compute_loss(model, known, items)
            self._backward(loss)
            return loss.detach()
        # Also around the backward pass, where recomputed activations need the same attention.
        with packing.attention_within_rows(self._spaces, inputs["cu_seqlens"], self._longest):
            loss = packing.loss(model, inputs, items)
            self._backward(loss)
        return loss.detach()

    def _moved(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    def _tighten(self) -> None:
        if self.plan.rows == 1:
            raise TrainingError(
                "the device is out of memory with a single row",
                "lower train.max_length, or set train.gradient_checkpointing=true",
            )
        self._graphs.clear()
        torch.cuda.empty_cache()
        self.plan = replace(
            self.plan,
            rows=max(self.plan.rows // 2, 1),
            tokens=max(self.plan.tokens // 2, 1),
            graphs=False,
            peak_bytes=0,
        )
        log.info(f"out of memory: repeating the step with {self.plan}")
