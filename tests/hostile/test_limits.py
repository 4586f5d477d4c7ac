"""Files made to exhaust memory, the stack or time: refused with one line, within a bounded address space."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import storage
from harness.errors import DataError
from harness.questions import dataset

PROJECT = Path(__file__).parents[2]
GIB = 2**30
READ = """
import json, resource, sys
from harness import config
from harness.gating import baseline
from harness.storage import read_records
from harness.errors import HarnessError
from harness.questions import dataset
from harness.records import Prediction
from pathlib import Path
readers = {
    "qa": dataset.load,
    "config": lambda p: config.load(str(p)),
    "baseline": baseline.read,
    "predictions": lambda p: read_records(p, Prediction),
}
for kind, path, room in json.loads(sys.argv[1]):
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + room, resource.RLIM_INFINITY))
    try:
        readers[kind](Path(path))
        outcome = "taken"
    except HarnessError as error:
        outcome = str(error)
    except MemoryError:
        outcome = "out of memory"
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(outcome)
"""
"""Reads files in one process, each with so many bytes of address space above what the process has."""


def sparse(path: Path, head: bytes, size: int) -> None:
    """A sparse file of this size: NULs, which read as one endless line."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


def grown(path: Path, head: str, part: str, count: int, tail: str = "") -> None:
    path.write_text(head + part * count + tail)


CASES: dict[str, tuple[str, str, Callable[[Path], object], int, str]] = {
    # reader, file, how it is made, room to read it in (bytes), what the line says
    "a QA line of 2 GB": (
        "qa",
        "qa.jsonl",
        lambda p: sparse(p, b'{"question": "', 2 * GIB),
        GIB // 4,
        "is 2,147 MB; keep a QA file under 100 MB",
    ),
    "a QA cell of 1 GB": ("qa", "qa.csv", lambda p: sparse(p, b"question,answer\n", GIB), GIB // 4, "is 1,074 MB"),
    "a baseline of 2 GB": ("baseline", "b.json", lambda p: sparse(p, b"{", 2 * GIB), GIB // 2, "has more than 100 MB"),
    "a config of 2 GB": (
        "config",
        "c.yaml",
        lambda p: sparse(p, b"a: ", 2 * GIB),
        GIB // 8,
        "has more than 100,000 characters",
    ),
    "a prediction line of 2 GB": (
        "predictions",
        "p.jsonl",
        lambda p: sparse(p, b'{"id": "', 2 * GIB),
        GIB // 8,
        "row 1: has more than 16 MB in one line",
    ),
    "a QA file nested 100,000 deep": (
        "qa",
        "qa.json",
        lambda p: grown(p, "", "[", 100_000),
        GIB // 8,
        "more than 32 levels of nesting",
    ),
    "QA lines nested 100,000 deep": (
        "qa",
        "qa.jsonl",
        lambda p: grown(p, "", '{"x":', 100_000),
        GIB // 8,
        "more than 32 levels of nesting",
    ),
    "a baseline nested 100,000 deep": (
        "baseline",
        "b.json",
        lambda p: grown(p, "", '{"x":', 100_000),
        GIB // 8,
        "more than 64 levels of nesting",
    ),
    "a prediction nested 100,000 deep": (
        "predictions",
        "p.jsonl",
        lambda p: grown(p, "", '{"x":', 100_000),
        GIB // 8,
        "row 1: is damaged",
    ),
    "30 MB of empty lists": (
        "qa",
        "qa.json",
        lambda p: grown(p, "[[]", ",[]", 10_000_000, "]"),
        GIB // 4,
        "row 1: is a list",
    ),
    "30 MB of empty lists in a row": (
        "qa",
        "qa.json",
        lambda p: grown(p, '[{"question": "Q?", "answer": "A", "x": [[]', ",[]", 10_000_000, "]}]"),
        GIB // 4,
        "row 1: has more than 1,000,000 characters",
    ),
    "30 MB of empty lines": (
        "qa",
        "qa.jsonl",
        lambda p: grown(p, '{"question": 1, "answer": "A"}', "\n", 30_000_000, "x"),
        GIB // 4,
        "row 1: question is a number",
    ),
    "a million columns": (
        "qa",
        "qa.csv",
        lambda p: grown(p, "question,answer", ",x", 1_000_000, "\n" + "Q?,A\n" * 1000),
        GIB // 4,
        "line 1",
    ),
    "a million empty columns": (
        "qa",
        "qa.csv",
        lambda p: grown(p, "question,answer", ",", 900_000, "\n"),
        GIB // 4,
        "has 900,002 columns",
    ),
    "a number of 10,000 digits": (
        "qa",
        "qa.json",
        lambda p: grown(p, '[{"x": ', "9", 10_000, "}]"),
        GIB // 8,
        "is not a number that JSON knows",
    ),
    "a key of 1,000 equal keys": (
        "qa",
        "qa.jsonl",
        lambda p: grown(p, "{", '"a": 1, ', 1000, '"a": 1}'),
        GIB // 8,
        "the key 'a' occurs twice",
    ),
    "quotes without end": (
        "qa",
        "qa.csv",
        lambda p: grown(p, 'question,answer\n"', "x\n", 5_000_000),
        GIB // 4,
        "field larger than field limit",
    ),
}


def read(*files: tuple[str, Path, int]) -> list[str]:
    """The outcome of reading each of these (reader, file, room), in order."""
    asked = json.dumps([[kind, str(path), room] for kind, path, room in files])
    done = subprocess.run([sys.executable, "-c", READ, asked], cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Case -> the outcome of reading it."""
    files = []
    for kind, file, make, room, _ in CASES.values():
        path = tmp_path_factory.mktemp("limits") / file
        make(path)
        files.append((kind, path, room))
    return dict(zip(CASES, read(*files), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_is_refused_in_a_bounded_address_space(outcome: dict[str, str], name: str) -> None:
    assert CASES[name][-1] in outcome[name] and "; " in outcome[name]


def test_what_is_taken_needs_so_many_times_its_size(tmp_path: Path) -> None:
    """Rows of empty lists are what Python's objects blow up most."""
    row = json.dumps({"question": "Q?", "answer": "A", "x": [[]] * 100_000}, separators=(",", ":"))
    path = tmp_path / "qa.jsonl"
    path.write_text(row + "\n")
    assert read(("qa", path, 100 * len(row)), ("qa", path, 5 * len(row))) == ["taken", "out of memory"]


def test_equal_rows_are_named_in_linear_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_text('{"question": "Q?", "answer": "A"}\n' * 5_000)
    began = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    rows = dataset.load(path)
    assert len({row.id for row in rows}) == 5_000 and rows[-1].id.endswith("-5000")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - began < 3
    monkeypatch.setattr(dataset, "MAX_ROWS", 4_999)
    with pytest.raises(DataError, match="has more than 4,999 rows; sample it"):
        dataset.load(path)


def test_a_manifest_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    from harness.errors import ArtifactError
    from harness.records import Prediction

    os.mkfifo(tmp_path / "x")
    readers: list[Callable[[Path], Any]] = [storage.read_json, lambda path: storage.read_records(path, Prediction)]
    for reader in readers:
        with pytest.raises(ArtifactError, match="is not a file"):
            reader(tmp_path / "x")
