"""Keys and values of a batch at fixed memory addresses, as a CUDA graph requires."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class BatchLayout(Protocol):
    """A batch as the memory sees it."""

    rows: int
    length: int
    """Columns: tokens of a row."""
    column: torch.Tensor
    """Of the next token of every row; shape (1,), on the device."""


class Memory:
    """Every layer's keys and values: flat memory that a batch of any size views as (rows, heads, columns, width).

    A batch's first rows lie in the same place whatever the number of its rows, so moving rows together copies within it.
    """

    def __init__(self, layers: int):
        self.count = layers
        self.reserve(0)

    def reserve(self, positions: int) -> None:
        """Allocates `positions` (rows times columns); earlier contents are lost, and their memory is freed at once.

        Reallocates in place: the cycle between layers and `Memory` would keep a replaced one alive until the garbage collector runs.
        """
        self.positions = positions
        self.state: Any = None
        self.layers = [Layer(self) for _ in range(self.count)]
        self.cache = Cache(layers=list(self.layers))

    def begin_write(self, state: BatchLayout, rows: slice | None = None, columns: slice | None = None) -> None:
        """Selects what is written next: prompts into these rows and columns, or (None) one token into the state's column."""
        self.state, self.slice = state, None if rows is None else (rows, slice(None), columns)

    def view(self, flat: torch.Tensor, state: BatchLayout) -> torch.Tensor:
        """The part of `flat` (positions, heads, width) that a state uses, as (rows, heads, columns, width)."""
        _, heads, width = flat.shape
        return flat[: state.rows * state.length].view(state.rows, heads, state.length, width)

    def write(self, flat: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Writes `new` (rows, heads, tokens, width) and returns what its queries may see."""
        view = self.view(flat, self.state)
        if self.slice is not None:
            view[self.slice] = new
            return new
        return view.index_copy_(2, self.state.column, new)

    def move(self, old: BatchLayout, new: BatchLayout, index: torch.Tensor) -> None:
        """Copies rows of the old state to the new one's beginning."""
        for layer in self.layers:
            for flat in (layer.keys, layer.values):
                if flat is not None:
                    self.view(flat, new).copy_(self.view(flat, old)[index])


class Layer(CacheLayerMixin):
    """One layer's share of `Memory`, as transformers' models write to it."""

    is_compileable = True

    def __init__(self, memory: Memory):
        super().__init__()
        self.memory = memory

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Takes the memory, of the shape and dtype of what is written first."""
        # Zero the memory: a masked column is multiplied by 0, and 0 times NaN is NaN.
        self.keys, self.values = (
            s.new_zeros((self.memory.positions, s.shape[1], s.shape[3])) for s in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes new keys and values (rows, heads, tokens, width); returns what their queries may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        return self.memory.write(self.keys, key_states), self.memory.write(self.values, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Unused: masks are passed in every call."""
        return self.memory.state.length, 0

    def get_seq_length(self) -> int:
        """Unused: positions are passed in every call."""
        return 0

    def get_max_length(self) -> int:
        """Columns."""
        return self.memory.state.length
