"""Every run below `runs/` and `reports/`, one row each: its last stage and its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import storage
from harness.errors import ArtifactError, ConfigError
from harness.records import Comparison, GateResult
from harness.report.first_screen import mapping, measured_on, model_name
from harness.report.headline import GATE_WORDS, percent, primary_metric, tuned_variant
from harness.storage import RunFolder

STAGES = ("split", "train", "export", "predict", "score", "compare", "report", "gate")


@dataclass(frozen=True)
class RunRow:
    """One run; what is not known is empty or None."""

    run: str
    model: str = ""
    stage: str = ""
    """The last stage whose output is there."""
    date: str = ""
    """When the last recorded stage ended."""
    metric: str = ""
    value: float | None = None
    """Of the variant that represents fine-tuning, 0..1."""
    decision: str = ""
    gate: str = ""
    problem: str = ""
    """What is damaged."""

    @property
    def quality(self) -> str:
        """The value as people read it."""
        return percent(self.value) if self.value is not None else ""


def rows(root: Path | str = ".") -> list[RunRow]:
    """The runs by name. A damaged file is reported in its row and hides no other run."""
    names = {path.name for folder in ("runs", "reports") for path in Path(root, folder).glob("*") if path.is_dir()}
    found = []
    for name in sorted(names):
        try:
            run = RunFolder(name, root)
        except ConfigError:
            continue  # no run has such a name
        # The folder of a report of several runs holds no manifest, and is not a run.
        if run.path.is_dir() or run.comparison_json.exists():
            found.append(_row(run))
    return found


def _row(run: RunFolder) -> RunRow:
    done = [stage for stage in STAGES if (manifest := run.manifest(stage)) and manifest.exists()]
    known: dict[str, Any] = {"run": run.name, "stage": done[-1] if done else ""}
    try:
        if run.run_json.exists():
            recorded = storage.read_json(run.run_json)
            config = mapping(mapping(recorded).get("config"))
            known["model"] = model_name(str(mapping(config.get("model")).get("path") or ""))
        if run.comparison_json.exists():
            known |= _result(storage.read_record(run.comparison_json, Comparison))
        if run.gate_json.exists():
            known["gate"] = GATE_WORDS[storage.read_record(run.gate_json, GateResult).verdict].lower()
    except ArtifactError as error:
        known["problem"] = f"{error.file or run.path}: {error.problem}"
    return RunRow(**known)


def _result(comparison: Comparison) -> dict[str, Any]:
    metric, variant = primary_metric(comparison), tuned_variant(comparison)
    measured = comparison.variants[variant].metrics.get(metric or "") if variant else None
    return {
        "date": measured_on(comparison),
        "metric": metric or "",
        "value": measured.value if measured else None,
        "decision": comparison.shipping.title if comparison.shipping else "",
    }
