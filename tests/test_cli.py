"""The command line: quick help, one line an error, and a record of every stage in run.json."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from harness import __version__, errors, storage
from harness.cli import app
from harness.config import load
from harness.errors import HarnessError
from harness.records import PredictionSet
from harness.stages import demo as demo_stage
from harness.stages import split as split_stage
from harness.storage import RunFolder
from tests.helpers import scored_run

PROJECT = Path(__file__).parent.parent


def commands(group: Any, *before: str) -> dict[str, Any]:
    """Every verb, `baseline save` and its like too, and its click command."""
    found = {}
    for name, command in group.commands.items():
        found[" ".join([*before, name])] = command
        if hasattr(command, "commands"):
            found |= commands(command, *before, name)
    return found


COMMANDS = commands(get_command(app))
VERBS = sorted(COMMANDS)
MENDABLE = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HarnessError)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a QA file of twelve different questions."""
    monkeypatch.chdir(tmp_path)
    topics = "speech trade property elections worship taxation citizenship emergency language courts services tribunals".split()
    rows = [
        {"question": f"Which article of the text is about {t}?", "answer": f"It is {t[::-1]} {i}"}
        for i, t in enumerate(topics)
    ]
    (tmp_path / "qa.json").write_text(json.dumps(rows))
    return tmp_path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def error_of(result: Any, code: int = 2) -> str:
    """The one line on stderr."""
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and "Traceback" not in result.output
    return result.stderr.removeprefix("error: ").rstrip("\n")


def in_process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "harness", *arguments], capture_output=True, text=True, **options)


# --------------------------------------------------------------------------------------------------------------- help


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; began = time.process_time(); sys.argv = ['harness', '--help']\n"
        "from harness.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'plotly', 'pydantic', 'wandb'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy), file=sys.stderr); print(time.process_time() - began, file=sys.stderr)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT) for _ in range(2)]
    assert "HEAVY []" in runs[0].stderr
    # CPU time, the better of two: the machine may be busy.
    assert min(float(r.stderr.splitlines()[-1]) for r in runs) < 0.5
    for verb in VERBS:
        assert re.search(rf"\b{verb.split()[0]}\b", runs[0].stdout)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_and_option_is_explained(verb: str) -> None:
    command = COMMANDS[verb]
    assert command.help and command.help.strip().splitlines()[0].endswith(".")
    for parameter in command.params:
        if parameter.name != "help":
            assert parameter.help, f"{verb} {parameter.name}"
    assert run(*verb.split(), "--help").exit_code == run(*verb.split(), "-h").exit_code == 0


def test_the_pipeline_has_its_verbs() -> None:
    assert {"split", "train", "export", "predict", "score", "compare", "report"} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_in_the_readme(verb: str) -> None:
    text = (PROJECT / "README.md").read_text() if (PROJECT / "README.md").exists() else ""
    if len(text) < 500:
        pytest.skip("the README is not written yet")
    assert re.search(rf"\bharness {verb}\b|`{verb}`|\bmake {verb}\b", text)


def test_no_verb_shows_the_help() -> None:
    result = run()
    assert result.exit_code == 0 and "Usage" in result.output and "split" in result.output


def test_the_version_is_shown() -> None:
    result = run("--version")
    assert (result.exit_code, result.output) == (0, f"qa-harness {__version__}\n")


def test_the_help_is_grouped_and_every_verb_has_an_example() -> None:
    text = run("--help").output
    assert text.index("Start here") < text.index("Pipeline, in this order") < text.index("Results")
    for verb, command in COMMANDS.items():
        if not hasattr(command, "commands") and verb not in ("baseline show", "baseline diff", "baseline save"):
            assert f"Example: harness {verb}" in (command.epilog or ""), verb
    assert not re.search(r"--force\s+<", run("split", "--help").output), "a switch takes no value"


def test_a_target_of_make_is_answered_with_the_verb() -> None:
    result = run("eval")
    assert result.exit_code == 2 and "'eval' is a make target; the verb is: harness run" in result.stderr


def test_a_reader_that_is_gone_is_no_error(folder: Path) -> None:
    """`harness split | head -1`: the work is finished, and nothing is said of the pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "harness", "split", "--qa", "qa.json"],
            cwd=folder,
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
        )
    assert (done.returncode, done.stderr) == (0, "") and (folder / "runs/tiny/split/split.json").exists()


def test_calls_that_change_nothing_leave_no_trace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an unchanged stage, nor a question, nor an unknown variant changes the record of a run."""
    assert run("split", "--qa", "qa.json").exit_code == 0
    before = (folder / "runs/tiny/run.json").read_bytes()
    assert run("split", "--qa", "qa.json").exit_code == 0
    monkeypatch.setattr(demo_stage, "run", lambda *_: [("Who?", "base", "Nobody.")])
    assert "Nobody." in run("demo", "Who?").output
    assert "no variant 'foo' in this config; use one of base, adapter" in error_of(run("predict", "--variant", "foo"))
    assert "is missing; run harness train --run tiny first" in error_of(run("export"))
    assert (folder / "runs/tiny/run.json").read_bytes() == before
    assert sorted(p.name for p in (folder / "runs/tiny").iterdir()) == [".lock", "run.json", "split"]


