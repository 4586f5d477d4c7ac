"""Split on a run folder or a QA file that it cannot use: refused, and nothing half-written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness import cli, storage
from tests.helpers import chain


@pytest.mark.parametrize(
    "text", ["[]", "5", '{"stages": []}', '{"stages": {"split": 5, "score": null}}', "[" * 100_000]
)
def test_a_run_json_of_any_shape_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_text(tmp_path / "runs/tiny/run.json", text)
    assert CliRunner().invoke(cli.app, ["split", "--qa", "none.json"]).exit_code == 2
    assert Path("runs/tiny/run.json").read_text() == text, "a call that is refused leaves no trace"
    chain.write_questions(Path("qa.json"))
    done = CliRunner().invoke(cli.app, ["split", "--qa", "qa.json"])
    assert done.exit_code == 0, done.output
    assert list(json.loads(Path("runs/tiny/run.json").read_text())["stages"]) == ["split"]


def subjects(count: int) -> list[dict[str, str]]:
    return [
        {"question": f"Which {'xyzuvw'[n % 6] * 9} of {chr(97 + n) * 7}?", "answer": f"{chr(97 + n) * 3}"}
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("made", "heldout", "pattern"),
    [
        (subjects(9), "0.1", r"9 rows form 9 groups.*needs 10"),
        ([row | {"group": "one"} for row in subjects(20)], "0.1", r"20 rows form 1 groups"),
        (subjects(12), "0.0000001", r"leaves nothing to hold out"),
        (subjects(12), "12", r"leaves nothing to train on"),
        ([row | {"group": f"{n // 2}"} for n, row in enumerate(subjects(24) * 2)], "3", r"leaves nothing to hold out"),
    ],
)
def test_a_split_that_cannot_be_made_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[dict[str, str]], heldout: str, pattern: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("qa.json").write_text(json.dumps(made))
    result = CliRunner().invoke(cli.app, ["split", "--qa", "qa.json", "--heldout", heldout])
    assert result.exit_code == 2 and re.search(pattern, result.stderr) and result.stderr.startswith("error: qa.json: ")
    assert not Path("runs/tiny/split").exists()
