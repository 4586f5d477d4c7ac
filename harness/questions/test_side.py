"""A split without training: the test file is held out, and what a model was trained on elsewhere is looked at for leakage only."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from harness import storage
from harness.config import Config
from harness.errors import ArtifactError
from harness.questions import dataset, no_model_baselines
from harness.questions.asking import by_passage, kept, text_of
from harness.questions.dataset import Row
from harness.questions.grouping import group_rows, is_long
from harness.questions.similarity import Shingles
from harness.records import Question, SplitManifest


def split(run: storage.RunFolder, config: Config, progress: Callable[[str], None], *, force: bool) -> SplitManifest:
    """Writes the split whose held-out side is `data.test`; DataError for a file that cannot be used."""
    began, data = time.monotonic(), config.data
    test = dataset.locate(data.test or "")
    hashes = [
        storage.sha256_file(test),
        storage.sha256_file(dataset.locate(data.trained_on)) if data.trained_on else "",
    ]
    fingerprint = storage.sha256_json(
        [hashes, data.model_dump(mode="json"), storage.code_sha256("harness.questions.test_side")]
    )
    if not force and (old := _unchanged(run, fingerprint)):
        progress(f"split: unchanged, {old.n_heldout} questions held out")
        return old
    file = dataset.read(test, data)
    progress(f"split: {data.test}: {file.summary}")
    asked = [by_passage(row) for row in file.rows]
    known = [
        replace(row, id=f"trained-{i}")
        for i, row in enumerate(dataset.read(data.trained_on, data).rows if data.trained_on else [])
    ]
    found = group_rows(
        asked,
        Shingles([row.question for row in asked], data.ngram),
        threshold=data.similarity,
        long_answer_words=data.long_answer_words,
    )
    nearest, leakage, baselines = _against_training(asked, known, data.ngram, data.long_answer_words)
    heldout = [_question(asked, at, found.of[at], nearest[at] if nearest else None) for at in range(len(asked))]
    storage.write_jsonl(run.train_jsonl, [])
    storage.write_jsonl(run.heldout_jsonl, heldout)
    sizes = Counter(found.of)
    manifest = SplitManifest(
        fingerprint=fingerprint,
        split_id=storage.sha256_json([[q.id, q.question, q.answer, q.references, q.group] for q in heldout]),
        source=data.test or "",
        source_sha256=hashes[0],
        n_train=len(known),
        n_heldout=len(heldout),
        n_groups_train=len(known),
        n_groups_heldout=len(sizes),
        heldout_requested=len(heldout),
        seed=data.seed,
        similarity={"ngram": data.ngram, "threshold": data.similarity},
        largest_groups=[],
        merges={},
        merge_examples=[],
        conflicts=[],
        leakage=leakage,
        baselines={"grouped": baselines},
        train_sha256=storage.sha256_file(run.train_jsonl),
        heldout_sha256=storage.sha256_file(run.heldout_jsonl),
        warnings=[] if known else ["leakage could not be checked: what the models were trained on was not given"],
        seconds=round(time.monotonic() - began, 3),
    )
    storage.write_json(run.split_json, manifest)
    progress(f"split: all {len(heldout)} questions of {data.test} are held out, in {len(sizes)} groups")
    return manifest


def _against_training(
    asked: Sequence[Row], known: Sequence[Row], ngram: int, long_answer_words: int
) -> tuple[list[float], dict[str, Any], dict[str, dict[str, float]]]:
    """(similarity of each question to the nearest one trained on, leakage, no-model baselines); all empty without a training file."""
    if not known:
        return [], {}, {}
    rows = [*known, *asked]
    at = list(range(len(known), len(rows)))
    copied, similarity = Shingles([row.question for row in rows], ngram).nearest(at, list(range(len(known))))
    answers = {row.answer for row in known}
    shared = [row.answer for row in asked if row.answer in answers]
    leakage = {
        "answers_in_train": len(shared),
        "long_answers_in_train": sum(is_long(answer, long_answer_words) for answer in shared),
        "questions_in_train": sum(bool(value >= 0.999) for value in similarity),
        "max_similarity": round(float(max(similarity)), 6),
    }
    chosen = dict(zip(at, copied.tolist(), strict=True))
    sample = {i: chosen[i] for i in no_model_baselines.sample(at)}
    return similarity.tolist(), leakage, no_model_baselines.measure(rows, list(range(len(known))), sample)


def _question(rows: Sequence[Row], at: int, group: int, nearest: float | None) -> Question:
    row, first = rows[at], rows[group]
    return Question(
        id=row.id,
        row=row.row,
        question=text_of(row),
        answer=row.answer,
        references=list(row.references),
        group=first.group if first.group is not None else f"row-{first.id}",
        article=row.article,
        part=row.part,
        kind=row.kind,
        extra=kept(row),
        nearest_train=None if nearest is None else round(nearest, 6),
    )


def _unchanged(run: storage.RunFolder, fingerprint: str) -> SplitManifest | None:
    if not (run.split_json.exists() and run.heldout_jsonl.exists()):
        return None
    try:
        manifest = storage.read_record(run.split_json, SplitManifest)
        storage.check_written(run.heldout_jsonl, manifest.heldout_sha256, "split")
    except ArtifactError:
        return None
    return manifest if manifest.fingerprint == fingerprint else None