def test_run_stops_at_the_stage_asked_for_and_repeats_nothing(folder: Path) -> None:
    first, again = run("run", "--until", "split", "--qa", "qa.json"), run("run", "--until", "split", "--qa", "qa.json")
    assert first.exit_code == again.exit_code == 0, first.output
    assert first.stdout.splitlines()[0].startswith("run: config tiny, questions qa.json, model ")
    said = [line for line in again.stdout.splitlines() if not line.startswith("split: warning: ")]
    assert len(said) == 3 and said[-1].startswith("split: unchanged")


def test_the_old_name_of_a_config_is_found_with_a_note(folder: Path) -> None:
    result = run("split", "--config", "seed-llama3-8b", "--qa", "qa.json")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("note: config seed-llama3-8b is now named notebook-llama3-8b\n")


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("kind", MENDABLE, ids=lambda kind: kind.__name__)
def test_an_error_that_the_user_can_fix_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: type[HarnessError]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise kind("is\nwrong", "hint it", file="x.json", row=3)

    monkeypatch.setattr(split_stage, "run", fail)
    code = 3 if kind is errors.IncomparableError else 2
    assert error_of(run("split", "--qa", "qa.json"), code) == "x.json, row 3: is wrong; hint it"
    assert not (folder / "runs/tiny").exists()


def test_a_bug_keeps_its_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_stage, "run", lambda *_, **__: 1 / 0)
    result = run("split", "--qa", "qa.json")
    assert isinstance(result.exception, ZeroDivisionError) and "error: " not in result.stderr


