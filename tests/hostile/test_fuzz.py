"""Every reader of an untrusted file, on broken files: accepts them or refuses them with one line, and nothing else.

`benchmarks/fuzz.py` does the same for any time, guided by coverage.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import BASELINE, PREDICTION, READERS, ROW, feed, seeds
from harness import storage
from harness.questions import dataset
from harness.storage import strict_json, strict_yaml

PIECES = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"\\",
    b",",
    b":",
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 400,
    b"null",
    b"true",
    b"\\ud800",
    b"\\u0000",
    b'"question"',
    b'"answer"',
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!bool ",
    b"- ",
    b"? ",
    b"0x",
    b"schema_version",
    b"\x00" * 8,
    b"\xff" * 8,
    b"\x1b[2J",
    "\u202e\u2028\U0001f600".encode(),
]


@st.composite
def broken(draw: st.DrawFn, name: str) -> bytes:
    """A file that the reader takes, with some places cut out, doubled, or replaced."""
    data = draw(st.sampled_from(seeds(name)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 0, 1, 3, 20, 10_000])))
        piece = draw(st.sampled_from(PIECES) | st.binary(max_size=4) | st.just(data[start:end] * 2))
        data = data[:start] + piece * draw(st.sampled_from([1, 1, 1, 40])) + data[end:]
    return data


@pytest.mark.parametrize("name", READERS)
def test_a_broken_file_is_taken_or_refused_in_one_line(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    assert feed(name, seeds(name)[0], folder), "what mutation begins with is whole"

    @given(broken(name))
    @settings(max_examples=60, deadline=5000, derandomize=True, database=None)
    def one(data: bytes) -> None:
        feed(name, data, folder)

    one()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("qa.json", ROW),
        ("baseline", json.loads(storage.dumps(BASELINE))),
        ("predictions", json.loads(storage.dumps(PREDICTION))),
    ],
)
def test_any_value_of_any_key_is_taken_or_refused_in_one_line(
    name: str, whole: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")

    @given(st.dictionaries(st.sampled_from([*whole, "x"]), values, min_size=1, max_size=3))
    @settings(max_examples=100, deadline=5000, derandomize=True, database=None)
    def one(changes: dict[str, Any]) -> None:
        value = whole | changes
        taken = feed(name, json.dumps([value] if name == "qa.json" else value).encode(), folder)
        if taken and name == "qa.json":
            # What was taken can be written by every later stage.
            (row,) = dataset.load(folder / "qa.json")
            storage.dumps([row.question, row.answer, row.extra]).encode()

    one()


@given(values)
@settings(max_examples=100, derandomize=True, database=None)
def test_strict_json_takes_what_can_be_written_and_nothing_else(value: Any) -> None:
    text = json.dumps(value)
    try:
        storage.dumps(value).encode()
        writable = True
    except ValueError:  # NaN, infinity, half a surrogate pair
        writable = False
    try:
        assert strict_json.loads(text) == value and writable
    except ValueError:
        assert not writable


@given(values)
@settings(max_examples=100, derandomize=True, database=None)
def test_strict_yaml_reads_json_as_json_is_read(value: Any) -> None:
    import yaml

    try:
        text = storage.dumps(value)
        text.encode()
    except ValueError:
        return
    try:
        assert strict_yaml.loads(text) == yaml.safe_load(text)
    except strict_yaml.NotUsable:
        with pytest.raises((yaml.YAMLError, ValueError)):
            yaml.safe_load(text)
