"""Split: which questions are trained on, which choose, and which are held out to judge.

Reads the QA file; writes `split/train.jsonl`, `split/dev.jsonl`, `split/heldout.jsonl`, with `data.trained_on` also `split/trained_on.jsonl`,
with `data.taught` also `split/taught.jsonl`, and, last, `split/split.json`. `harness.questions.sides` says which group goes where; with
`data.test` that file is the held-out side.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness import storage
from harness.config import Config, Data
from harness.errors import DataError
from harness.questions import dataset, leakage, sides, split_account, taught
from harness.questions.asking import kept, text_of
from harness.questions.dataset import QaFile
from harness.questions.grouping import Groups, group_rows
from harness.questions.leakage import Leaks
from harness.questions.normalised import remembered
from harness.questions.rows import Row
from harness.questions.sides import Sides
from harness.questions.similarity import Shingles
from harness.records import Question, SplitManifest

log = logging.getLogger(__name__)

MIN_GROUPS = 10


@remembered()
def run(run: storage.RunFolder, config: Config, *, force: bool = False) -> SplitManifest:
    """Splits `config.data.qa` into a training, a dev and a held-out side, or takes the held-out side from `config.data.test`.

    Raises:
        DataError: a QA file or row that cannot be used, fewer than ten groups, a side without rows, or a test file all of whose questions
        are trained on. Nothing is written then.
    """
    began = time.monotonic()
    data = config.data
    sources = {"test": data.test, "qa": data.training_file, "trained_on": data.trained_on, "taught": data.taught}
    hashes = {role: dataset.source_sha256(source) for role, source in sources.items() if source}
    fingerprint = _fingerprint(hashes, data, config.score.normalizer)
    old = storage.up_to_date(run.split_json, SplitManifest, fingerprint, lambda split: _is_whole(run, split))
    if old and not force:
        log.info(f"split: unchanged, {describe(old)}")
        for warning in old.warnings:
            log.warning(f"split: warning: {warning}")
        return old
    files = {role: dataset.read(source, data) for role, source in sources.items() if source}
    again = files.pop("taught", None)
    for file in files.values():
        log.info(f"split: {file.source}: {file.summary}")
    divided = _divide(files, data)
    log.info(f"split: measuring what is left between {len(divided.sides.known)} and {len(divided.sides.heldout)} rows")
    questions, manifest = _account(divided, files, hashes, config)
    manifest = manifest.model_copy(update={"fingerprint": fingerprint, "seconds": round(time.monotonic() - began, 3)})
    restated = _taught(divided, again, questions) if again else []
    if again and restated:
        manifest.files.append(again.described("taught", hashes["taught"]))
    manifest = _write(run, divided.sides, questions, manifest, restated)
    for warning in manifest.warnings:
        log.warning(f"split: warning: {warning}")
    log.info(f"split: {describe(manifest)}")
    return manifest


def describe(manifest: SplitManifest) -> str:
    """The sides in one line."""
    elsewhere = f", {manifest.n_trained_on} that a model was trained on elsewhere" if manifest.n_trained_on else ""
    again = f", {manifest.n_taught} trained questions in other words" if manifest.n_taught else ""
    return (
        f"{manifest.n_train} rows to train on, {manifest.n_dev} for dev, {manifest.n_heldout} held out in "
        f"{manifest.n_groups_heldout} groups{elsewhere}{again}"
    )


def _fingerprint(hashes: dict[str, str], data: Data, normalizer: str) -> str:
    code = storage.code_sha256("harness.stages.split")
    return storage.sha256_json([hashes, data.model_dump(mode="json"), normalizer, code, version("datasketch")])


def _files(run: storage.RunFolder, manifest: SplitManifest) -> list[tuple[str, Path, str]]:
    """(side, file, the hash that the manifest keeps)."""
    files = [(side, getattr(run, f"{side}_jsonl"), getattr(manifest, f"{side}_sha256")) for side in Sides.NAMES]
    return files if manifest.n_trained_on else files[:-1]


def _is_whole(run: storage.RunFolder, manifest: SplitManifest) -> bool:
    files = [(file, sha256) for _, file, sha256 in _files(run, manifest)]
    files += [(run.taught_jsonl, manifest.taught_sha256)] if manifest.n_taught else []
    return all(storage.is_written(file, sha256) for file, sha256 in files)


def _write(
    run: storage.RunFolder, found: Sides, questions: list[Question], manifest: SplitManifest, again: list[Question]
) -> SplitManifest:
    """Writes the sides and, last, the manifest with their hashes."""
    # Without its manifest a split does not exist: none may be there beside the files of another while these are replaced.
    with storage.storage_errors(run.split_json):
        run.split_json.unlink(missing_ok=True)
        run.trained_on_jsonl.unlink(missing_ok=True)
        run.taught_jsonl.unlink(missing_ok=True)
    hashes = {}
    for side, file, _ in _files(run, manifest):
        storage.write_jsonl(file, (questions[at] for at in getattr(found, side)))
        hashes[f"{side}_sha256"] = storage.sha256_file(file)
    if again:
        storage.write_jsonl(run.taught_jsonl, again)
        hashes["taught_sha256"] = storage.sha256_file(run.taught_jsonl)
    manifest = manifest.model_copy(update={**hashes, "n_taught": len(again)})
    storage.write_json(run.split_json, manifest)
    return manifest


# -------------------------------------------------------------------------------------------------------------- sides


@dataclass(frozen=True)
class _Divided:
    """Every row that was read, the test file's first, and where it goes."""

    rows: list[Row]
    groups: Groups
    """Of `rows`."""
    group_of: list[int]
    """For each row its group's first row; a test file's rows are grouped by themselves."""
    shingles: Shingles
    """Of the questions."""
    sides: Sides
    leaks: Leaks
    """From the rows that are left to those held out."""
    dropped: int
    """Training rows that were left out because they leak."""


