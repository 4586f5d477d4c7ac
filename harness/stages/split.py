"""Split: which questions are trained on, and which are held out.

Reads the QA file; writes `split/train.jsonl`, `split/heldout.jsonl` and, last, `split/split.json`. Whole groups go to one side, by a seeded
hash of the group's first row in file order (its `group` label, else its question): rows appended to the file move no group that was there.
Two groups that a new row ties together become one, on the side of the earlier.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from harness import storage
from harness.config import Config, Data
from harness.errors import DataError
from harness.metrics.normalize import normalize_question
from harness.questions import dataset, no_model_baselines, test_side
from harness.questions.asking import by_passage, kept, text_of
from harness.questions.dataset import Row
from harness.questions.grouping import EXAMPLES, Groups, Link, group_rows, is_long
from harness.questions.similarity import WINDOW, Shingles, nearest_method
from harness.records import Question, SplitManifest

MIN_GROUPS = 10
LARGE_GROUP = 0.1
"""Share of its side's rows above which a group of several rows is warned of."""
SHARE_TOLERANCE = 0.2
"""Relative difference between the share asked for and the share realised from which it is warned of."""
MAX_CONFLICTS = 200
REASONS = ("group", "duplicate_question", "near_duplicate", "long_answer")


def run(
    run: storage.RunFolder, config: Config, *, progress: Callable[[str], None] = lambda _: None, force: bool = False
) -> SplitManifest:
    """Splits `config.data.qa` into a training and a held-out side.

    Raises:
        DataError: a QA file or row that cannot be used, fewer than ten groups, or a side without rows. Nothing is written then.
    """
    if config.data.test:
        return test_side.split(run, config, progress, force=force)
    began = time.monotonic()
    if config.data.qa is None:
        raise DataError("data.qa is null and there is no data.test", "name one of them")
    source = dataset.locate(config.data.qa)
    source_sha256 = storage.sha256_file(source)
    fingerprint = _fingerprint(source_sha256, config.data, config.score.normalizer)
    old = storage.up_to_date(run.split_json, SplitManifest, fingerprint, lambda split: _is_whole(run, split))
    if old and not force:
        progress(f"split: unchanged, {old.n_train} rows to train on and {old.n_heldout} held out")
        return old

    file = dataset.read(source, config.data)
    progress(f"split: {config.data.qa}: {file.summary}")
    rows = [by_passage(row) for row in file.rows]
    progress(f"split: comparing {len(rows)} questions of {source}")
    shingles = Shingles([row.question for row in rows], config.data.ngram)
    groups = group_rows(
        rows, shingles, threshold=config.data.similarity, long_answer_words=config.data.long_answer_words
    )
    sizes = Counter(groups.of)
    if len(sizes) < MIN_GROUPS:
        raise DataError(
            f"its {len(rows)} rows form {len(sizes)} groups of questions that belong together, and a split needs {MIN_GROUPS}",
            "add questions on other subjects, or check the group labels",
            file=source,
        )
    held_groups = _heldout_groups(rows, sizes, config.data)
    heldout = [at for at, group in enumerate(groups.of) if group in held_groups]
    train = [at for at, group in enumerate(groups.of) if group not in held_groups]
    if not heldout or not train:
        nothing = "train on" if heldout else "hold out"
        raise DataError(
            f"data.heldout {config.data.heldout} leaves nothing to {nothing} ({len(rows)} rows, {len(sizes)} groups)",
            "choose another data.heldout (a count of rows is possible too) or another data.seed",
            file=source,
        )

    progress(f"split: measuring what is left between {len(train)} and {len(heldout)} rows")
    copied, similarity = shingles.nearest(heldout, train)
    nearest = dict(zip(heldout, similarity.tolist(), strict=True))
    questions = [_question(rows, at, groups.of[at], nearest.get(at)) for at in range(len(rows))]
    conflicts = _conflicts(rows)
    manifest = SplitManifest(
        fingerprint=fingerprint,
        split_id=storage.sha256_json([[*_content(question), at in nearest] for at, question in enumerate(questions)]),
        source=config.data.qa,
        source_sha256=source_sha256,
        n_train=len(train),
        n_heldout=len(heldout),
        n_groups_train=len(sizes) - len(held_groups),
        n_groups_heldout=len(held_groups),
        heldout_requested=config.data.heldout,
        seed=config.data.seed,
        similarity=_method(rows, groups, len(heldout), config.data),
        largest_groups=_largest(questions, sizes, held_groups),
        merges={reason: sum(link.reason == reason for link in groups.links) for reason in REASONS},
        merge_examples=[_example(rows, link) for reason in REASONS for link in _some(groups.links, reason)],
        conflicts=conflicts[:MAX_CONFLICTS],
        leakage=_leakage(rows, train, nearest, config.data.long_answer_words),
        baselines={
            "grouped": _baselines(
                rows, train, dict(zip(heldout, copied.tolist(), strict=True)), config.score.normalizer
            ),
            "random": _random_baselines(rows, shingles, len(heldout), config),
        },
        warnings=_warnings(rows, sizes, held_groups, len(heldout), len(conflicts), config.data),
        seconds=round(time.monotonic() - began, 3),
    )
    # Without its manifest a split does not exist: none may stand beside the files of another while these are replaced.
    with storage.storage_errors(run.split_json):
        run.split_json.unlink(missing_ok=True)
    storage.write_jsonl(run.train_jsonl, (questions[at] for at in train))
    storage.write_jsonl(run.heldout_jsonl, (questions[at] for at in heldout))
    written = {
        "train_sha256": storage.sha256_file(run.train_jsonl),
        "heldout_sha256": storage.sha256_file(run.heldout_jsonl),
    }
    manifest = manifest.model_copy(update=written)
    storage.write_json(run.split_json, manifest)
    for warning in manifest.warnings:
        progress(f"split: warning: {warning}")
    progress(f"split: {len(train)} rows to train on, {len(heldout)} held out in {len(held_groups)} groups")
    return manifest


