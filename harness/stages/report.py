"""Stage: the report. A pure function of the JSON that the other stages left: same files, same bytes.

Reads everything below `runs/<run>` and `reports/<run>/comparison.json`; writes `report.md` and, last, `report.html`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from harness import storage
from harness.config import Config
from harness.errors import ArtifactError, ConfigError
from harness.records import (
    Comparison,
    ExportManifest,
    GateResult,
    HistoryPoint,
    JudgeResult,
    MarksResult,
    Pair,
    Prediction,
    PredictionManifest,
    Question,
    Record,
    ReportTitle,
    Score,
    SplitManifest,
    TrainManifest,
)
from harness.report import page
from harness.report.headline import variant_order
from harness.report.sections import Inputs
from harness.storage import RunFolder

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)
J = TypeVar("J", MarksResult, JudgeResult)


def run(
    run: RunFolder,
    config: Config,
    *,
    others: Sequence[RunFolder] = (),
    tested: Sequence[Pair] = (),
    refused: Mapping[str, str] | None = None,
    force: bool = False,
) -> Path:
    """Writes the run's report and returns the path of report.html.

    A report of several runs has a separate folder (`folder_of`): that of the first run stays unchanged.

    Args:
        run: the run whose `comparison.json` exists; any other file may be missing, and the report then says so.
        config: shown as provenance where the comparison carries none.
        others: further runs, whose curves are overlaid and whose numbers are shown beside this run's.
        tested: the pairs across these runs, named `run/variant`; a difference without one is shown as not tested.
        refused: why one of the further runs must not be compared with this one.
        force: write even if nothing changed.

    Raises:
        ArtifactError: comparison.json is missing, or any file is damaged.
        StorageError: the report cannot be written.
    """
    settings, refused = config.model_dump(mode="json"), dict(refused or {})
    fingerprint = storage.sha256_json(
        [
            settings,
            [_contents(folder) for folder in (run, *others)],
            [pair.model_dump() for pair in tested],
            refused,
            _code(),
        ]
    )
    page_html, page_md = (folder_of(run, others) / file.name for file in (run.report_html, run.report_md))
    if not force and page_md.exists() and _written(page_html) == fingerprint:
        log.info(f"report {page_html} is up to date")
        return page_html
    inputs = read(run)
    log.info(f"writing the report of {inputs.comparison.n} questions and {len(inputs.comparison.variants)} variants")
    further = [read(other) for other in others]
    rendered = page.html(inputs, further, tested, refused, settings, fingerprint)
    storage.write_text(page_md, page.markdown(inputs, further, tested, refused))
    storage.write_text(page_html, rendered)
    log.info(f"wrote {page_html} ({len(rendered.encode()) / 1e6:.1f} MB)")
    return page_html


def folder_of(run: RunFolder, others: Sequence[RunFolder]) -> Path:
    """The report's folder: `reports/A`, of several runs `reports/A-vs-B`.

    Raises:
        ConfigError: the names together are too long for a folder, or a run has that name.
    """
    if not others:
        return run.reports
    folder = RunFolder("-vs-".join([run.name, *(other.name for other in others)]), run.root).reports
    if (folder / run.comparison_json.name).exists():
        raise ConfigError(f"{folder} is the report of a run of that name", "rename that run")
    return folder


def set_title(run: RunFolder, title: str | None, note: str | None) -> None:
    """Keeps the user's title and note of a run beside its comparison; None leaves them unchanged, an empty text removes them."""
    if title is None and note is None:
        return
    old = _manifest(run.title_json, ReportTitle) or ReportTitle()
    new = ReportTitle(title=old.title if title is None else title, note=old.note if note is None else note)
    if new != old:
        storage.write_json(run.title_json, new)


def read(run: RunFolder) -> Inputs:
    """Everything of a run that the report shows; only comparison.json must exist."""
    written = storage.read_record(run.comparison_json, Comparison)
    comparison = written.model_copy(
        update={"variants": {variant: written.variants[variant] for variant in variant_order(written)}}
    )
    split, train = _manifest(run.split_json, SplitManifest), _manifest(run.train_json, TrainManifest)
    if split and split.split_id != comparison.split_id:
        raise ArtifactError(
            "is not of the present split", "run harness predict, score and compare again", file=run.comparison_json
        )
    _check(run.heldout_jsonl, split and split.heldout_sha256, "split")
    _check(run.history_jsonl, train and train.history_sha256, "train --force")
    prompts = {}
    for variant in comparison.variants:
        (answers, asked), (scores, scored) = run.prediction(variant), run.score(variant)
        _check(answers, (found := _manifest(asked, PredictionManifest)) and found.lines_sha256, "predict")
        prompts |= {variant: found.prompt} if found and found.prompt else {}
        if scored.exists() and scores.exists():
            storage.read_scored(run, variant, comparison)
    gate = _manifest(run.gate_json, GateResult)
    return Inputs(
        comparison=comparison,
        questions=_lines(run.heldout_jsonl, Question),
        predictions={variant: _lines(run.prediction(variant)[0], Prediction) for variant in comparison.variants},
        scores={variant: _lines(run.score(variant)[0], Score) for variant in comparison.variants},
        history=_lines(run.history_jsonl, HistoryPoint),
        split=split,
        train=train,
        export=_manifest(run.export_json, ExportManifest),
        gate=gate,
        marks=_of_this_split(run.marks_json, MarksResult, comparison),
        judge=_of_this_split(run.judge_json, JudgeResult, comparison),
        title=_manifest(run.title_json, ReportTitle) or ReportTitle(),
        prompts=prompts,
        gate_is_old=gate is not None and gate.comparison_sha256 != storage.results_sha256(written),
    )


def _of_this_split(path: Path, kind: type[J], comparison: Comparison) -> J | None:
    found = _manifest(path, kind)
    return found if found and found.split_id == comparison.split_id else None


def _check(path: Path, sha256: str | None, command: str) -> None:
    if sha256 and path.exists():
        storage.check_written(path, sha256, command)


def _lines(path: Path, kind: type[R]) -> list[R]:
    return storage.read_records(path, kind) if path.exists() else []


def _manifest(path: Path, kind: type[R]) -> R | None:
    return storage.read_record(path, kind) if path.exists() else None


def _contents(run: RunFolder) -> list[list[str]]:
    """Name and hash of every file of `run` that the report reads."""
    files = [
        run.comparison_json,
        run.gate_json,
        run.title_json,
        run.marks_json,
        run.judge_json,
        run.heldout_jsonl,
        run.history_jsonl,
        run.split_json,
        run.train_json,
        run.export_json,
    ]
    files += sorted(run.predictions.glob("*.jsonl")) + sorted(run.scores.glob("*.jsonl"))
    # The parent's name distinguishes predictions/base.jsonl from scores/base.jsonl.
    return [
        [f"{run.name}/{file.parent.name}/{file.name}", storage.sha256_file(file)] for file in files if file.exists()
    ]


def _code() -> list[str]:
    return [storage.code_sha256("harness.stages.report"), storage.sha256_tree(page.TEMPLATES)]


def _written(page: Path) -> str | None:
    """The fingerprint in the first kilobytes of a page, which is its own manifest; None if there is none."""
    if not page.exists():
        return None
    with page.open(encoding="utf-8", errors="replace") as file:
        head = file.read(4096)
    _, found, rest = head.partition('<meta name="fingerprint" content="')
    return rest.partition('"')[0] if found else None