@pytest.mark.parametrize(
    "left_by_clean_up",
    [None, OSError(errno.EBADF, "Bad file descriptor"), errors.StorageError("cannot write"), ValueError()],
)
def test_an_interruption_is_reported_and_leaves_no_trace(
    folder: Path, monkeypatch: pytest.MonkeyPatch, left_by_clean_up: Exception | None
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            if left_by_clean_up:
                raise left_by_clean_up

    monkeypatch.setattr(split_stage, "run", interrupt)
    assert error_of(run("split", "--qa", "qa.json"), 130) == "interrupted; run the same command to resume"
    assert not (folder / "runs/tiny").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["split", "--config", "nope"], "no config 'nope'; use one of"),
        (["split", "--qa", "none.json"], "none.json: "),
        (["split", "--set", "train.max_step=3"], "unknown key 'train.max_step' (did you mean 'max_steps'?)"),
        (["split", "--set", "train.max_steps"], "--set 'train.max_steps' is not KEY=VALUE"),
        (["split", "--heldout", "1"], "data.heldout: must be a share between 0 and 1, or a count of 2 or more"),
        (["split", "--run", "../x"], "run name '../x' is not usable"),
        (["split", "--qa", "few.json"], "few.json: "),
        (["train"], "no run 'tiny'; there are: begun; harness split --run tiny starts one"),
        (["train", "--run", "begun"], "runs/begun/split/split.json: is missing; run harness split --run begun first"),
        (["export", "--run", "begun"], "runs/begun/train.json: is missing; run harness train --run begun first"),
        (["predict", "--run", "begun"], "runs/begun/split/split.json: is missing; run harness split"),
        (["score", "--run", "begun"], "is missing; run harness split --run begun first"),
        (["compare", "--run", "begun"], "is missing; run harness split --run begun first"),
        (["report", "--run", "begun"], "reports/begun/comparison.json: is missing; run harness compare --run begun"),
        (["demo", "--run", "nope"], "no run 'nope'; there are: begun;"),
        (["run", "--until", "eval"], "no stage 'eval'; use one of split, train,"),
        (["split", "--config", "my conf v1.2.yaml"], "its name 'my conf v1.2' cannot name the run; give a name"),
        (["compare", "one"], "give two runs, or none and --run"),
        (["compare", "one", "two"], "no run 'one'; there are: begun"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(folder: Path, arguments: list[str], line: str) -> None:
    (folder / "few.json").write_text('[{"question": "q", "answer": "a"}]')
    (folder / "my conf v1.2.yaml").write_text("description: mine")
    (folder / "runs" / "begun").mkdir(parents=True)
    (folder / "runs" / "begun" / "run.json").write_text("{}")
    assert line in error_of(run(*arguments))
    assert not (folder / "reports").exists() and [p.name for p in (folder / "runs").iterdir()] == ["begun"]
    assert (folder / "runs" / "begun" / "run.json").read_text() == "{}"


def test_a_model_that_is_not_there_is_one_line(folder: Path) -> None:
    assert run("split", "--qa", "qa.json").exit_code == 0
    assert error_of(run("train", "--qa", "qa.json", "--set", "model.path=./none")).startswith(
        "./none: there is no such folder; "
    )


def test_a_device_that_is_not_there_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("split", "--qa", "qa.json").exit_code == 0
    assert "needs a CUDA device and there is none" in error_of(run("train", "--qa", "qa.json", "--set", "device=cuda"))


def test_an_output_folder_that_cannot_be_written_is_one_line(folder: Path) -> None:
    (folder / "runs").write_text("")
    assert re.match(
        r"runs\S*: cannot write: .*; check the path and its permissions", error_of(run("split", "--qa", "qa.json"))
    )


def test_a_run_in_use_is_one_line(folder: Path) -> None:
    with RunFolder("tiny").lock():
        assert re.match(
            r"run folder runs/tiny is in use by process \d+; wait for it to end",
            error_of(run("split", "--qa", "qa.json")),
        )


def test_the_process_ends_with_the_code_and_without_a_traceback(folder: Path) -> None:
    done = in_process("split", "--qa", "none.json", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("error: none.json: ") and done.stderr.count("\n") == 1
    assert in_process("no-such-verb", cwd=folder).returncode == 2


# ---------------------------------------------------------------------------------------------------- what is printed


def test_the_first_line_says_what_was_chosen(folder: Path) -> None:
    result = run("split", "--qa", "qa.json", "--run", "mine", "--set", "device=cpu", "--heldout", "0.3")
    assert result.exit_code == 0, result.output
    first, *rest = result.stdout.splitlines()
    model = PROJECT / "data" / "tiny-llama3"
    assert (
        first
        == f"split: config tiny, questions qa.json, model {model}, device cpu, run mine, prompt: text 'Question: {{question}} Answer:' (auto: the tokenizer has no chat template)"
    )
    assert any(re.match(r"split: \d+ rows to train on, \d+ for dev, \d+ held out in \d+ groups", line) for line in rest)


def test_the_run_is_named_by_its_config(folder: Path) -> None:
    (folder / "my-recipe.yaml").write_text("description: mine")
    assert run("split", "--config", "my-recipe.yaml", "--qa", "qa.json").exit_code == 0
    assert (folder / "runs/my-recipe/split/split.json").exists()


def test_run_json_is_enough_to_repeat_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "c0ffee" * 6 + "dead")
    monkeypatch.setenv("HF_TOKEN", "hf_canaryCanaryCanary")
    monkeypatch.setattr(sys, "argv", ["harness", "split", "--qa", "qa.json", "--set", "data.seed=5"])
    assert run("split", "--qa", "qa.json", "--set", "data.seed=5").exit_code == 0
    text = (folder / "runs/tiny/run.json").read_text()
    record = json.loads(text)
    assert record["config"] == json.loads(load("tiny", ["data.seed=5"], qa="qa.json").model_dump_json())
    assert record["seeds"]["split"] == 5 and record["packages"]["pydantic"] and record["machine"]["python"]
    stage = record["stages"]["split"]
    assert (stage["status"], stage["command"]) == ("done", "harness split --qa qa.json --set data.seed=5")
    assert stage["seconds"] >= 0 and stage["started"] <= stage["ended"]
    assert "c0ffee" not in text and "hf_canary" not in text


def test_a_truncated_run_json_is_rewritten(folder: Path) -> None:
    storage.write_text(folder / "runs/tiny/run.json", '{"config": ')
    assert run("split", "--qa", "qa.json").exit_code == 0
    assert json.loads((folder / "runs/tiny/run.json").read_text())["stages"]["split"]["status"] == "done"


def test_score_to_report_runs_from_the_command_line(folder: Path) -> None:
    """On predictions that exist already: no model."""
    made = scored_run.make(folder, {"base": lambda _: "nothing", "adapter": lambda q: q.answer}, name="tiny")
    storage.write_json(made.predict_json, PredictionSet(fingerprint="f", variants=["base", "adapter"]))
    quick = ["--set", "score.resamples=100", "--set", "compare.resamples=100"]
    for verb in ("score", "compare", "report"):
        result = run(verb, *quick)
        assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "Report: reports/tiny/report.html (harness report --run tiny --open)"
    assert "\nShip: yes, as Adapter\n" in result.stdout
    assert storage.read_json(made.comparison_json)["variants"]["adapter"]["metrics"]["exact_match"]["value"] == 1.0