def _divide(files: dict[str, QaFile], data: Data) -> _Divided:
    test, others = files.get("test"), files.get("trained_on") or files.get("qa")
    rows = _distinct(test.rows if test else [], others.rows if others else [])
    compared = [sides.as_compared(row) for row in rows]
    log.info(f"split: comparing {len(rows)} questions")
    shingles = Shingles([row.question for row in rows], data.ngram)

    def grouped(rows: list[Row], shingles: Shingles) -> Groups:
        return group_rows(rows, shingles, threshold=data.similarity, long_answer_words=data.long_answer_words)

    groups = grouped(compared, shingles)
    if test is None:
        found = _three_sides(compared, groups, files["qa"].source, data)
        return _Divided(rows, groups, groups.of, shingles, found, _leaks(compared, groups, found), 0)
    n = len(test.rows)
    own = _labels(test.rows)
    if own is None:
        alone = Shingles([row.question for row in compared[:n]], data.ngram)
        own = grouped(compared[:n], alone).of if others else groups.of
    found = _sides_beside_a_test(compared, groups, n, data)
    leaks, dropped = _leaks(compared, groups, found), 0
    if data.drop_leaks and not data.trained_on:
        dropped = len(leaks.train)
        found = found.without(leaks.train)
        leaks = _leaks(compared, groups, found)
    if others and not data.trained_on:
        _refuse_nothing_new(test, others, found, leaks, dropped)
    return _Divided(rows, groups, own + groups.of[n:], shingles, found, leaks, dropped)


def _labels(rows: list[Row]) -> list[int] | None:
    """For each row of a test file the first row of its group, if the file gives every row one: so a run's own held-out rows keep theirs."""
    if not all(row.group for row in rows):
        return None
    first: dict[str, int] = {}
    return [first.setdefault(str(row.group), at) for at, row in enumerate(rows)]


def _distinct(asked: list[Row], known: list[Row]) -> list[Row]:
    """The rows of a test file and those of a training file, with ids that differ."""
    taken = {row.id for row in asked}
    return [*asked, *(replace(row, id=f"train-{row.row}-{row.id}") if row.id in taken else row for row in known)]


def _leaks(compared: list[Row], groups: Groups, found: Sides) -> Leaks:
    return leakage.find(compared, groups.links, found.heldout, found.known)


def _three_sides(compared: list[Row], groups: Groups, source: str, data: Data) -> Sides:
    sizes = Counter(groups.of)
    if len(sizes) < MIN_GROUPS:
        raise DataError(
            f"its {len(compared)} rows form {len(sizes)} groups of questions that belong together, and a split needs {MIN_GROUPS}",
            "add questions on other subjects, or check the group labels",
            file=source,
        )
    held, dev = sides.choose(compared, sizes, data)
    found = Sides(
        train=[at for at, group in enumerate(groups.of) if group not in held and group not in dev],
        dev=[at for at, group in enumerate(groups.of) if group in dev],
        heldout=[at for at, group in enumerate(groups.of) if group in held],
    )
    for setting, what, empty in (
        (f"data.heldout {data.heldout}", "hold out", not found.heldout),
        (f"data.heldout {data.heldout} with data.dev {data.dev_size}", "train on", not found.train),
        (f"data.dev {data.dev_size}", "choose by", bool(data.dev_size) and not found.dev),
    ):
        if empty:
            raise DataError(
                f"{setting} leaves nothing to {what} ({len(compared)} rows, {len(sizes)} groups)",
                f"choose another {setting.split()[0]} (a count of rows is possible too) or another data.seed",
                file=source,
            )
    return found


