"""How one optimiser step is split into micro-batches on a device: a pure choice from the model's shape, the rows' lengths and the free memory.

The recipe states the rows of a step; the plan decides how many tokens pass through the model at once, whether activations are kept or
computed again, whether rows are padded or laid end to end, and whether the step is replayed as a CUDA graph. None of it changes the step:
the same rows, and one loss over all of their labelled tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.config import Lora, Train
from harness.errors import DeviceError

GIB = 2**30
BUCKET = 128
"""Tokens: packed micro-batches are padded to a multiple of it, long ones to a multiple of more: see `padded_size`."""
PADDING_PARTS = 8
"""A long micro-batch is padded by less than one part in this many; a short one by less than `BUCKET` tokens."""
RESERVE = 0.9
"""Share of the free memory that a plan may use; the rest is fragmentation."""
WORK_BYTES = GIB // 4
"""cuBLAS workspaces and the dequantised copy of one weight; CUDA's own context is not counted among the free memory."""
LOGIT_TOKENS = 4096
"""Tokens of a micro-batch beyond this number add nothing to the estimated size of the logits."""
LABELLED_SHARE = 2
"""One token in this many is assumed to need logits, since only answers carry labels."""
NF4_WEIGHT = 4 / 8
"""Bytes of a weight in NF4 itself: 4 bits (Dettmers et al. 2023, QLoRA, section 3)."""
NF4_SCALES = 1.05 / 64
"""Bytes of a weight's share of the scales: with double quantisation one byte for each block of 64 weights, and 4 for each 256 of these bytes
(ibid.), which add 1.6% and are counted as 5%."""
NF4_MARGIN = 0.001
"""Bytes a weight for what is not counted: shapes, code tables, alignment."""
NF4_BYTES = NF4_WEIGHT + NF4_SCALES + NF4_MARGIN
"""Bytes of a weight in NF4 with double quantisation, an upper bound: 4.139 bits, where the paper has 4.127."""
ADAPTER_BYTES = 4 + 4
"""Bytes of a trainable weight and of its gradient, both in float32."""
STATE_BYTES, STATE_BYTES_8BIT = 8, 2
"""Bytes that Adam's two moments take for a trainable weight, in 32 and in 8 bits."""
LEAST_SHARE = 4
"""A micro-batch below this fraction of the step's tokens costs more in reading the weights again than computing activations twice."""
LOGIT_BYTES = 14
"""Bytes a logit takes on its way to the loss and back: bf16, f32, its softmax, its gradient."""


