"""W&B: offline without a key, it never fails a stage, and a comparison is logged once, into the group of its training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness import storage
from harness.config import Config
from harness.records import Comparison, HistoryPoint
from harness.storage import RunFolder
from harness.training import evaluation_log, tracker
from harness.training.history import HistoryCallback
from harness.training.tracker import Start
from harness.training.wandb_log import WandbLog
from tests.helpers.report_fixture import write_run

SECRET = "c0ffee" * 6 + "dead"


class FakeRun:
    """A W&B run that may fail."""

    url = "https://example.org/run"

    def __init__(self, fail: str = ""):
        self.fail, self.summary = fail, {}

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        if self.fail == "log":
            raise RuntimeError(f"401 for key {SECRET}")

    def finish(self) -> None:
        if self.fail == "finish":
            raise TimeoutError(SECRET)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each `wandb.init`; WANDB_* is unset."""
    import wandb

    calls: list[dict[str, Any]] = []
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(wandb, "init", lambda **arguments: calls.append(arguments) or FakeRun())
    return calls


def log(tmp_path: Path, **options: Any) -> WandbLog:
    return WandbLog(
        Start(tmp_path, **{"project": "p", "name": "n", "group": "g", "run_id": "id", "config": {"a": 1}, **options})
    )


# ---------------------------------------------------------------------------------------------------------------- run


@pytest.mark.parametrize(
    ("mode", "key", "expected"),
    [
        (None, None, "offline"),
        (None, SECRET, "online"),
        ("offline", SECRET, "offline"),
        ("online", None, "online"),
        ("", None, "offline"),
        ("disabled", SECRET, "disabled"),
    ],
)
def test_the_mode_is_offline_unless_a_key_or_wandb_mode_says_otherwise(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    started: list[dict[str, Any]],
    mode: str | None,
    key: str | None,
    expected: str,
) -> None:
    for name, value in (("WANDB_MODE", mode), ("WANDB_API_KEY", key)):
        if value is not None:
            monkeypatch.setenv(name, value)
    facts = log(tmp_path).finish()
    assert facts["mode"] == expected
    assert facts["url"] == (FakeRun.url if expected == "online" else None)
    assert [c["mode"] for c in started] == ([] if expected == "disabled" else [expected])


