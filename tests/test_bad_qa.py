"""Every QA file that cannot be used: exit code 2, one line with file, row and mend, and nothing written."""

import codecs
import json
import os

import pytest

from harness import config, store
from harness.errors import DataError
from harness.questions import dataset
from harness.stages import split

GOOD = {"question": "Who appoints the Governor?", "answer": "The President"}


def rows(*bad):
    return json.dumps([GOOD, *bad])


BAD = {
    "not JSON": ("qa.json", '[{"question": "Q?",\n "answer": }]', r"not JSON.*line 2, column 12"),
    "cut short": ("qa.json", '[{"question": "Q?", "ans', r"not JSON.*line 1"),
    "JSON Lines named .json": ("qa.json", json.dumps(GOOD) + "\n" + json.dumps(GOOD), r"\.jsonl"),
    "an object": ("qa.json", json.dumps(GOOD), r"an object, not a list"),
    "a number": ("qa.json", "3", r"a number, not a list"),
    "no rows": ("qa.json", "[]", r"no rows"),
    "blank": ("qa.json", " \n ", r"is blank"),
    "empty": ("qa.json", "", r"is empty"),
    "row not an object": ("qa.json", rows(["Q?", "A"]), r"row 2: is a list, not an object"),
    "row is null": ("qa.json", rows(None), r"row 2: is null"),
    "no question": ("qa.json", rows({"answer": "A"}), r"row 2: has no 'question'.*add"),
    "no answer": ("qa.json", rows({"question": "Q?"}), r"row 2: has no 'answer'"),
    "answer in another case": ("qa.json", rows({"question": "Q?", "Answer": "A"}), r"row 2: has no 'answer' \(but 'Answer'\)"),
    "empty answer": ("qa.json", rows({"question": "Q?", "answer": ""}), r"row 2: answer is empty"),
    "blank question": ("qa.json", rows({"question": " \u3000\u200b\n", "answer": "A"}), r"row 2: question is blank"),
    "null answer": ("qa.json", rows({"question": "Q?", "answer": None}), r"row 2: answer is null"),
    "number as answer": ("qa.json", rows({"question": "Q?", "answer": 14}), r"row 2: answer is a number, not a text"),
    "boolean answer": ("qa.json", rows({"question": "Q?", "answer": True}), r"row 2: answer is true or false"),
    "list as question": ("qa.json", rows({"question": ["Q?"], "answer": "A"}), r"row 2: question is a list"),
    "duplicate ids": ("qa.json", json.dumps([GOOD | {"id": "x"}, GOOD, GOOD | {"id": "x"}]), r"row 3: id 'x' is also that of row 1"),
    "duplicate ids, one a number": ("qa.json", json.dumps([GOOD | {"id": "1"}, GOOD | {"id": 1}]), r"row 2: id '1' is also"),
    "id is a list": ("qa.json", rows(GOOD | {"id": [1]}), r"row 2: id is a list"),
    "article is true": ("qa.json", rows(GOOD | {"article": True}), r"row 2: article is true or false"),
    "article 14.5": ("qa.json", rows(GOOD | {"article": 14.5}), r"row 2: article is a number"),
    "references of numbers": ("qa.json", rows(GOOD | {"references": [1]}), r"row 2: references is not a list of texts"),
    "lone surrogate": ("qa.json", '[{"question": "Q \\ud800?", "answer": "A"}]', r"row 1: contains half of a surrogate pair"),
    "lone surrogate in an extra key": ("qa.json", rows(GOOD | {"x": {"\udfff": 1}}), r"row 2: contains half of a surrogate pair"),
    "not a number": ("qa.json", '[{"question": "Q?", "answer": "A", "x": NaN}]', r"NaN is not a number"),
    "too large a number": ("qa.json", '[{"question": "Q?", "answer": "A", "x": 1e999}]', r"1e999 is not a number"),
    "number of 5,000 digits": ("qa.json", '[{"question": "Q?", "answer": "A", "x": ' + "9" * 5000 + "}]", r"not usable JSON"),
    "nested for ever": ("qa.json", "[" * 200_000, r"nested too deeply"),
    "nested 100 deep": ("qa.json", rows(GOOD | {"x": json.loads("[" * 100 + "]" * 100)}), r"row 2: is nested more than"),
    "a question of 10 MB": ("qa.json", rows({"question": "why " * 2_500_000, "answer": "A"}), r"row 2: question has 10,000,000 characters"),
    "bad line": ("qa.jsonl", json.dumps(GOOD) + '\n\n{"question": }', r"not JSON.*line 3, column 14"),
    "bad row in a line": ("qa.jsonl", json.dumps(GOOD) + '\n{"question": "Q?"}', r"row 2: has no 'answer'"),
    "list in lines": ("qa.jsonl", json.dumps([GOOD]), r"row 1: is a list"),
    "no such column": ("qa.csv", "question,reply\nQ?,A\n", r"no column 'answer'"),
    "semicolons": ("qa.csv", "question;answer\nQ?;A\n", r"separated by semicolons"),
    "a column twice": ("qa.csv", "question,answer,answer\nQ?,A,B\n", r"two columns of one name"),
    "too many fields": ("qa.csv", "question,answer\nQ?,A\nWho, then?,A\n", r"row 2: has more fields"),
    "too few fields": ("qa.csv", "question,answer\nQ?\n", r"row 1: answer is null"),
    "blank cell": ("qa.csv", "question,answer\nQ?,A\nQ?,\n", r"row 2: answer is empty"),
    "open quote": ("qa.csv", 'question,answer\n"Q?,A\n', r"is not CSV"),
    "header only": ("qa.csv", "question,answer\n", r"no rows"),
}


