"""SQuAD 1 and 2: articles of paragraphs of questions, flattened; and answers that are objects."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

ARTICLE = re.compile(r'\{\s*(?:"title"\s*:\s*"[^"]{0,300}"\s*,\s*)?"paragraphs"')
"""How an article begins."""


def flattened(rows: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """The rows, with each article replaced by its questions, which are then counted through the file."""
    questions = 0
    for number, row in rows:
        if isinstance(row, dict) and isinstance(row.get("paragraphs"), list):
            for paragraph in row["paragraphs"]:
                for question in _questions(paragraph):
                    questions += 1
                    yield questions, question
        elif isinstance(row, dict) and isinstance(row.get("qas"), list):
            for question in _questions(row):
                questions += 1
                yield questions, question
        else:
            yield number, row


def _questions(paragraph: Any) -> Iterator[Any]:
    if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas"), list):
        return
    for question in paragraph["qas"]:
        yield {"context": paragraph.get("context"), **question} if isinstance(question, dict) else question


def accepted(value: Any) -> Any:
    """The accepted answers in an answer that is an object, or a list of objects; anything else as it is.

    SQuAD: `[{"text": ...}, ...]`, in a table `{"text": [...], "answer_start": [...]}`; TriviaQA: `{"value": ..., "aliases": [...]}`.
    """
    if isinstance(value, dict):
        if "text" in value:
            return _distinct(value["text"] if isinstance(value["text"], list) else [value["text"]])
        if "value" in value:
            aliases = value.get("aliases")
            return _distinct([value["value"], *(aliases if isinstance(aliases, list) else [])])
    if isinstance(value, list) and value and all(isinstance(each, dict) and "text" in each for each in value):
        return _distinct([each["text"] for each in value])
    return value


def passage(value: Any) -> Any:
    """A passage that is a list of paragraphs or of lists of sentences (HotpotQA), as one text; anything else as it is."""
    if not isinstance(value, list) or not value:
        return value
    parts = [_sentences(each) for each in value]
    return "\n\n".join(filter(None, parts)) if all(part is not None for part in parts) else value


def _sentences(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(each, str | list) for each in value):
        inner = [_sentences(each) for each in value]
        return " ".join(filter(None, inner)) if all(part is not None for part in inner) else None
    return None


def is_unanswerable(row: dict[str, Any], answer: Any) -> bool:
    """Whether a row says that its question has no answer: `is_impossible`, or SQuAD's empty answers."""
    impossible = row.get("is_impossible")
    if isinstance(impossible, bool | int):
        return bool(impossible)
    empty_object = isinstance(answer, dict) and answer.get("text") == []
    return empty_object or (answer == [] and "context" in row)


def _distinct(values: list[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
