"""What a config needs of memory and disk, from the model's shape (config.json) and the rows' lengths alone.

Training is `harness.training.plan`'s; here are the other stages. Sizes are upper bounds within some percent, so that a machine that passes is
not filled to the last byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import variants
from harness.backends import BATCH_TOKENS, MAX_BATCH
from harness.config import Config, Train
from harness.questions.asking import text_of
from harness.questions.dataset import Row
from harness.training import plan
from harness.training.plan import GIB, Plan, Shape

TOKEN_BYTES = 200
"""Of tokenizer files or of GGUF's vocabulary, for each token; Llama-3's tokenizer.json takes 133."""
CHECKPOINTS = 3
"""Checkpoints on disk at a time: the two that are kept, and the one that is being written."""
RUNTIME = int(1.2 * GIB)
"""Resident memory of Python with torch, transformers and Unsloth before a model is loaded; with CUDA's libraries, `CUDA_RUNTIME`."""
CUDA_RUNTIME = int(3.5 * GIB)
MERGE_BYTES = 14
"""Memory an element of the largest tensor while models are merged or quantised: 16 bits as read and what the check for NaN takes,
twice, since embedding and output are processed at the same time. 13 were measured at Llama-3 8B's width."""
QUANTISED_BITS = 5
"""Mean bits of a weight of a quantised variant. NF4 takes 4.14 (`plan.NF4_BYTES`) and leaves the embeddings in 16, which a large vocabulary makes more."""
LONGEST_ROWS = 4096
"""Number of rows that are tokenised, the longest by characters."""


@dataclass(frozen=True)
class Need:
    """Bytes that a stage takes, at most."""

    what: str
    size_bytes: int


def parameters(shape: Shape) -> int:
    """All weights but the norms', which are a few in a million."""
    return shape.projections + shape.embeddings


def disk(shape: Shape, config: Config, *, downloaded: bool) -> list[Need]:
    """What stays on the disk: the base's weights if they are still to be downloaded, each format, the adapter and its checkpoints."""
    words = TOKEN_BYTES * shape.vocabulary
    needs = [] if downloaded else [Need("base", 2 * parameters(shape) + words)]
    formats = config.export.formats
    for name in [*formats, *([variants.MERGED] if formats and variants.MERGED not in formats else [])]:
        variant = variants.VARIANTS[name]
        bits = shape.projections * variant.bits + shape.embeddings * (variant.embedding_bits or variant.bits)
        needs.append(Need(name, int(bits) // 8 + words))
    trainable = shape.lora(config.train.lora)
    states = plan.STATE_BYTES_8BIT if "8bit" in config.train.optimizer else plan.STATE_BYTES
    needs.append(
        Need(
            "adapter and checkpoints",
            4 * trainable + CHECKPOINTS * (4 + states) * trainable + (1 + CHECKPOINTS) * words,
        )
    )
    return needs


def host_memory(shape: Shape, config: Config, device: str, lengths: Sequence[int]) -> Need:
    """The stage that takes most of the machine's memory."""
    runtime = CUDA_RUNTIME if device == "cuda" else RUNTIME
    largest = max(shape.vocabulary, shape.intermediate) * shape.hidden
    needs = [Need("exporting", runtime + MERGE_BYTES * largest)]
    if device == "cpu":
        # float32 activations where a GPU has 16 bits; the weights that are not in NF4 are float32 too.
        tokens = longest_batch(lengths, config.train)
        peak = plan.peak_bytes(shape, config.train, tokens, checkpointing=bool(config.train.gradient_checkpointing))
        needs.append(Need("training", runtime + 2 * peak))
        if _has_16bit(config):
            needs.append(
                Need(
                    "answering in float32",
                    runtime + 4 * parameters(shape) + _cache(shape, config, lengths, bytes_each=4),
                )
            )
    return max(needs, key=lambda need: need.size_bytes)


def answering(shape: Shape, config: Config, lengths: Sequence[int]) -> tuple[int, int]:
    """Bytes of device memory for the largest variant with (one question, a full batch); a batch that does not fit is halved."""
    bits = 16 if _has_16bit(config) else QUANTISED_BITS
    weights = parameters(shape) * bits // 8
    one = max(lengths, default=0) + config.predict.max_new_tokens
    return weights + _cache_bytes(shape, one, 2), weights + _cache(shape, config, lengths, bytes_each=2)


def training_plan(shape: Shape, settings: Train, lengths: Sequence[int], memory_bytes: int) -> Plan:
    """How training would cut up its steps, padded, on a device with so much free memory; DeviceError, saying what would fit, if it cannot."""
    return plan.make(
        shape, settings, lengths, settings.batch_size, memory_bytes=memory_bytes, packing=False, graphs=False
    )


def longest_batch(lengths: Sequence[int], settings: Train) -> int:
    """Tokens of the longest micro-batch, padding included."""
    rows = settings.micro_batch_size or settings.batch_size
    return rows * max(lengths, default=settings.max_length)


def row_lengths(rows: Iterable[Row], config: Config, tokenizer: Path) -> list[int]:
    """Tokens of the longest training rows: prompt, answer, BOS and EOS, cut at `train.max_length`."""
    from tokenizers import Tokenizer

    texts = sorted((config.prompt.template.replace("{question}", text_of(row)) + row.answer for row in rows), key=len)[
        -LONGEST_ROWS:
    ]
    encoded = Tokenizer.from_file(str(tokenizer)).encode_batch(texts, add_special_tokens=False)
    return [min(len(e.ids) + 2, config.train.max_length) for e in encoded]


def _has_16bit(config: Config) -> bool:
    return any(variant in (variants.BASE, variants.MERGED) for variant in config.predict.variants)


def _cache(shape: Shape, config: Config, lengths: Sequence[int], *, bytes_each: int) -> int:
    """Bytes of keys and values of the largest batch of questions."""
    longest = max(lengths, default=0) + config.predict.max_new_tokens
    # On a GPU automatic sizes are what memory holds; these are the ones to have at least.
    tokens, largest = config.predict.batch_tokens or BATCH_TOKENS, config.predict.max_batch or MAX_BATCH
    return _cache_bytes(shape, min(tokens, largest * longest), bytes_each)


def _cache_bytes(shape: Shape, tokens: int, bytes_each: int) -> int:
    return 2 * shape.layers * shape.key_value * tokens * bytes_each
