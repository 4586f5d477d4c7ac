"""QA files of the shapes people have: the same questions and answers come out of each, and what is left out is counted."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from harness import storage
from harness.cli import app
from harness.config import Columns, Data
from harness.errors import DataError
from harness.questions import dataset
from harness.records import Question

PAIRS = [(f"What is item {at}?", f"It is answer {at}.") for at in range(3)]
Pairs = list[tuple[str, str]]


def listed(question: str, answer: str) -> Callable[[Pairs], str]:
    return lambda pairs: json.dumps([{question: q, answer: a} for q, a in pairs])


def lines(make: Callable[[str, str], Any]) -> Callable[[Pairs], str]:
    return lambda pairs: "\n".join(json.dumps(make(q, a)) for q, a in pairs)


def separated(by: str, header: str = "Question{0}Answer", top: str = "") -> Callable[[Pairs], str]:
    return lambda pairs: top + "\n".join([header.format(by), *(f"{q}{by}{a}" for q, a in pairs)]) + "\n"


def squad(q: str, a: str) -> dict[str, Any]:
    return {"question": q, "answers": {"text": [a], "answer_start": [0]}}


SHAPES: dict[str, Callable[[Pairs], str]] = {
    "capitals": listed("Question", "ANSWER"),
    "aliases": listed("query", "response"),
    "alpaca": lines(lambda q, a: {"instruction": q, "input": "", "output": a}),
    "prompt and completion": lines(lambda q, a: {"prompt": q, "completion": a}),
    "messages": lines(lambda q, a: {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}),
    "ShareGPT": lines(lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}),
    "SQuAD, flat": lines(squad),
    "wrapper": lambda pairs: json.dumps({"data": [{"question": q, "answer": a} for q, a in pairs]}),
    "columns": lambda pairs: json.dumps({"question": [q for q, _ in pairs], "answer": [a for _, a in pairs]}),
    "pandas": lambda pairs: json.dumps(
        {key: {str(at): pair[i] for at, pair in enumerate(pairs)} for i, key in enumerate(("question", "answer"))}
    ),
    "semicolons": separated(";"),
    "tabs": separated("\t"),
    "Excel's sep line": separated(";", top="sep=;\n"),
}


def saved(folder: Path, text: str, name: str = "qa.txt") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def pairs_of(rows: list[dataset.Row]) -> Pairs:
    return [(row.question, row.answer) for row in rows]


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_gives_the_same_questions(tmp_path: Path, shape: str) -> None:
    assert pairs_of(dataset.load(saved(tmp_path, SHAPES[shape](PAIRS)))) == PAIRS


TEXTS = st.from_regex(r"[A-Za-z][A-Za-z ,?.]{0,20}[a-z?]", fullmatch=True)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=2, max_size=5), st.sampled_from(sorted(SHAPES)))
def test_any_texts_pass_through_every_shape(tmp_path_factory: pytest.TempPathFactory, pairs: Pairs, shape: str) -> None:
    path = saved(tmp_path_factory.mktemp("qa"), SHAPES[shape](pairs))
    assert pairs_of(dataset.load(path)) == pairs


def test_gzip_parquet_and_xlsx(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(PAIRS, columns=["question", "answer"])
    packed = tmp_path / "qa.json.gz"
    packed.write_bytes(gzip.compress(SHAPES["wrapper"](PAIRS).encode()))
    frame.to_parquet(tmp_path / "qa.parquet")
    sheet = io.BytesIO()
    frame.to_excel(sheet, index=False)
    (tmp_path / "qa.xlsx").write_bytes(sheet.getvalue())
    for name in ("qa.json.gz", "qa.parquet", "qa.xlsx"):
        assert pairs_of(dataset.load(tmp_path / name)) == PAIRS, name


def test_alpaca_input_joins_the_instruction_and_is_said(tmp_path: Path) -> None:
    file = dataset.read(saved(tmp_path, json.dumps([{"instruction": "Add.", "input": "1 + 1", "output": "2"}])), Data())
    assert pairs_of(file.rows) == [("Add.\n\n1 + 1", "2")]
    assert "alpaca: `instruction` + `input` is the question, `output` the answer" in file.summary
    assert "1 row" in file.summary


def conversations(folder: Path) -> Path:
    one = [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1"}]
    two = [*one, {"role": "user", "content": "Q2"}, {"role": "assistant", "content": "A2"}]
    system = [{"role": "system", "content": "Be brief."}, *one]
    return saved(folder, "\n".join(json.dumps({"messages": turns}) for turns in (system, two)))


def test_longer_conversations_are_left_out_and_counted(tmp_path: Path) -> None:
    file = dataset.read(conversations(tmp_path), Data())
    assert pairs_of(file.rows) == [("Q1", "A1")]
    assert file.rows[0].system == "Be brief."
    assert "1 of several turns left out" in file.summary


def test_or_their_last_turn_is_taken(tmp_path: Path) -> None:
    _, last = dataset.read(conversations(tmp_path), Data(turns="last")).rows
    assert (last.question, last.answer, last.context) == ("Q2", "A2", "User: Q1\n\nAssistant: A1")


def test_nested_squad_with_an_unanswerable_question(tmp_path: Path) -> None:
    qas = [
        {"id": "1", "question": "Where?", "answers": [{"text": "Delhi"}, {"text": "New Delhi"}]},
        {"id": "2", "question": "When?", "answers": [], "is_impossible": True},
    ]
    squad = {"version": "v2.0", "data": [{"title": "T", "paragraphs": [{"context": "A passage.", "qas": qas}]}]}
    file = dataset.read(saved(tmp_path, json.dumps(squad)), Data())
    first, second = file.rows
    assert (first.answer, first.references, first.context) == ("Delhi", ("New Delhi",), "A passage.")
    assert (second.answer, second.answerable) == ("unanswerable", False)
    assert "1 unanswerable" in file.summary


def test_numbers_and_lists_are_answers_and_entities_are_counted(tmp_path: Path) -> None:
    rows = [{"question": "Two &amp; two?", "answer": 4}, {"question": "Half?", "answer": ["0.5", "one half"]}]
    file = dataset.read(saved(tmp_path, json.dumps(rows)), Data())
    assert [(row.answer, row.references) for row in file.rows] == [("4", ()), ("0.5", ("one half",))]
    assert file.rows[0].question == "Two &amp; two?"
    assert "1 with HTML entities" in file.summary


def test_named_columns_decide(tmp_path: Path) -> None:
    path = saved(tmp_path, json.dumps([{"frage": "Q?", "antwort": "A", "text": "T"}]))
    found = dataset.read(path, Data(columns=Columns(question="frage", answer="antwort", context="text")))
    assert [(row.question, row.answer, row.context) for row in found.rows] == [("Q?", "A", "T")]


@pytest.mark.parametrize(
    ("rows", "columns", "parts"),
    [
        ([{"subject": "Q?", "answer": "A"}], {}, ["found subject, answer", "--question-column"]),
        ([{"question": "Q?", "output": "A", "response": "B"}], {}, ["several columns", "--answer-column"]),
        ([{"question": "Q?", "answer": "A"}], {"answer": "reply"}, ["no column 'reply'", "found question, answer"]),
        ([{"question": "Q?", "answer": "A"}, {"prompt": "Q?", "completion": "A"}], {}, ["row 2", "another shape"]),
        ([{"messages": [{"role": "user", "content": "Q?"}]}], {}, ["no usable rows", "1 without an answer left out"]),
    ],
)
def test_errors_name_the_columns_and_the_fix(
    tmp_path: Path, rows: list[Any], columns: dict[str, str], parts: list[str]
) -> None:
    with pytest.raises(DataError) as error:
        dataset.read(saved(tmp_path, json.dumps(rows)), Data(columns=Columns(**columns)))
    for part in parts:
        assert part in str(error.value)


def test_split_asks_the_context_with_the_question_and_keeps_a_passage_on_one_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subjects = "apple bridge castle desert engine forest garden harbour island jungle kettle lantern".split()
    rows = [
        {"1": f"{ask} the {subject}?", "answer": f"{ask} {subject}", "text": f"All about the {subject}."}
        for subject in subjects
        for ask in ("Who built", "When was")
    ]
    monkeypatch.chdir(tmp_path)
    named = ["--question-column", "1", "--context-column", "text", "--heldout", "6"]
    result = CliRunner().invoke(app, ["split", "--qa", str(saved(tmp_path, json.dumps(rows))), "--run", "x", *named])
    assert result.exit_code == 0, result.output
    assert "`1` is the question" in result.output
    sides = [
        storage.read_records(tmp_path / "runs" / "x" / "split" / f"{side}.jsonl", Question)
        for side in ("train", "heldout")
    ]
    train, heldout = ({str(question.extra["context"]) for question in side} for side in sides)
    assert not train & heldout
    assert all(q.question.startswith(f"{q.extra['context']}\n\nW") for side in sides for q in side)