@dataclass(frozen=True)
class Shape:
    """The size of a model, from its config.json."""

    hidden: int
    layers: int
    intermediate: int
    key_value: int
    """Width of the key (and of the value) projection."""
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """The shape in a Llama-like config.json; missing optional keys default to Llama's (`intermediate_size` is 4 x hidden)."""
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        head = int(config.get("head_dim") or hidden // heads)
        return cls(
            hidden=hidden,
            layers=int(config["num_hidden_layers"]),
            intermediate=int(config.get("intermediate_size", 4 * hidden)),
            key_value=head * int(config.get("num_key_value_heads") or heads),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
        )

    @property
    def projections(self) -> int:
        """Weights of the linear layers, which NF4 packs."""
        return self.layers * (2 * self.hidden * (self.hidden + self.key_value) + 3 * self.hidden * self.intermediate)

    @property
    def embeddings(self) -> int:
        """Weights of the embedding and the head, which stay in 16 bits."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    def lora(self, lora: Lora) -> int:
        """Trainable weights: r (in + out) of each projection that has an adapter."""
        sides = {
            "q_proj": 2 * self.hidden,
            "k_proj": self.hidden + self.key_value,
            "v_proj": self.hidden + self.key_value,
            "o_proj": 2 * self.hidden,
            "gate_proj": self.hidden + self.intermediate,
            "up_proj": self.hidden + self.intermediate,
            "down_proj": self.hidden + self.intermediate,
        }
        return self.layers * lora.r * sum(sides.get(name, 2 * self.hidden) for name in lora.target_modules)

    def token_bytes(self, *, checkpointing: bool) -> int:
        """Bytes that a token's activations take until its backward pass, in 16 bits.

        Kept: the inputs of both norms and of all projections, queries, keys, values, the attention's and the feed-forward's outputs: 4.4 MB a
        token at Llama-3 8B. Computed again: one hidden state a layer, and one layer's activations at a time, which `resident_bytes` counts.
        """
        kept = 6 * self.hidden + 2 * (self.hidden + 2 * self.key_value) + 3 * self.intermediate
        return 2 * self.layers * (self.hidden if checkpointing else kept)


@dataclass(frozen=True)
class Plan:
    """How a device takes its rows of a step."""

    rows: int
    """At most so many rows at once."""
    tokens: int
    """Most tokens of a micro-batch, padding included; a single longer row is a micro-batch of its own."""
    checkpointing: bool = False
    packed: bool = False
    """Rows end to end in one sequence, without padding; attention stays within a row."""
    graphs: bool = False
    """Each size of micro-batch is captured once as a CUDA graph and replayed."""
    peak_bytes: int = 0
    """Estimated; 0: not estimated."""

    def __str__(self) -> str:
        layout = "packed" if self.packed else "padded"
        kept = "activations computed again" if self.checkpointing else "activations kept"
        graphs = ", CUDA graphs" if self.graphs else ""
        estimated = f", about {self.peak_bytes / GIB:.1f} GiB" if self.peak_bytes else ""
        return f"at most {self.rows} rows or {self.tokens} tokens at once, {layout}, {kept}{graphs}{estimated}"


def resident_bytes(shape: Shape, settings: Train) -> int:
    """Bytes on the device before the first row: weights, adapter with its gradients and optimiser states, work space."""
    weights = shape.projections * (NF4_BYTES if settings.load_in_4bit else 2) + shape.embeddings * 2
    states = STATE_BYTES_8BIT if "8bit" in settings.optimizer else STATE_BYTES
    return int(weights + shape.lora(settings.lora) * (ADAPTER_BYTES + states) + WORK_BYTES)


def peak_bytes(shape: Shape, settings: Train, tokens: int, *, checkpointing: bool) -> int:
    """Peak bytes of a micro-batch of this many tokens."""
    logits = min(tokens, LOGIT_TOKENS) * shape.vocabulary * LOGIT_BYTES // LABELLED_SHARE
    one_layer = tokens * shape.token_bytes(checkpointing=False) // shape.layers if checkpointing else 0
    return (
        resident_bytes(shape, settings) + tokens * shape.token_bytes(checkpointing=checkpointing) + logits + one_layer
    )


def padded_size(tokens: int) -> int:
    """The size that a packed micro-batch is padded to: an eighth of padding at most, so that few CUDA graphs serve all sizes."""
    power_of_two = 1 << max(tokens.bit_length() - 1, 0)  # the largest that is not above `tokens`
    step = max(BUCKET, power_of_two // PADDING_PARTS)
    return -(-tokens // step) * step


def cut(lengths: Sequence[int], plan: Plan) -> list[list[int]]:
    """Rows, in their order, as micro-batches within the plan's limits."""
    groups: list[list[int]] = []
    for row, length in enumerate(lengths):
        if groups and len(groups[-1]) < plan.rows:
            together = [lengths[i] for i in groups[-1]] + [length]
            tokens = sum(together) if plan.packed else max(together) * len(together)
            if tokens <= plan.tokens:
                groups[-1].append(row)
                continue
        groups.append([row])
    return groups


def make(
    shape: Shape | None,
    settings: Train,
    lengths: Sequence[int],
    rows: int,
    *,
    memory_bytes: int | None,
    packing: bool,
    graphs: bool,
) -> Plan:
    """The fastest plan that fits.

    Args:
        lengths: tokens of every training row; rows: of a step on this device.
        shape: needed where memory is planned.
        memory_bytes: memory of the device that may be used in total; None on the CPU, where all rows are one micro-batch.
        packing: whether this model and device can take rows end to end; graphs: whether steps can be captured.
    Raises:
        DeviceError: not even the longest row fits with its activations computed again.
    """
    rows = min(rows, settings.micro_batch_size or rows)
    longest = sorted(lengths)[-rows:]
    packed = packing and settings.packing is not False
    most = sum(longest) if packed else longest[-1] * rows
    graphs = graphs and packed and settings.cuda_graphs is not False
    if memory_bytes is None or shape is None:
        return Plan(rows, most, bool(settings.gradient_checkpointing), packed)
    room = min(memory_bytes * RESERVE, (settings.memory_limit_gib or float("inf")) * GIB)
    tries = [False, True] if settings.gradient_checkpointing is None else [settings.gradient_checkpointing]
    for checkpointing in tries:
        least = longest[-1] if checkpointing is tries[-1] else min(most, max(longest[-1], most // LEAST_SHARE))
        fitting = _largest(shape, settings, least, most, room, checkpointing=checkpointing)
        if fitting is not None:
            estimate = peak_bytes(shape, settings, fitting, checkpointing=checkpointing)
            return Plan(rows, fitting, checkpointing, packed, graphs and not checkpointing, estimate)
    needed = peak_bytes(shape, settings, longest[-1], checkpointing=tries[-1])
    raise DeviceError(
        f"training needs about {needed / GIB:.1f} GiB of device memory and {room / GIB:.1f} are available",
        "use a smaller model or a larger GPU, lower train.max_length"
        + ("" if settings.load_in_4bit else ", or set train.load_in_4bit=true")
        + ("" if tries[-1] else ", or leave train.gradient_checkpointing to the planner"),
    )


def _largest(shape: Shape, settings: Train, least: int, most: int, room: float, *, checkpointing: bool) -> int | None:
    """The most tokens between `least` and `most` whose peak fits the room."""

    def fits(tokens: int) -> bool:
        return peak_bytes(shape, settings, tokens, checkpointing=checkpointing) <= room

    if not fits(least):
        return None
    low, high = least, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
