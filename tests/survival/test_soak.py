"""Answering and scoring many times in one process accumulates nothing; `benchmarks/soak.py` does it fifty times."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.soak import Held
from tests.helpers import chain

pytestmark = pytest.mark.slow


def test_no_scratch_files_accumulate(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = ["data.heldout=6", "predict.max_new_tokens=6", "predict.fidelity_questions=2", "predict.max_batch=2"]
    run, replay, real = soak.prepare(tmp_path, tiny_model, chain.write_questions(tmp_path / "qa.json"), *quick)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    assert soak.grown(soak.soak(run, replay, 5)) == []
    assert soak.grown(soak.soak(run, real, 3), warm_up=1) == []


def test_what_accumulates_is_reported() -> None:
    first, last = Held(100, 10, 3, 2, 0), Held(106, 11, 4, 3, 1)
    assert soak.grown([first, last], warm_up=1) == [
        "memory grew by 6.0%",
        "files: 10, then 11",
        "threads: 3, then 4",
        "processes: 2, then 3",
        "temporary: 0, then 1",
    ]
    assert soak.grown([last, first], warm_up=1) == []
    assert soak.grown([first, Held(104, 10, 3, 2, 0)], warm_up=1) == []
