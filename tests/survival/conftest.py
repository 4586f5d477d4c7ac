"""The run that the tests of this package damage, kill and fill up; made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config import Config
from harness.storage import RunFolder
from tests.helpers import chain


@pytest.fixture(scope="session")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Config]:
    """A finished run and its config; copy it before changing anything."""
    return chain.run_all(tmp_path_factory.mktemp("whole"), tiny_model)