def _sides_beside_a_test(compared: list[Row], groups: Groups, n_test: int, data: Data) -> Sides:
    heldout, others = list(range(n_test)), list(range(n_test, len(compared)))
    if data.trained_on or not others:
        return Sides(heldout=heldout, trained_on=others)
    sizes = Counter(groups.of[at] for at in others)
    dev = sides.choose(compared, sizes, data)[1]
    return Sides(
        train=[at for at in others if groups.of[at] not in dev],
        dev=[at for at in others if groups.of[at] in dev],
        heldout=heldout,
    )


def _refuse_nothing_new(test: QaFile, others: QaFile, found: Sides, leaks: Leaks, dropped: int) -> None:
    if len(leaks.exact) == len(found.heldout):
        raise DataError(
            f"all its {len(found.heldout)} questions are in the training file {others.source} too",
            "give questions that are not trained on, or leave those rows out of training with data.drop_leaks=true",
            file=test.source,
        )
    if not found.train:
        why = f"data.drop_leaks left out {dropped} rows" if dropped else f"data.dev took {len(found.dev)} rows"
        raise DataError(f"nothing is left to train on ({why})", "add training questions", file=others.source)


# ------------------------------------------------------------------------------------------------------------ account


def _account(
    divided: _Divided, files: dict[str, QaFile], hashes: dict[str, str], config: Config
) -> tuple[list[Question], SplitManifest]:
    """The questions in the order of the rows, and the manifest without fingerprint, file hashes and seconds."""
    rows, found, data = divided.rows, divided.sides, config.data
    nearest: dict[int, float] = {}
    copied: dict[int, int] = {}
    if found.learned:
        best, similarity = divided.shingles.nearest(found.heldout, found.learned)
        copied = dict(zip(found.heldout, best.tolist(), strict=True))
        nearest = dict(zip(found.heldout, similarity.tolist(), strict=True))
    questions = [_question(rows, at, divided.group_of[at], nearest.get(at)) for at in range(len(rows))]
    side_of = found.side_of(len(rows))
    conflicts = split_account.conflicts(rows)
    source = next(role for role in ("qa", "test") if role in files)
    manifest = SplitManifest(
        fingerprint="",
        split_id=storage.sha256_json([[*_content(q), side_of[at]] for at, q in enumerate(questions)]),
        source=files[source].source,
        source_sha256=hashes[source],
        files=[file.described(role, hashes[role]) for role, file in files.items()],
        n_train=len(found.train),
        n_dev=len(found.dev),
        n_heldout=len(found.heldout),
        n_trained_on=len(found.trained_on),
        n_groups_train=len({questions[at].group for at in found.train}),
        n_groups_dev=len({questions[at].group for at in found.dev}),
        n_groups_heldout=len({questions[at].group for at in found.heldout}),
        heldout_requested=None if data.test else data.heldout,
        dev_requested=data.dev_size if source == "qa" else 0,
        seed=data.seed,
        similarity=split_account.method(rows, divided.groups, found, data),
        largest_groups=split_account.largest(questions, side_of),
        merges=split_account.merges(divided.groups.links),
        merge_examples=split_account.merge_examples(rows, divided.groups.links),
        conflicts=conflicts[: split_account.MAX_CONFLICTS],
        leakage=leakage.summary(
            rows,
            divided.leaks,
            found.known,
            nearest,
            dropped=divided.dropped,
            long_answer_words=data.long_answer_words,
        ),
        baselines=split_account.baselines(rows, divided.shingles, found, copied, config),
        warnings=[
            *leakage.warnings(divided.leaks, found, divided.dropped),
            *split_account.warnings(questions, found, len(conflicts), data),
        ],
        seconds=0.0,
    )
    return questions, manifest


def _question(rows: list[Row], at: int, group: int, nearest_train: float | None) -> Question:
    row, first = rows[at], sides.as_compared(rows[group])
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


def _taught(divided: _Divided, again: QaFile, questions: list[Question]) -> list[Question]:
    """The second held-out side: each question in the group of the training question that it restates."""
    taken = {question.id for question in questions}
    found = []
    for row, at in taught.restated(again, divided.rows, divided.sides.train):
        named = replace(row, id=f"taught-{row.row}-{row.id}") if row.id in taken else row
        found.append(_question([named], 0, 0, None).model_copy(update={"group": questions[at].group}))
    return found


def _content(question: Question) -> list[Any]:
    return [question.id, question.question, question.answer, question.references, question.group]