def expect(path, pattern):
    with pytest.raises(DataError, match=pattern) as caught:
        dataset.load(path)
    line = str(caught.value)
    assert line.startswith(str(path))
    assert "\n" not in line
    assert len(line) < 500
    assert caught.value.mend
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("case", BAD)
def test_is_refused_with_file_row_and_mend(tmp_path, case):
    name, text, pattern = BAD[case]
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    expect(path, pattern)


@pytest.mark.parametrize(
    ("data", "pattern"),
    [
        (b'[{"question": "Q?",\n"answer": "\x93A\x94"}]', r"not UTF-8 \(byte 0x93 on line 2\)"),
        (rows().encode("utf-16-le"), r"UTF-16 without a byte order mark"),
        (codecs.BOM_UTF16_LE + b"[\x00\x00", r"not UTF-16"),
        (b"\x00\x01\x02\x03", r"looks like UTF-16|not JSON"),
    ],
)
def test_encodings_are_named(tmp_path, data, pattern):
    path = tmp_path / "qa.json"
    path.write_bytes(data)
    expect(path, pattern)


def test_paths_that_are_no_files(tmp_path):
    expect(tmp_path / "none.json", "no such file")
    expect(tmp_path, "is a folder")
    with pytest.raises(DataError, match="cannot be opened"):
        dataset.load("qa\0.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission(tmp_path):
    path = tmp_path / "qa.json"
    path.write_text(rows())
    path.chmod(0)
    expect(path, "cannot be opened")


def test_a_file_too_large_is_refused_unread(tmp_path):
    path = tmp_path / "qa.json"
    with path.open("wb") as file:
        file.truncate(dataset.MAX_BYTES + 1)
    expect(path, "is 1.0 GB")


def subjects(count):
    return [{"question": f"Which {'xyzuvw'[n % 6] * 9} of {chr(97 + n) * 7}?", "answer": f"{chr(97 + n) * 3}"} for n in range(count)]


@pytest.mark.parametrize(
    ("made", "heldout", "pattern"),
    [
        (subjects(9), 0.1, r"9 rows form 9 groups.*needs 10"),
        ([row | {"group": "one"} for row in subjects(20)], 0.1, r"20 rows form 1 groups"),
        (subjects(12), 0.0000001, r"leaves nothing to hold out"),
        (subjects(12), 12, r"leaves nothing to train on"),
        ([row | {"group": f"{n // 2}"} for n, row in enumerate(subjects(24) * 2)], 3, r"leaves nothing to hold out"),
    ],
)
def test_a_split_that_cannot_be_made_writes_nothing(tmp_path, made, heldout, pattern):
    path = tmp_path / "qa.json"
    path.write_text(json.dumps(made))
    run = store.RunFolder("x", tmp_path)
    with pytest.raises(DataError, match=pattern) as caught:
        split.run(
            run,
            config.load(
                "tiny", [f"data.heldout={heldout:.7g}" if isinstance(heldout, int) else f"data.heldout={heldout:.9f}"], qa=str(path)
            ),
        )
    assert str(path) in str(caught.value)
    assert not run.path.exists()
