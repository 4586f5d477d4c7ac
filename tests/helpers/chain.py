"""A whole run on a small model, from the split to the baseline, every file written by the stage that writes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from harness.config import Config
from harness.gating import baseline
from harness.stages import compare, export, predict, report, score, split, train
from harness.storage import RunFolder
from tests.helpers import small_run

VARIANTS = ["base", "adapter", "merged_16bit", "gguf_q8_0"]
TIMES = {
    "seconds",
    "load_seconds",
    "tokens_per_second",
    "peak_memory_bytes",
    "saved",
    "checksum",
    "lines_sha256",
    "fingerprint",
}


def config(model: Path, qa: Path, **sections: dict[str, Any]) -> Config:
    """Few steps, few questions, four formats."""
    values: dict[str, dict[str, Any]] = {
        "data": {"qa": str(qa), "heldout": 8},
        "train": {
            "engine": "peft",
            "max_steps": 3,
            "save_every": 1,
            "eval_every": 3,
            "lora": {"r": 4, "alpha": 8},
            "load_in_4bit": False,
        },
        "export": {"formats": ["merged_16bit", "gguf_q8_0"]},
        "predict": {"variants": VARIANTS, "max_batch": 2, "fidelity_questions": 2},
        "gate": {"fidelity": {"gguf_q8_0": 0.02}, "size_ratio": {}},
        "score": {"resamples": 100},
        "compare": {"resamples": 100},
    }
    return small_run.config(
        model, **{key: values.get(key, {}) | sections.get(key, {}) for key in values.keys() | sections.keys()}
    )


def write_questions(file: Path, n: int = 40) -> Path:
    """A QA file of `n` questions that have nothing in common."""
    words = [
        "liberty",
        "taxes",
        "salaries",
        "elections",
        "territory",
        "languages",
        "citizenship",
        "commerce",
        "emergency",
        "amendment",
    ]
    rows = [
        {"question": f"{words[i % 10]} {i * 7919} {words[i // 10]}?", "answer": f"Article {i}", "kind": words[i % 2]}
        for i in range(n)
    ]
    file.write_text(json.dumps(rows))
    return file


def run_all(root: Path, model: Path) -> tuple[RunFolder, Config]:
    """Every stage, and the baseline as reports/baseline.json."""
    run, settings = RunFolder("r", root), config(model, write_questions(root / "qa.json"))
    for stage in (split, train, export, predict, score, compare, report):
        stage.run(run, settings)
    baseline.save(
        root / "reports" / "baseline.json", baseline.snapshot(run, settings), settings, confirm=lambda _: True
    )
    return run, settings


def copy(run: RunFolder, root: Path) -> RunFolder:
    """The same run in another folder."""
    for folder in ("runs", "reports"):
        shutil.copytree(run.root / folder, root / folder)
    return RunFolder(run.name, root)


def result(run: RunFolder) -> Any:
    """The comparison without times, and without the hashes of files that hold times."""
    return _without_times(json.loads(run.comparison_json.read_bytes()))


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(part) for key, part in value.items() if key not in TIMES}
    return [_without_times(part) for part in value] if isinstance(value, list) else value
