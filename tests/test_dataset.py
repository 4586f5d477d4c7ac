import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import DataError
from harness.questions import dataset

ROW = {"question": "Who appoints the Governor?", "answer": "The President"}


def write(tmp_path, rows, name="qa.json"):
    path = tmp_path / name
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_one_file_in_three_formats_gives_the_same_rows(tmp_path):
    rows = [
        {
            "id": "a",
            "question": "Who, by law, admits States?",
            "answer": "Parliament",
            "references": ["The Parliament", "Union Parliament"],
        },
        {"id": "b", "question": 'What is "borrow"?', "answer": "Line one\nand two", "article": "292", "source": "x"},
    ]
    as_json = dataset.load(write(tmp_path, rows))
    lines = tmp_path / "qa.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    table = tmp_path / "qa.csv"
    table.write_text(
        "id,question,answer,references,article,source\n"
        'a,"Who, by law, admits States?",Parliament,The Parliament|Union Parliament,,\n'
        'b,"What is ""borrow""?","Line one\nand two",,292,x\n'
    )
    assert as_json == dataset.load(lines) == dataset.load(table)
    assert as_json[0].references == ("The Parliament", "Union Parliament")
    assert as_json[1].article == "292"
    assert as_json[1].extra == {"source": "x"}
    assert [row.row for row in as_json] == [1, 2]


def test_texts_are_stripped_and_numbered_labels_become_texts(tmp_path):
    (row,) = dataset.load(
        write(
            tmp_path,
            [{"question": " Q? ", "answer": "A\n", "article": 14, "part": 3.0, "group": 0, "kind": None, "id": 7}],
        )
    )
    assert (row.question, row.answer, row.article, row.part, row.group, row.kind, row.id) == (
        "Q?",
        "A",
        "14",
        "3",
        "0",
        None,
        "7",
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["qa.json", "qa.jsonl", "qa.csv"])
def test_byte_order_marks_and_line_ends(tmp_path, encoding, newline, name):
    row = {"question": "अनुच्छेद 14 क्या है?", "answer": "समता 𝔸"}
    text = {
        "qa.json": json.dumps([row], ensure_ascii=False, indent=1),
        "qa.jsonl": json.dumps(row, ensure_ascii=False) + "\n\n",
        "qa.csv": f"question,answer\n{row['question']},{row['answer']}\n",
    }[name]
    path = tmp_path / name
    path.write_bytes(text.replace("\n", newline).encode(encoding))
    (found,) = dataset.load(path)
    assert (found.question, found.answer) == (row["question"], row["answer"])


def test_a_line_separator_within_a_text_does_not_cut_a_line(tmp_path):
    path = tmp_path / "qa.jsonl"
    path.write_text(json.dumps(ROW | {"answer": "one\u2028two"}, ensure_ascii=False), encoding="utf-8")
    assert dataset.load(path)[0].answer == "one\u2028two"


def test_ids_on_some_rows_only(tmp_path):
    rows = dataset.load(write(tmp_path, [ROW, ROW | {"id": "mine"}, ROW, {"question": "Q?", "answer": "A"}]))
    first = rows[0].id
    assert [row.id for row in rows[:3]] == [first, "mine", f"{first}-2"]
    assert len({row.id for row in rows}) == 4


def test_a_derived_id_gives_way_to_the_same_id_given_by_the_file(tmp_path):
    derived = dataset.load(write(tmp_path, [ROW]))[0].id
    rows = dataset.load(write(tmp_path, [ROW, {"question": "Q?", "answer": "A", "id": derived}]))
    assert [row.id for row in rows] == [f"{derived}-2", derived]


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).filter(
    lambda s: not dataset.BLANK.fullmatch(s)
)
pairs = st.lists(st.fixed_dictionaries({"question": texts, "answer": texts}), min_size=1, max_size=8)


@given(pairs, pairs)
def test_ids_are_unique_and_do_not_change_when_rows_are_added(tmp_path_factory, old, new):
    folder = tmp_path_factory.mktemp("qa")
    before, after = dataset.load(write(folder, old)), dataset.load(write(folder, old + new))
    assert after[: len(old)] == before
    assert len({row.id for row in after}) == len(old) + len(new)


@given(st.binary(max_size=200), st.sampled_from(["qa.json", "qa.jsonl", "qa.csv"]))
def test_any_bytes_load_or_give_a_data_error_of_one_line(tmp_path_factory, data, name):
    path = tmp_path_factory.mktemp("qa") / name
    path.write_bytes(data)
    try:
        assert dataset.load(path)
    except DataError as error:
        assert "\n" not in str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["question", "answer", "id", "references", "x"]), inner, max_size=5)
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_loads_or_gives_a_data_error(tmp_path_factory, value):
    path = write(tmp_path_factory.mktemp("qa"), value)
    try:
        rows = dataset.load(path)
    except DataError:
        return
    for row in rows:
        # What was accepted can be written by every later stage.
        json.dumps(row.extra, allow_nan=False, ensure_ascii=False).encode()
