"""`runs/<run>/run.json`: everything needed to repeat a run, and the status of each stage."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness import __version__
from harness.config import Config
from harness.errors import ArtifactError, StorageError, is_interrupt
from harness.storage import RunFolder, read_json, write_json

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
    "plotly",
    "pydantic",
)


REPEATED = ("split", "train", "export", "predict", "score", "compare")
"""The stages that make a comparison, in order."""


@contextmanager
def recorded(run: RunFolder, config: Config, verb: str, arguments: list[str]) -> Iterator[None]:
    """Notes a stage's start, end and outcome in run.json, with the resolved config and the machine.

    The environment is not recorded: it holds keys.
    """
    began = time.monotonic()
    _note(run, config, verb, {"status": "running", "started": _now(), "command": shlex.join(["harness", *arguments])})

    def ended(status: str) -> None:
        _note(run, config, verb, {"status": status, "ended": _now(), "seconds": round(time.monotonic() - began, 2)})

    try:
        yield
    except BaseException as error:
        # What went wrong is what must be told: that a full disk has no room for this note either is no news.
        with suppress(StorageError):
            ended("interrupted" if is_interrupt(error) else "failed")
        raise
    ended("done")


def _note(run: RunFolder, config: Config, verb: str, stage: dict[str, Any]) -> None:
    try:
        record = read_json(run.run_json) if run.run_json.exists() else {}
    except ArtifactError:
        record = {}  # a torn run.json holds nothing that is not written again here
    if not isinstance(record, dict):
        record = {}
    kept = record.get("stages")
    stages = {name: told for name, told in kept.items() if isinstance(told, dict)} if isinstance(kept, dict) else {}
    stages[verb] = {**({} if stage.get("status") == "running" else stages.get(verb, {})), **stage}
    record |= {
        "schema_version": 1,
        "run": run.name,
        "harness": __version__,
        "config": config.model_dump(mode="json"),
        "git": git_state(),
        "packages": package_versions(),
        "machine": machine(),
        "seeds": {
            "split": config.data.seed,
            "train": config.train.seed,
            "score": config.score.seed,
            "compare": config.compare.seed,
        },
        "stages": stages,
    }
    write_json(run.run_json, record)


def commands(record: dict[str, Any]) -> list[str]:
    """The commands that make a run again, in order: those that run.json recorded, and the report's, with the options of the last."""
    stages = record.get("stages", {})
    found = [command for verb in REPEATED if (command := stages.get(verb, {}).get("command"))]
    if found and found[-1].startswith("harness compare "):
        found.append(found[-1].replace("compare", "report", 1))
    return found


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide the numbers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any]:
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


def machine() -> dict[str, Any]:
    """Platform, Python, cores; nothing that names the host or its user."""
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
