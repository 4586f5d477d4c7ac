"""Questions from a data set of the hub: the same reader on folders laid out like one, and one line where the hub is out of reach."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.config import Data
from harness.errors import DataError
from harness.questions import dataset
from harness.questions.readers import hub

datasets = pytest.importorskip("datasets")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data set with a split for training and one for testing."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "data set"
    path.mkdir()
    for split in ("train", "test"):
        rows = [{"instruction": f"Who {split}s {at}?", "input": "", "output": f"He {at}"} for at in range(3)]
        (path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    yield path
    hub._load.cache_clear()
    dataset._hub_rows.cache_clear()


def test_a_split_is_read_and_said_and_loaded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: loaded.append(args) or load(*args))
    train, test = (dataset.read(f"hub:{folder}{split}", Data()) for split in ("", ":test"))
    assert [row.question for row in train.rows] == [f"Who trains {at}?" for at in range(3)]
    assert [row.answer for row in test.rows] == [f"He {at}" for at in range(3)]
    assert "alpaca: `instruction` + `input` is the question" in test.summary
    assert "(hub data set, split test); 3 rows" in test.summary
    assert dataset.source_sha256(f"hub:{folder}") != dataset.source_sha256(f"hub:{folder}:test")
    assert loaded == [(str(folder), None)]


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("hub:", ["names no data set", "hub:owner/name"]),
        ("hub:{folder}:validation", ["has no split 'validation': found train, test", "name one of these"]),
        ("hub:{folder}/absent", ["cannot be loaded from the hub", "check the name, the network"]),
    ],
)
def test_what_cannot_be_read_is_one_line(folder: Path, source: str, parts: list[str]) -> None:
    with pytest.raises(DataError) as error:
        dataset.read(source.format(folder=folder), Data())
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_a_hub_out_of_reach_and_a_config_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*args: Any) -> None:
        asked.append(args)
        if args[1] is None:
            raise ValueError(
                "Config name is missing. Please pick one among the available configs: ['main', 'socratic']"
            )
        raise ConnectionError("Couldn't reach the Hub\nafter 5 tries")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="has several configs: main, socratic; name one, as in hub:owner/maths/CONFIG"):
        dataset.read("hub:owner/maths", Data())
    with pytest.raises(DataError, match=r"cannot be loaded from the hub \(ConnectionError: Couldn't reach the Hub\)"):
        dataset.read("hub:owner/maths/main:test", Data())
    assert asked == [("owner/maths", None), ("owner/maths", "main")]