def _fingerprint(source_sha256: str, data: Data, normalizer: str) -> str:
    code = storage.code_sha256("harness.stages.split")
    return storage.sha256_json([source_sha256, data.model_dump(mode="json"), normalizer, code, version("datasketch")])


def _is_whole(run: storage.RunFolder, manifest: SplitManifest) -> bool:
    files = ((run.train_jsonl, manifest.train_sha256), (run.heldout_jsonl, manifest.heldout_sha256))
    return all(storage.is_written(file, sha256) for file, sha256 in files)


# -------------------------------------------------------------------------------------------------------------- sides


def _heldout_groups(rows: Sequence[Row], sizes: Counter[int], data: Data) -> set[int]:
    """The groups (by first row) that are held out: those whose hash lies below the share, or the first by hash that fit into the count."""
    place = {group: _place(rows[group], data.seed) for group in sizes}
    if data.heldout < 1:
        return {group for group in sizes if place[group] < data.heldout}
    held, room = set(), int(data.heldout)
    for group in sorted(sizes, key=lambda group: (place[group], group)):
        if sizes[group] <= room:
            held.add(group)
            room -= sizes[group]
    return held


def _place(first: Row, seed: int) -> float:
    """Where a group stands between 0 and 1, by its first row: uniform over seeds and groups."""
    identity = f"group\0{first.group}" if first.group is not None else f"question\0{normalize_question(first.question)}"
    return int.from_bytes(hashlib.sha256(f"{seed}\0{identity}".encode()).digest()[:8], "big") / 2**64


def _question(rows: Sequence[Row], at: int, group: int, nearest_train: float | None) -> Question:
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
        nearest_train=None if nearest_train is None else round(nearest_train, 6),
    )


def _content(question: Question) -> list[Any]:
    return [question.id, question.question, question.answer, question.references, question.group]


# ------------------------------------------------------------------------------------------------------ what to report


def _method(rows: Sequence[Row], groups: Groups, n_heldout: int, data: Data) -> dict[str, Any]:
    return {
        "method": "character n-gram Jaccard; MinHash-LSH candidates, exact decision; what varies among look-alikes and the answers decide",
        "nearest": nearest_method(n_heldout, len(rows) - n_heldout),
        "ngram": data.ngram,
        "threshold": data.similarity,
        "long_answer_words": data.long_answer_words,
        "datasketch": version("datasketch"),
        "pairs_compared": groups.pairs_compared,
        "window": WINDOW,
        "rows_with_more_look_alikes_than_window": groups.rows_in_full_buckets,
        "rows_with_stock_answers": groups.rows_with_stock_answers,
        "chains_cut": groups.chains_cut,
        "kept_apart": groups.n_kept_apart,
        "kept_apart_examples": [_example(rows, link) for link in groups.kept_apart],
    }


