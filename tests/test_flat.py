"""Parameters in one tensor: 8-bit AdamW on the fused tensor equals 8-bit AdamW on each."""

from __future__ import annotations

import pytest

from harness.training.flat_parameters import Flat
from tests.helpers.flat_updates import adamw, compare, parameters


def test_fused_parameters_take_the_same_steps() -> None:
    compare("cpu")


def test_neighbours_of_one_group_are_fused() -> None:
    of = parameters("cpu")
    optimizer = adamw(of)
    Flat(of).fuse_small_updates(optimizer)
    assert [[p.numel() for p in group["params"]] for group in optimizer.param_groups] == [
        [16384, 300, 4800, 4096, 2048, 12288],
        [4096],
    ]


def test_a_state_block_over_two_parameters_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why a parameter of 4,800 elements is not fused."""
    monkeypatch.setattr("harness.training.flat_parameters.BLOCK", 4)
    with pytest.raises(AssertionError, match=r"^\(1, 3\)"):
        compare("cpu")
