"""A run folder as predict leaves it: split and predictions, without a model."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness import storage
from harness.config import Config
from harness.records import Cost, Prediction, PredictionManifest, PredictionSet, Question, SplitManifest
from harness.storage import RunFolder

CONFIG = Config.model_validate({"score": {"resamples": 200}, "compare": {"resamples": 200}})
GENERATION = {"max_new_tokens": 64, "temperature": 0.0, "stop_ids": [2]}
COST = Cost(
    tokens_per_second=100.0, seconds=1.0, load_seconds=1.0, generated_tokens=100, peak_memory_bytes=1, size_bytes=1
)
BASELINES = {"constant_answer": {"exact_match": 0.02}, "nearest_train_copy": {"exact_match": 0.04}}

Answer = str | dict[str, Any]
"""A text, or fields of a `Prediction`."""


def questions(n_groups: int = 12, size: int = 3) -> list[Question]:
    """`n_groups` groups of `size` questions; each has another article for an answer."""
    return [
        Question(
            id=f"q{i}",
            row=i + 1,
            question=f"Which article is number {i}?",
            answer=f"Article {i + 1}" if i % 2 else f"It is the one that is called Article {i + 1}",
            group=f"g{i // size}",
            kind=["lookup", "content"][i % 2],
            part=["III", "IV"][i // size % 2],
            nearest_train=i / (n_groups * size),
        )
        for i in range(n_groups * size)
    ]


def make(
    root: Path,
    answers: Mapping[str, Callable[[Question], Answer]],
    *,
    name: str = "r",
    asked: list[Question] | None = None,
    **changes: Any,
) -> RunFolder:
    """Writes the split and the predictions of each variant; `changes` are fields of every PredictionManifest."""
    run, asked = RunFolder(name, root), asked or questions()
    storage.write_jsonl(run.heldout_jsonl, asked)
    storage.write_json(run.split_json, split_of(asked))
    for variant, answer in answers.items():
        predict(run, variant, asked, answer, **changes)
    storage.write_json(run.predict_json, PredictionSet(fingerprint="f", variants=list(answers)))
    return run


def split_of(asked: list[Question]) -> SplitManifest:
    return SplitManifest.model_construct(
        fingerprint="f",
        split_id=storage.sha256_json([q.model_dump() for q in asked]),
        source="qa.json",
        source_sha256="s",
        n_train=9,
        n_heldout=len(asked),
        n_groups_train=9,
        n_groups_heldout=len({q.group for q in asked}),
        heldout_requested=0.1,
        seed=0,
        similarity={},
        largest_groups=[],
        merges={},
        merge_examples=[],
        conflicts=[],
        leakage={},
        baselines={"grouped": BASELINES, "random": {}},
        seconds=1.0,
    )


def predict(
    run: RunFolder, variant: str, asked: list[Question], answer: Callable[[Question], Answer], **changes: Any
) -> None:
    """Writes one variant's predictions."""
    rows = []
    for question in asked:
        given = answer(question)
        fields = {"text": given} if isinstance(given, str) else given
        ids = list(question.question.encode())
        defaults = {
            "prompt_hash": hashlib.sha256(bytes(ids)).hexdigest(),
            "prompt_ids": ids,
            "answer_ids": [1],
            "text": "",
        }
        rows.append(
            Prediction.model_validate(
                {"id": question.id, "finish_reason": "stop", "seconds": 0.1, **defaults, **fields}
            )
        )
    lines, manifest = run.prediction(variant)
    storage.write_jsonl(lines, rows)
    fields = {
        "variant": variant,
        "split_id": split_of(asked).split_id,
        "backend": "replay",
        "backend_version": "1",
        "weights_sha256": "w",
        "tokenizer_sha256": "t",
        "prompts_sha256": storage.sha256_json([r.prompt_hash for r in rows]),
        "generation": GENERATION,
        "n": len(rows),
        "finish": dict(Counter(r.finish_reason for r in rows)),
        "prompts_cut": sum(r.prompt_cut for r in rows),
        "cost": COST,
        "key": storage.sha256_file(lines),
        "lines_sha256": storage.sha256_file(lines),
    }
    storage.write_json(manifest, PredictionManifest.model_validate({**fields, **changes}))
