"""Votes and candidate questions from the page, appended as one JSON object per line."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from harness.errors import StorageError
from harness.records import Mark, Question

Vote = Literal[0, 1, 2]
"""1: the first is better; 2: the second is; 0: neither."""
PREFERS: dict[Vote, Literal["variant", "other", "neither"]] = {1: "variant", 2: "other", 0: "neither"}
LONGEST_NOTE = 1000


def question_id(question: str, known: Question | None) -> str:
    """The id of a held-out question; for any other question a name derived from its text."""
    return known.id if known else f"asked-{hashlib.sha256(question.encode('utf-8', 'replace')).hexdigest()[:16]}"


def mark(
    known: Question, split_id: str, variants: Sequence[str], answers: Sequence[str], vote: Vote, note: str = ""
) -> dict[str, Any]:
    """A line of `marks.jsonl`, which `harness marks add` takes: a blind vote between the answers to a held-out question.

    Args:
        variants, answers: the two in the order in which they were shown, which `vote` refers to.
    """
    return Mark(
        kind="vote",
        split_id=split_id,
        id=known.id,
        answer=answers[0],
        variant=variants[0],
        other=variants[1],
        other_answer=answers[1],
        prefers=PREFERS[vote],
        note=_clean(note)[:LONGEST_NOTE],
    ).model_dump(mode="json")


def vote_elsewhere(
    question: str, variants: Sequence[str], answers: Sequence[str], vote: Vote, note: str = ""
) -> dict[str, Any]:
    """A line of `votes.jsonl`: the same for a question that is not held out, which no metric can be compared with."""
    return {
        "question_id": question_id(question, None),
        "question": _clean(question),
        "variants": list(variants),
        "answers": [_clean(answer) for answer in answers],
        "vote": vote,
        "note": _clean(note)[:LONGEST_NOTE],
        "at": _now(),
    }


def candidate(question: str, known: Question | None, reference: str, answers: Mapping[str, str]) -> dict[str, Any]:
    """A line of `candidates.jsonl`, which `data.qa` can read: `question`, `answer` and the variants' answers."""
    return {
        "question": _clean(question),
        "answer": _clean(reference),
        "question_id": question_id(question, known),
        "model_answers": {name: _clean(text) for name, text in answers.items()},
        "at": _now(),
    }


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a line, whole or not at all, also with other writers; StorageError if it cannot be written."""
    line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file.fileno()).st_size
            # Start a new line if a full disk truncated the previous one.
            cut = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
            try:
                if file.write((b"\n" if cut else b"") + line) < len(line):
                    raise OSError(28, "no space left")
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise StorageError(
            f"cannot be written: {error.strerror}", "make room or correct its permissions", file=path
        ) from None


def _clean(text: str) -> str:
    """The text without lone surrogates, which cannot be encoded."""
    return text.encode("utf-8", "replace").decode("utf-8").strip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
