"""Training rows on their way to the device: token ids and labels, padded side by side or packed end to end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harness.prompt import IGNORED


@dataclass
class Rows:
    """Some rows on the host. It has no `.to`, so that code that moves batches to a device skips it."""

    ids: list[np.ndarray]
    labels: list[np.ndarray]
    names: list[str]
    """Of the questions, for messages."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row) for row in self.ids]

    def take(self, positions: Sequence[int]) -> Rows:
        """Some of the rows."""
        return Rows(
            [self.ids[i] for i in positions], [self.labels[i] for i in positions], [self.names[i] for i in positions]
        )


class ByLength(torch.utils.data.Sampler[int]):
    """Rows of similar length together, in an order that depends only on the seed and the epoch.

    The trainer's own sampler draws from the generator of the whole process, as dropout and evaluations do: a training resumed in a later epoch would
    get other rows than the one that was interrupted, and other settings would change the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the loader before each epoch, which counts from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        from transformers.trainer_pt_utils import get_length_grouped_indices

        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


def collate(pad_id: int, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch for the trainer: padded `input_ids`, `labels`, `attention_mask` of shape (rows, longest), and the same `rows` unpadded."""
    rows = Rows(
        [np.asarray(e["input_ids"], dtype=np.int64) for e in examples],
        [np.asarray(e["labels"], dtype=np.int64) for e in examples],
        [e["name"] for e in examples],
    )
    return {**padded(rows, pad_id), "rows": rows}


def padded(rows: Rows, pad_id: int) -> dict[str, torch.Tensor]:
    """Rows side by side, padded on the right."""
    shape = len(rows.ids), max(rows.lengths)
    ids, labels, mask = np.full(shape, pad_id, np.int64), np.full(shape, IGNORED, np.int64), np.zeros(shape, np.int64)
    for i, (row, label) in enumerate(zip(rows.ids, rows.labels, strict=True)):
        ids[i, : len(row)], labels[i, : len(row)], mask[i, : len(row)] = row, label, 1
    return {
        "input_ids": torch.from_numpy(ids),
        "labels": torch.from_numpy(labels),
        "attention_mask": torch.from_numpy(mask),
    }


def packed(rows: Rows, pad_id: int, size: int, segments: int) -> dict[str, torch.Tensor]:
    """Rows end to end in one row of `size` tokens.

    Returns:
        `input_ids`, `labels`, `position_ids` (each row counts from 0) of shape (1, size), and `cu_seqlens`, int32 of shape (segments + 2,): where
        rows begin, then where the padding begins and ends. No row predicts the first token of the next. `at` and `targets`, of half the size if
        that is enough: the positions that predict a labelled token, and the token; padded with IGNORED.
    """
    lengths = rows.lengths
    used = sum(lengths)
    ids, labels, positions = np.full(size, pad_id, np.int64), np.full(size, IGNORED, np.int64), np.zeros(size, np.int64)
    ids[:used] = np.concatenate(rows.ids)
    labels[:used] = np.concatenate(rows.labels)
    positions[:used] = np.concatenate([np.arange(n) for n in lengths])
    positions[used:] = np.arange(size - used)
    ends = np.cumsum([0, *lengths])
    labels[ends[:-1]] = IGNORED
    at = np.flatnonzero(labels[1:] != IGNORED)
    slots = size // 2 if len(at) <= size // 2 else size
    filled = np.zeros(slots, np.int64), np.full(slots, IGNORED, np.int64)
    filled[0][: len(at)], filled[1][: len(at)] = at, labels[at + 1]
    cu_seqlens = np.full(segments + 2, used, np.int32)
    cu_seqlens[: len(ends)] = ends
    cu_seqlens[-1] = size
    return {
        "input_ids": torch.from_numpy(ids)[None],
        "labels": torch.from_numpy(labels)[None],
        "position_ids": torch.from_numpy(positions)[None],
        "cu_seqlens": torch.from_numpy(cu_seqlens),
        "at": torch.from_numpy(filled[0]),
        "targets": torch.from_numpy(filled[1]),
    }
