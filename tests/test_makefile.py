"""What make runs again. The verbs are stood in for by one that writes its manifest, and then finds nothing changed unless it is forced."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VERBS = ["split", "train", "export", "predict", "score", "compare", "report"]
STAND_IN = """#!/bin/sh
case $1 in
  split) file=runs/$3/split/split.json ;;
  train|export) file=runs/$3/$1.json ;;
  predict) file=runs/$3/predictions/manifest.json ;;
  score) file=runs/$3/scores/manifest.json ;;
  compare) file=reports/$3/comparison.json ;;
  report) file=reports/$3/report.html ;;
esac
mkdir -p "$(dirname $file)"
case "$*" in *--force*) rm -f $file ;; esac
[ -e $file ] || echo made > $file
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("Makefile", "harness", "data", "pyproject.toml", "requirements"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "my.yaml").write_text("description: mine\n")
    stand_in = tmp_path / ".venv" / "bin" / "harness"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    (tmp_path / ".venv" / "ready").touch()
    return tmp_path


def ran(project: Path, *arguments: str) -> list[str]:
    """The verbs that `make` with these arguments ran, in order."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", *arguments], cwd=project, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return re.findall(r"^\.venv/bin/harness (\w+) --run", done.stdout, re.MULTILINE)


def test_nothing_runs_twice_and_everything_after_a_change(project: Path) -> None:
    """A change of what a late stage alone reads leaves the early ones' manifests as they are; the late one must run all the same."""
    chosen = ["train", "eval", "CONFIG=my.yaml"]
    assert ran(project, *chosen) == VERBS
    assert ran(project, *chosen) == []
    for setting in ("SET=train.max_steps=60", "SET=compare.resamples=2000"):
        assert ran(project, *chosen, setting) == VERBS
        assert ran(project, *chosen, setting) == []
    assert ran(project, *chosen) == VERBS
    time.sleep(0.01)
    (project / "my.yaml").write_text("compare: {resamples: 3000}\n")
    assert ran(project, *chosen) == VERBS
    assert ran(project, *chosen) == []


def test_a_later_target_goes_on_where_an_earlier_one_ended(project: Path) -> None:
    assert ran(project, "train") == VERBS[:2]
    assert ran(project, "eval") == VERBS[2:]
