"""Tests that need a CUDA device: pytest -m gpu tests/gpu, or make test GPU=1."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
