"""Further kinds of QA files that people have: each is read right and said in one line, or refused with the place and the fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.config import Data
from harness.errors import DataError
from harness.questions import dataset

PAIRS = [(f"What is item {at} made of?", f"material {at}") for at in range(3)]
USER, ASSISTANT = (lambda q: {"role": "user", "content": q}), (lambda a: {"role": "assistant", "content": a})
ROWS = [{"question": q, "answer": a} for q, a in PAIRS]
TURNS = [[USER(q), ASSISTANT(a)] for q, a in PAIRS]
ARTICLE = {
    "title": "T",
    "paragraphs": [{"context": "P.", "qas": [{"question": q, "answers": [{"text": a}]} for q, a in PAIRS]}],
}


def lines(rows: list[Any]) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def columns(question: str, answer: str) -> str:
    return json.dumps([{question: q, answer: a} for q, a in PAIRS])


def table(header: str, by: str = ",") -> str:
    return "\n".join([header, *(f"{q}{by}{a}" for q, a in PAIRS)])


READ: dict[str, tuple[str, str]] = {
    "plural names": (columns("Questions", "Answers"), "`Questions` is the question, `Answers` the answer"),
    "names of two words": (columns("Question Text", "Answer-Text:"), "`Question Text` is the question, `Answer-Text:`"),
    "German": (columns("Frage", "Antwort"), "`Frage` is the question"),
    "Hindi": (columns("प्रश्न", "उत्तर"), "`प्रश्न` is the question"),
    "Chinese": (columns("问题", "答案"), "`问题` is the question"),
    "Japanese": (columns("質問", "回答"), "`質問` is the question"),
    "Korean": (columns("질문", "답변"), "`질문` is the question"),
    "Russian": (columns("Вопрос", "Ответ"), "`Вопрос` is the question"),
    "Arabic": (columns("السؤال", "الجواب"), "`السؤال` is the question"),
    "a name of last resort": (columns("question", "correct_answer"), "`correct_answer` the answer"),
    "preferences": (lines([{"prompt": q, "chosen": a, "rejected": "no"} for q, a in PAIRS]), "not used: rejected"),
    "lists of turns": (json.dumps(TURNS), "messages: the user's turn"),
    "a list of turns on each line": (lines(TURNS), "messages: the user's turn"),
    "turns as JSON text": (lines([{"messages": json.dumps(turns)} for turns in TURNS]), "the user's turn in `messages`"),
    "prompt and completion of turns": (
        lines([{"prompt": [user], "completion": [assistant]} for user, assistant in TURNS]),
        "prompt and completion",
    ),
    "lists of two": (json.dumps(PAIRS), "question and answer"),
    "lists below a header": (json.dumps([["Question", "Answer"], *PAIRS]), "question and answer"),
    "wrapped twice": (json.dumps({"result": {"data": ROWS}}), "under 'data' in 'result'"),
    "SQuAD wrapped twice": (json.dumps({"dataset": {"version": 1, "data": [ARTICLE]}}), "SQuAD"),
    "each row wrapped": (json.dumps([{"qa": row} for row in ROWS]), "question and answer"),
    "the hub's viewer": (
        json.dumps({"features": [{"name": "question"}], "rows": [{"row_idx": 0, "row": row} for row in ROWS]}),
        "JSON under 'rows'",
    ),
    "pandas with row names": (
        json.dumps({key: {f"r{i}": row[key] for i, row in enumerate(ROWS)} for key in ("question", "answer")}),
        "JSON of pandas",
    ),
    "objects one after another": ("".join(json.dumps(row) for row in ROWS), "one after another"),
    "objects over several lines": ("\n".join(json.dumps(row, indent=1) for row in ROWS), "one after another"),
    "a Markdown table": ("\n".join(["| question | answer |", "| :--- | ---: |", *(f"| {q} | {a} |" for q, a in PAIRS)]), "bars"),
    "a table in Thai": (table("คำถาม\tคำตอบ", "\t"), "separated by tabs"),
    "turns of parts": (
        lines([{"contents": [{"role": "user", "parts": [{"text": q}]}, {"role": "model", "parts": [{"text": a}]}]} for q, a in PAIRS]),
        "messages: the user's turn in `contents`",
    ),
    "an object of questions and lists of answers": (json.dumps({q: [a] for q, a in PAIRS}), "JSON of questions and answers"),
    "columns that are not asked": (
        lines([row | {"options": ["a", "b"], "level": 3} for row in ROWS]),
        "not used: options, level",
    ),
}  # fmt: off


@pytest.mark.parametrize("kind", READ)
def test_is_read_and_said(tmp_path: Path, kind: str) -> None:
    text, said = READ[kind]
    path = tmp_path / "qa.txt"
    path.write_text(text, encoding="utf-8")
    file = dataset.read(path, Data())
    assert [(row.question, row.answer) for row in file.rows] == PAIRS
    assert said in file.summary


CHOICES = {"question": "Which?", "choices": ["a", "b"], "answer": 1}
LETTER = {"question": "Which?", "options": ["a", "b"], "answer": "B"}
GREETED = {"messages": [ASSISTANT("Hello."), USER("Q?"), ASSISTANT("A")]}
TOOL = {"messages": [USER("Q?"), {"role": "assistant", "content": None, "tool_calls": [{}]}, ASSISTANT("A")]}
REFUSED: dict[str, tuple[bytes | str, list[str]]] = {
    "choices by number": (lines([CHOICES]), ["row 1: is multiple choice: answer is 1", "the text of the right choice"]),
    "choices by letter": (lines([LETTER]), ["row 1: is multiple choice: answer is 'B'"]),
    "columns of choices": (lines([{"question": "Q?", "A": "a", "B": "b"}]), ["no column 'answer'"]),
    "two names that fold to one": (lines([{"question": "Q", "Question": "R", "answer": "A"}]), ["two columns", "keep one"]),
    "tools only": (lines([TOOL]), ["1 with tools or media left out", "give conversations of text"]),
    "begun by the assistant": (lines([GREETED]), ["1 that the assistant begins left out", "data.turns=last"]),
    "a comma at the end": (f"[{json.dumps(ROWS[0])},]", ["line 1, column", "remove the comma before it"]),
    "a comma in the row": ('[{"question": "Q", "answer": "A",}]', ["remove the comma before it"]),
    "commas between lines": (",\n".join(map(json.dumps, ROWS)), ["line 1", "{...}, {...}"]),
    "cut off": (json.dumps(ROWS)[:-12], ["the file ends early"]),
    "CSV called JSON": ("question,answer\nQ,A", ["begins with 'question,answer", "name it .csv"]),
    "no header": (b"csv:What is it?,That\nWho is it?,He\n", ["the first line must name the columns"]),
    "another separator": (b"csv:question^answer\na, b^c, d\n", ["names one column only, 'question^answer'"]),
    "HTML": (b"csv:<!DOCTYPE html><html></html>", ["is HTML or XML"]),
    "a pickle": (b"csv:\x80\x04\x95", ["is a Python pickle"]),
    "a pointer": (b"csv:version https://git-lfs.github.com/spec/v1\noid sha256:1\n", ["git lfs pull"]),
    "null": (lines([ROWS[0], {"question": "Q?", "answer": None}]), ["row 2: answer is null; fill in the answer"]),
    "null among references": (lines([ROWS[0] | {"references": ["a", None]}]), ["references holds null; leave it out"]),
    "two lists with other keys": (
        json.dumps({"version": 1, "train": ROWS, "test": ROWS}),
        ["several lists of rows: train, test"],
    ),
    "a row of other columns": (lines([ROWS[0], {"question": "Q?", "answers": ["A"]}]), ["row 2", "question, answers"]),
}  # fmt: off


@pytest.mark.parametrize("kind", REFUSED)
def test_is_refused_with_the_place_and_the_fix(tmp_path: Path, kind: str) -> None:
    content, parts = REFUSED[kind]
    path = tmp_path / ("qa.csv" if isinstance(content, bytes) else "qa.json")
    path.write_bytes(content.removeprefix(b"csv:") if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        dataset.read(path, Data())
    for part in (str(path), *parts):
        assert part in str(error.value)


def test_a_passage_or_system_line_that_the_first_row_lacks_is_used_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_text(lines([ROWS[0], ROWS[1] | {"system": "Be brief."}, ROWS[2] | {"Context": "A passage."}]))
    file = dataset.read(path, Data())
    assert [(row.system, row.context) for row in file.rows] == [(None, None), ("Be brief.", None), (None, "A passage.")]
    assert "`Context` the context, `system` the system line" in file.summary


def test_a_question_that_is_a_prompt_already_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "hh.json"
    path.write_text(
        json.dumps(
            [
                {"prompt": "\n\nHuman: Why?\n\nAssistant:", "completion": " Because."},
                *[{"prompt": "Q?", "completion": "A"}],
            ]
        )
    )
    assert "1 that begin like a prompt ('Human:'), asked as they are" in dataset.read(path, Data()).summary


def test_an_input_that_says_none_is_none(tmp_path: Path) -> None:
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps([{"instruction": "Name a metal.", "input": "<noinput>", "output": "Iron"}]))
    assert dataset.load(path)[0].question == "Name a metal."


def test_a_first_conversation_without_turns_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(lines([{"messages": []}, {"messages": TURNS[0]}]))
    file = dataset.read(path, Data())
    assert [(row.question, row.answer) for row in file.rows] == PAIRS[:1]
    assert "1 without an answer left out" in file.summary


def test_a_passage_of_sentences_is_one_text(tmp_path: Path) -> None:
    path = tmp_path / "hotpot.json"
    path.write_text(
        json.dumps([ROWS[0] | {"context": [["Iron", ["It is hard.", "It rusts."]], ["Tin", ["It is soft."]]]}])
    )
    (row,) = dataset.read(path, Data()).rows
    assert row.context == "Iron It is hard. It rusts.\n\nTin It is soft."


def test_an_answer_that_a_table_writes_for_none_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "qa.csv"
    path.write_text("question,answer\nWhat is it?,NaN\nWho is it?,He\n")
    assert "1 with the answer 'NaN', kept unchanged" in dataset.read(path, Data()).summary


def test_a_day_in_a_sheet_is_a_day(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"question": ["When?"], "answer": [pandas.Timestamp("2024-01-05")]})
    frame.to_excel(tmp_path / "qa.xlsx", index=False)
    assert dataset.load(tmp_path / "qa.xlsx")[0].answer == "2024-01-05"