def _largest(questions: Sequence[Question], sizes: Counter[int], held: set[int]) -> list[dict[str, Any]]:
    return [
        {
            "group": questions[group].group,
            "rows": count,
            "share": round(count / len(questions), 6),
            "side": "heldout" if group in held else "train",
            "example": questions[group].question,
        }
        for group, count in sizes.most_common(10)
    ]


def _some(links: Sequence[Link], reason: str) -> list[Link]:
    return [link for link in links if link.reason == reason][:EXAMPLES]


def _example(rows: Sequence[Row], link: Link) -> dict[str, Any]:
    similarity = None if link.similarity is None else round(link.similarity, 3)
    return {
        "reason": link.reason,
        "left": rows[link.left].question,
        "right": rows[link.right].question,
        "similarity": similarity,
    }


def _conflicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Questions whose rows do not accept one another's answers."""
    same_question: dict[tuple[str, str | None], list[Row]] = defaultdict(list)
    for row in rows:
        same_question[normalize_question(row.question), row.context].append(row)
    conflicts = []
    for same in same_question.values():
        accepted = [{normalize_question(text) for text in (row.answer, *row.references)} for row in same]
        if not set.intersection(*accepted):
            answers = list(dict.fromkeys(row.answer for row in same))
            conflicts.append({"question": same[0].question, "answers": answers, "rows": [row.row for row in same]})
    return conflicts


def _leakage(
    rows: Sequence[Row], train: Sequence[int], nearest: dict[int, float], long_answer_words: int
) -> dict[str, Any]:
    known = {rows[at].answer for at in train}
    shared = [rows[at].answer for at in nearest if rows[at].answer in known]
    bins = Counter(min(int(similarity * 10), 9) for similarity in nearest.values())
    return {
        "answers_in_train": len(shared),
        "long_answers_in_train": sum(is_long(answer, long_answer_words) for answer in shared),
        "max_similarity": round(max(nearest.values()), 6),
        "similarity_histogram": {f"{tenth / 10:.1f}-{(tenth + 1) / 10:.1f}": bins[tenth] for tenth in range(10)},
    }


def _baselines(
    rows: Sequence[Row], train: Sequence[int], copied: dict[int, int], normalizer: str
) -> dict[str, dict[str, float]]:
    nearest = {at: copied[at] for at in no_model_baselines.sample(list(copied))}
    return no_model_baselines.measure(rows, train, nearest, normalizer)


def _random_baselines(
    rows: Sequence[Row], shingles: Shingles, n_heldout: int, config: Config
) -> dict[str, dict[str, float]]:
    heldout = no_model_baselines.random_heldout(rows, n_heldout, config.data.seed)
    train = sorted(set(range(len(rows))).difference(heldout))
    sampled = no_model_baselines.sample(heldout)
    copied, _ = shingles.nearest(sampled, train)
    return no_model_baselines.measure(
        rows, train, dict(zip(sampled, copied.tolist(), strict=True)), config.score.normalizer
    )


def _warnings(
    rows: Sequence[Row], sizes: Counter[int], held: set[int], n_heldout: int, n_conflicts: int, data: Data
) -> list[str]:
    warnings = []
    for group, count in sizes.most_common():
        side, total = ("held-out", n_heldout) if group in held else ("training", len(rows) - n_heldout)
        if count > 1 and count > LARGE_GROUP * total:
            warnings.append(
                f"{count / total:.0%} of the {side} rows ({count}) form one group, like {rows[group].question[:100]!r}"
            )
    requested = data.heldout if data.heldout < 1 else data.heldout / len(rows)
    share = n_heldout / len(rows)
    if abs(share - requested) > SHARE_TOLERANCE * requested:
        warnings.append(
            f"{share:.1%} of the rows are held out, not {requested:.1%}: whole groups go to one side (try another data.seed)"
        )
    if n_conflicts:
        shown = f"; the first {MAX_CONFLICTS} are listed" if n_conflicts > MAX_CONFLICTS else ""
        warnings.append(f"{n_conflicts} questions have several different answers; each is kept on one side{shown}")
    if n_heldout > no_model_baselines.MAX_QUESTIONS:
        warnings.append(
            f"the no-model baselines were measured on {no_model_baselines.MAX_QUESTIONS} of {n_heldout} held-out rows"
        )
    return warnings
