"""The models that faults are injected into."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.formats import gguf
from tests.helpers import small_run


@pytest.fixture(scope="session")
def files(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of a `Bench`, by field."""
    root = tmp_path_factory.mktemp("pitfalls")
    gguf.write(tiny_model, root / "f16.gguf", "f16")
    return {
        "model": tiny_model,
        "f16": root / "f16.gguf",
        "zero": small_run.save_adapter(root / "zero", tiny_model, std=0.0),
        "adapter": small_run.save_adapter(root / "lora", tiny_model, std=0.5),
    }
