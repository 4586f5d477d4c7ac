"""Fixtures that several test modules share."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.helpers.models import save_model

# Before torch is loaded. Two processes of tests share the cores: a thread that waits gives its core away at once (see harness/models/openmp.py).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A change is judged on the same examples everywhere. `HYPOTHESIS_PROFILE=explore make test` looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Removes the log handler that a verb run in this process has added, so that it does not print the log of later tests."""
    logger = logging.getLogger("harness")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama-3 model of 1.2 million parameters that knows seven sentences by heart (`tests.helpers.models.CORPUS`), and its tokenizer."""
    return save_model(tmp_path_factory.mktemp("tiny"), steps=40)


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of an invented run of 60 questions with its report; tests only read it."""
    from harness.config import Config
    from harness.stages import report
    from tests.helpers.report_fixture import write_run

    run = write_run(tmp_path_factory.mktemp("report"), questions=60)
    report.run(run, Config())
    return run


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes are forked from this one, so that they have its backends."""
    from harness.prediction import runners

    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(runners.multiprocessing, "get_context", lambda _: context)
