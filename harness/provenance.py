"""`runs/<run>/run.json`: everything needed to repeat a run, and when each stage ran."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness import __version__
from harness.config import Config
from harness.errors import ArtifactError
from harness.records import GitState, Machine, Provenance
from harness.storage import RunFolder, read_json, read_typed, write_json

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "unsloth",
    "unsloth_zoo",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "safetensors",
    "tokenizers",
    "gguf",
    "xllamacpp",
    "evaluate",
    "rouge-score",
    "numpy",
    "scipy",
    "datasketch",
    "wandb",
    "trackio",
    "mlflow-skinny",
    "tensorboard",
    "plotly",
    "pydantic",
)


REPEATED = ("split", "train", "export", "predict", "score", "compare")
"""The stages that make a comparison, in order."""


@dataclass
class Times:
    """When a stage began, and how long it has taken."""

    started: str
    began: float

    @property
    def seconds(self) -> float:
        """Wall time since the stage began."""
        return round(time.monotonic() - self.began, 2)


@contextmanager
def timed() -> Iterator[Times]:
    """The times of what runs inside."""
    yield Times(_now(), time.monotonic())


def record(run: RunFolder, config: Config, stage: str, command: str, times: Times) -> None:
    """Notes in run.json that a stage wrote its output, with the resolved config and the machine.

    The environment is not recorded: it holds keys.
    """
    try:
        found = read_json(run.run_json) if run.run_json.exists() else {}
    except ArtifactError:
        found = {}  # everything in a truncated run.json is written again here
    kept = found.get("stages") if isinstance(found, dict) else None
    stages = {name: old for name, old in kept.items() if isinstance(old, dict)} if isinstance(kept, dict) else {}
    stages[stage] = {
        "status": "done",
        "started": times.started,
        "ended": _now(),
        "seconds": times.seconds,
        "command": command,
    }
    seeds = {"split": config.data.seed, "train": config.train.seed}
    write_json(
        run.run_json,
        {
            "schema_version": 1,
            "run": run.name,
            "harness": __version__,
            "config": config.model_dump(mode="json"),
            "git": git_state(),
            "packages": package_versions(),
            "machine": machine(),
            "seeds": {**seeds, "score": config.score.seed, "compare": config.compare.seed},
            "stages": stages,
        },
    )


def read(run: RunFolder) -> Provenance:
    """The content of run.json; empty if there is none. ArtifactError if it is damaged."""
    return read_typed(run.run_json, Provenance) if run.run_json.exists() else {}


def commands(record: Mapping[str, Any]) -> list[str]:
    """The commands that reproduce a run, in order and each once: those that run.json recorded, and the report's, with the options of the last."""
    stages = record.get("stages", {})
    found = [command for verb in REPEATED if (command := stages.get(verb, {}).get("command"))]
    if found and found[-1].startswith("harness compare "):
        found.append(found[-1].replace("compare", "report", 1))
    return list(dict.fromkeys(found))


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide the numbers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state() -> GitState:
    """{`commit`, `dirty`} of the harness's own checkout; empty outside one."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def machine() -> Machine:
    """Platform, Python, cores; nothing that names the host or its user."""
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
