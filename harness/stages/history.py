"""History: quality over time, from the committed baselines and the reports that are here; writes `reports/history.html`.

A baseline holds every question's score, so each version of it in git is a measurement with an interval. Points are joined only where questions and
metric are the same: a change of either is a break in the line, not a change of the model.
"""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from harness import storage
from harness.analysis import statistics
from harness.errors import ArtifactError
from harness.gating import baseline
from harness.records import Baseline, Comparison
from harness.report import history_page
from harness.report.headline import primary_metric
from harness.report.history_page import Measurement

log = logging.getLogger(__name__)

FILE = "history.html"
DEPTH = 200
"""Versions of the baselines, the newest first."""


def run(root: Path | str = ".") -> Path:
    """Writes the page and returns its path.

    Raises:
        ArtifactError: there is neither a baseline nor a comparison.
    """
    root = Path(root)
    found = sorted({*_baselines(root), *_comparisons(root)}, key=lambda m: (m.date, m.source))
    if not found:
        raise ArtifactError(
            "there is no history yet: no baseline is committed and no run was compared",
            "run harness run, then harness baseline save and commit the file",
        )
    path = root / "reports" / FILE
    storage.write_text(path, history_page.html(found))
    log.info(f"wrote {path}: {len({m.source for m in found})} results, {len({m.variant for m in found})} variants")
    return path


def _baselines(root: Path) -> Iterator[Measurement]:
    """Every committed version of every baseline; none outside a git checkout."""
    commits = _git(root, "log", f"-{DEPTH}", "--format=%x00%H %cI", "--name-only", "--", "reports/baseline*.json")
    for entry in filter(None, commits.split("\0")):
        head, *files = entry.split("\n")
        commit, _, date = head.partition(" ")
        for file in filter(None, files):
            try:
                text = _git(root, "show", f"{commit}:./{file}") or _git(root, "show", f"{commit}:{file}")
                if text:
                    yield from _of_baseline(
                        Baseline.model_validate(json.loads(text)), date, f"{Path(file).stem} {commit[:10]}"
                    )
            except (ValueError, ValidationError):
                log.info(f"{file} at {commit[:10]} is of another version of the harness, and is left out")


def _of_baseline(found: Baseline, date: str, source: str) -> Iterator[Measurement]:
    groups = [question.group for question in found.questions]
    questions = storage.sha256_json([[q.id, q.sha256] for q in found.questions])
    for variant in found.variants:
        for metric, signature in found.metrics.items():
            values = baseline.column(found, variant, metric)
            mean = statistics.mean_intervals(values, groups, resamples=0, seed=0)[0]
            if mean.value is not None:
                yield Measurement(
                    date, source, variant, metric, mean.value, mean.ci95, mean.n, f"{questions} {signature}"
                )


def _comparisons(root: Path) -> Iterator[Measurement]:
    """The primary metric of every run that was compared here."""
    for path in sorted((root / "reports").glob("*/comparison.json")):
        try:
            found = storage.read_record(path, Comparison)
        except ArtifactError as error:
            log.info(f"{path} is left out: {error.problem}")
            continue
        metric = primary_metric(found) or ""
        ended = [stage.get("ended", "") for stage in found.provenance.get("stages", {}).values()]
        for variant, result in found.variants.items():
            measured = result.metrics.get(metric)
            if measured and measured.value is not None:
                yield Measurement(
                    max(ended, default=""),
                    f"run {found.run}",
                    variant,
                    metric,
                    measured.value,
                    measured.ci95,
                    measured.n,
                    f"{found.split_id} {measured.signature}",
                )


def _git(root: Path, *arguments: str) -> str:
    """The output of git; empty where there is no git, no repository, or no such version."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