def test_an_unknown_wandb_mode_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real W&B, which refuses it."""
    monkeypatch.setenv("WANDB_MODE", "bogus")
    logged = log(tmp_path)
    facts = logged.finish()
    assert facts["error"]
    assert logged.problem() == "W&B: WANDB_MODE is 'bogus'; set it to online, offline or disabled"
    facts["mode"] = "offline"
    assert logged.problem() == f"W&B: failed ({facts['error']})"
    facts["error"] = None
    assert logged.problem() is None


def test_switched_off_it_starts_nothing(tmp_path: Path, started: list[dict[str, Any]]) -> None:
    off = tracker.chosen(Config.model_validate({"wandb": {"enabled": False}}))
    assert off is tracker.chosen(Config.model_validate({"tracking": "none"})) is tracker.Tracker
    nothing = off(Start(tmp_path, "p", "n", "g", "id"))
    nothing.log({"a": 1}, step=1)
    assert (nothing.finish()["mode"], nothing.problem()) == ("disabled", None)
    assert started == []


def test_a_resumed_training_continues_the_same_run(tmp_path: Path, started: list[dict[str, Any]]) -> None:
    log(tmp_path)
    assert (started[0]["id"], started[0]["resume"], started[0]["dir"]) == ("id", "allow", tmp_path)
    assert started[0]["settings"].disable_git and not started[0]["settings"].save_code


@pytest.mark.parametrize("fail", ["init", "log", "finish"])
def test_wandb_failing_fails_nothing_and_its_message_is_not_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    started: list[dict[str, Any]],
    fail: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import wandb
    from wandb.errors import CommError

    def init(**_: Any) -> FakeRun:
        if fail == "init":
            raise CommError(f"permission denied for {SECRET}")
        return FakeRun(fail)

    monkeypatch.setattr(wandb, "init", init)
    logged = log(tmp_path)
    arguments, control = SimpleNamespace(fp16=False), SimpleNamespace()
    history = HistoryCallback(tmp_path / "h.jsonl", logged, tokens_per_epoch=1, steps=2)
    for step in (1, 2):
        state: Any = SimpleNamespace(global_step=step, epoch=1.0)
        history.on_log(cast(Any, arguments), state, cast(Any, control), logs={"loss": 1.0})
    facts = logged.finish()
    assert facts["error"] == {"init": "CommError", "log": "RuntimeError", "finish": "TimeoutError"}[fail]
    assert SECRET not in json.dumps(facts) + (tmp_path / "h.jsonl").read_text() + caplog.text
    assert len(storage.read_records(tmp_path / "h.jsonl", HistoryPoint)) == 2


def test_wandb_not_installed_fails_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert log(tmp_path).finish()["error"] == "ModuleNotFoundError"


# --------------------------------------------------------------------------------------------------------- evaluation


def records(file: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: a LevelDB log of protocol buffers, in blocks of 32 kB, behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    kind_of_record: Any = wandb_internal_pb2

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield kind_of_record.Record.FromString(whole)
            whole = b""


def wandb_files(run: RunFolder) -> list[Path]:
    return sorted(run.path.glob("wandb/offline-run-*/*.wandb"))


def comparison_of(run: RunFolder) -> Comparison:
    return storage.read_record(run.comparison_json, Comparison)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    """A run whose evaluation W&B really logged, offline, in a separate process that has a secret; and the line it printed."""
    root = tmp_path_factory.mktemp("wandb")
    run = write_run(root, questions=30, variants=["base", "adapter"])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")} | {
        "HARNESS_CANARY": SECRET
    }
    code = (
        "from harness import storage; from harness.training import evaluation_log; from harness.config import Config; from harness.records import Comparison\n"
        "import sys; assert not {'torch', 'transformers', 'wandb'} & set(sys.modules)\n"
        "run = storage.RunFolder('demo'); comparison = storage.read_record(run.comparison_json, Comparison)\n"
        "for _ in range(2): print(evaluation_log.log_evaluation(run, Config(), comparison))\n"
        "run.report_html.write_text('<p>the page</p>')\n"
        "for _ in range(2): print(evaluation_log.log_page(run, Config(), comparison))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return run, done.stdout


def test_an_evaluation_is_a_run_of_the_training_s_group_and_logged_once(evaluated: tuple[RunFolder, str]) -> None:
    run, said = evaluated
    first, second, *_ = said.splitlines()
    file, _ = wandb_files(run)
    started = next(record.run for record in records(file) if record.WhichOneof("record_type") == "run")
    assert (started.run_group, started.job_type, started.project) == ("demo", "eval", "qa-harness")
    assert first == f"W&B: evaluation logged, offline run {started.run_id}" and started.run_id.startswith("demo-eval-")
    assert second == f"W&B: this evaluation is logged already (offline run {started.run_id})"


def test_the_report_s_page_is_an_artifact_of_the_same_run_and_added_once(evaluated: tuple[RunFolder, str]) -> None:
    run, said = evaluated
    *_, third, fourth = said.splitlines()
    logged = [record for file in wandb_files(run) for record in records(file)]
    started = {record.run.run_id for record in logged if record.WhichOneof("record_type") == "run"}
    assert len(started) == 1 and third == f"W&B: the report's page is an artifact of offline run {started.pop()}"
    assert fourth == "None"
    requests = [record.request for record in logged if record.WhichOneof("record_type") == "request"]
    artifacts = [record.artifact for record in logged if record.WhichOneof("record_type") == "artifact"]
    artifacts += [r.log_artifact.artifact for r in requests if r.WhichOneof("request_type") == "log_artifact"]
    (page,) = [artifact for artifact in artifacts if artifact.type == "report"]
    assert (page.name, [entry.path for entry in page.manifest.contents]) == ("demo-report", ["report.html"])
    assert Path(page.manifest.contents[0].local_path).read_text() == "<p>the page</p>"


def test_the_summary_holds_every_variant_and_metric(evaluated: tuple[RunFolder, str]) -> None:
    run, _ = evaluated
    found: dict[str, Any] = {}
    for record in records(wandb_files(run)[0]):
        found |= {update.key: json.loads(update.value_json) for update in record.summary.update if update.key}
    comparison = comparison_of(run)
    for variant, result in comparison.variants.items():
        assert {metric: found[f"{variant}/{metric}"] for metric in result.metrics} == {
            m: v.value for m, v in result.metrics.items()
        }
        assert found[f"{variant}/size_bytes"] == result.cost.size_bytes
    assert found["verdict"].startswith("Fine-tuning raised exact match") and found["alarms"] == len(comparison.alarms)


def test_the_tables_hold_every_pair_and_every_question(evaluated: tuple[RunFolder, str]) -> None:
    run, _ = evaluated
    tables = {
        file.name.split("_")[0]: json.loads(file.read_text())
        for file in run.path.glob("wandb/offline-run-*/files/media/table/eval/*.json")
    }
    comparison = comparison_of(run)
    pairs = [dict(zip(tables["pairs"]["columns"], row, strict=True)) for row in tables["pairs"]["data"]]
    assert [(p["left"], p["right"], p["metric"], p["delta"], p["verdict"]) for p in pairs] == [
        (p.left, p.right, p.metric, p.delta, p.verdict) for p in comparison.pairs
    ]
    assert len(tables["variants"]["data"]) == sum(len(result.metrics) for result in comparison.variants.values())
    questions = [dict(zip(tables["questions"]["columns"], row, strict=True)) for row in tables["questions"]["data"]]
    lines = [json.loads(line) for line in run.prediction("adapter")[0].read_text().splitlines()]
    scores = [json.loads(line)["scores"] for line in run.score("adapter")[0].read_text().splitlines()]
    assert [(q["id"], q["adapter"]) for q in questions] == [(line["id"], line["text"]) for line in lines]
    assert [q["adapter exact_match_normalized"] for q in questions] == [s["exact_match_normalized"] for s in scores]


def test_no_secret_and_nothing_of_the_machine_is_logged(evaluated: tuple[RunFolder, str]) -> None:
    run, _ = evaluated
    files = [file for file in (run.path / "wandb").rglob("*") if file.is_file()]
    assert files and not any(SECRET.encode() in file.read_bytes() for file in files)
    started = next(record.run for record in records(wandb_files(run)[0]) if record.WhichOneof("record_type") == "run")
    assert (started.host, started.HasField("git")) == ("", False)
    assert {update.key for update in started.config.update} == {"_wandb", "split_id", "questions", "groups"}
    assert not {"environment", "output"} & {record.WhichOneof("record_type") for record in records(wandb_files(run)[0])}


def test_another_comparison_is_another_run_and_a_key_sends_an_offline_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    run = write_run(tmp_path, questions=6, variants=["base", "adapter"])

    def logged(comparison: Comparison) -> str | None:
        before = len(started)
        evaluation_log.log_evaluation(run, Config(), comparison)
        return started[-1]["id"] if len(started) > before else None

    comparison = comparison_of(run)
    first = logged(comparison)
    elsewhere = comparison.model_copy(update={"provenance": {"git": {"commit": "another"}}, "checksum": "another"})
    assert (first is None, logged(comparison), logged(elsewhere)) == (False, None, None)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    assert (logged(comparison), logged(comparison)) == (first, None)
    run.prediction("base")[0].write_text(run.prediction("base")[0].read_text().replace("Constitution", "constitution"))
    second = logged(comparison)
    assert second not in (None, first) and logged(comparison.model_copy(update={"n": 5})) not in (None, first, second)


@pytest.mark.parametrize(
    ("mode", "enabled", "installed", "said"),
    [
        ("offline", False, True, None),
        ("disabled", True, True, None),
        ("offline", True, False, "W&B: not installed, the evaluation was not logged"),
    ],
)
def test_switched_off_or_absent_it_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, enabled: bool, installed: bool, said: str | None
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    find_spec = evaluation_log.find_spec
    monkeypatch.setattr(evaluation_log, "find_spec", lambda name: find_spec(name) if installed else None)
    run = write_run(tmp_path, questions=5, variants=["base"])
    config = Config.model_validate({"wandb": {"enabled": enabled}})
    assert evaluation_log.log_evaluation(run, config, comparison_of(run)) == said
    assert not (run.path / "wandb").exists()


def test_an_evaluation_that_w_and_b_refuses_fails_nothing_and_is_tried_again(
    tmp_path: Path, started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    run = write_run(tmp_path, questions=5, variants=["base"])
    monkeypatch.setattr(wandb, "init", lambda **_: FakeRun("log"))
    for _ in range(2):
        said = evaluation_log.log_evaluation(run, Config(), comparison_of(run))
        assert said == "W&B: failed (RuntimeError), the evaluation was not logged"
