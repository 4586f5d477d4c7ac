"""Marks on a run's answers, as the report's page saves them."""

from __future__ import annotations

import json
from pathlib import Path

from harness import storage
from harness.records import Comparison, Prediction, Question


def lines_of(
    run, variant: str, says=lambda question, text: "right" if text == question.answer else "wrong", n: int = 40
) -> list[dict]:
    """A mark on each of the first answers of a variant, as the page saves them."""
    split_id = storage.read_record(run.comparison_json, Comparison).split_id
    texts = {p.id: p.text for p in storage.read_records(run.prediction(variant)[0], Prediction)}
    return [
        {
            "kind": "mark",
            "split_id": split_id,
            "id": q.id,
            "answer": texts[q.id],
            "variant": variant,
            "mark": says(q, texts[q.id]),
            "note": "",
        }
        for q in storage.read_records(run.heldout_jsonl, Question)[:n]
    ]


def saved(folder: Path, lines: list[dict]) -> Path:
    path = folder / "marks.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
