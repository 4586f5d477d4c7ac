"""Make calls the verbs and decides nothing itself. The verb is replaced by a script that prints its arguments as the shell passes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.selection import select

ROOT = Path(__file__).parent.parent
STAND_IN = f"#!{sys.executable}\nimport json, sys\nprint('VERB', json.dumps(sys.argv[1:]))\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("Makefile", "harness", "data", "pyproject.toml", "requirements"):
        (tmp_path / name).symlink_to(ROOT / name)
    stand_in = tmp_path / ".venv" / "bin" / "harness"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    (tmp_path / ".venv" / "ready").touch()
    return tmp_path


def calls(project: Path, *arguments: str) -> list[list[str]]:
    """The arguments of each call of a verb that `make` with these arguments makes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", *arguments], cwd=project, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("VERB ")]


def test_every_call_asks_the_verbs_whatever_is_there(project: Path) -> None:
    expected = [
        ["run", "--until", "train", "--run", "tiny", "--config", "tiny"],
        ["run", "--run", "tiny", "--config", "tiny"],
    ]
    assert calls(project, "train", "eval") == expected
    assert calls(project, "train", "eval") == expected


def test_a_target_is_its_stage_and_those_before(project: Path) -> None:
    for stage in ("split", "train", "export", "predict", "score", "compare"):
        ((verb, option, until, *_),) = calls(project, stage)
        assert (verb, option, until) == ("run", "--until", stage)
    assert [verb for verb, *_ in calls(project, "gate")] == ["run", "gate"]
    assert [verb for verb, *_ in calls(project, "demo", "ASK=Who?")] == ["run", "demo"]
    assert calls(project, "demo", 'ASK=Who\'s "it"?')[1][-1] == 'Who\'s "it"?'


def test_spaces_and_quotes_in_qa_and_set_arrive_whole(project: Path) -> None:
    settings = 'train.max_steps=60 prompt.template="Q: {question}\\nIt\'s A:" predict.variants=[base, adapter]'
    (found,) = calls(project, "split", "QA=my qa's.json", f"SET={settings}")
    assert found[found.index("--qa") + 1] == "my qa's.json"
    chosen = select(None, "tiny", None, None, found[found.index("--sets") + 1])
    assert chosen.settings == [
        "train.max_steps=60",
        'prompt.template="Q: {question}\\nIt\'s A:"',
        "predict.variants=[base, adapter]",
    ]
    config = chosen.load()
    assert config.prompt.template == "Q: {question}\nIt's A:" and config.train.max_steps == 60


def test_a_baseline_trains_with_other_seeds(project: Path) -> None:
    first, one, two, save = calls(project, "baseline", "SEEDS=1 2", "RUN=mine", "GPUS=2")
    assert first[:3] == ["run", "--gpus", "2"]
    assert [call[call.index("--run") + 1] for call in (one, two)] == ["mine-seed-1", "mine-seed-2"]
    assert "train.seed=2" in two and save[:4] == ["baseline", "save", "mine-seed-1", "mine-seed-2"]


def test_torch_comes_from_the_index_that_is_named(project: Path) -> None:
    plan = ["make", "-n", "-W", "pyproject.toml", "setup", "TORCH_INDEX=https://example.org/cpu"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(plan, cwd=project, env=environment, capture_output=True, text=True, timeout=60)
    assert "pip install --quiet --index-url 'https://example.org/cpu' torch==" in done.stdout
