"""Trackers other than W&B: what was logged is read back with the tracker's own package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from harness.config import PROJECT, Config, load
from harness.doctor import checks
from harness.errors import ConfigError
from harness.storage import RunFolder
from harness.training import tracker
from harness.training.tracker import Start, Tracker
from tests.helpers.report_fixture import write_run

SECRET = "c0ffee" * 6 + "dead"
LOGS = """
import json, sys
from harness import storage
from harness.config import Config
from harness.records import Comparison
from harness.training import evaluation_log, tracker
from harness.training.tracker import Start
assert not {"torch", "wandb", "trackio", "mlflow", "tensorboard"} & set(sys.modules)
config = Config.model_validate({"tracking": sys.argv[1]})
run = storage.RunFolder("demo")
for step in (1, 2):  # the second continues the same run, as a resumed training does
    log = tracker.chosen(config)(Start(run.path, "p", "demo", "demo", "demo-1", config={"train": {"seed": 7}}))
    log.log({"train/loss": 1.0 / step}, step=step)
    print(json.dumps(log.finish()), log.problem())
comparison = storage.read_record(run.comparison_json, Comparison)
run.report_html.write_text("<p>the page</p>")
for _ in range(2):
    print(evaluation_log.log_evaluation(run, config, comparison))
    print(evaluation_log.log_page(run, config, comparison))
assert not {"torch", "wandb", "trackio", "mlflow", "tensorboard"} - {sys.argv[1]} & set(sys.modules)
"""


def logged(root: Path, name: str) -> tuple[RunFolder, list[str]]:
    """A run whose training and evaluation this tracker logged, in a separate process that has a secret; and the lines it printed."""
    run = write_run(root, questions=12, variants=["base", "adapter"])
    left_out = ("WANDB_", "TRACKIO_", "MLFLOW_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    environment |= {"HARNESS_CANARY": SECRET, "PYTHONPATH": str(PROJECT), "HOME": str(root / "home")}
    command = [sys.executable, "-W", "ignore", "-c", LOGS, name]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = [file for file in run.path.rglob("*") if file.is_file()]
    assert not any(SECRET.encode() in file.read_bytes() for file in files)
    assert not [p for p in root.iterdir() if p.name not in ("runs", "reports", "home")], (
        "all of it is in the run's folder"
    )
    return run, done.stdout.splitlines()


def check_lines(lines: list[str], label: str, *, page: bool) -> str:
    """Every line that `LOGS` prints; the id of the evaluation's run."""
    first, second, said, of_page, again, page_again = lines
    for line in (first, second):
        facts = json.loads(line.removesuffix(" None"))
        assert facts == {"tracker": label, "mode": "offline", "run_id": "demo-1", "url": None, "error": None}
    run_id = said.removeprefix(f"{label}: evaluation logged, offline run ")
    assert run_id.startswith("demo-eval-")
    assert of_page == (f"{label}: the report's page is an artifact of offline run {run_id}" if page else "None")
    assert (again, page_again) == (f"{label}: this evaluation is logged already (offline run {run_id})", "None")
    return run_id


@pytest.mark.slow
def test_trackio_keeps_curves_results_tables_and_the_page(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    run, lines = logged(tmp_path, "trackio")
    run_id = check_lines(lines, "Trackio", page=True)
    code = (
        "import json, sys; from trackio.sqlite_storage import SQLiteStorage as s\n"
        "print(json.dumps([s.get_logs(project, name) for project, name in (('p', 'demo-1'), ('qa-harness', sys.argv[1]))]))"
    )
    environment = os.environ | {"TRACKIO_DIR": str(run.path / "trackio")}
    done = subprocess.run([sys.executable, "-c", code, run_id], env=environment, capture_output=True, text=True)
    training, evaluation = json.loads(done.stdout.splitlines()[-1])
    assert [(row["step"], row["train/loss"]) for row in training] == [(1, 1.0), (2, 0.5)]
    found = {key: value for row in evaluation for key, value in row.items()}
    check_results(run, found)
    assert {"eval/variants", "eval/pairs", "eval/questions"} <= found.keys()
    assert any(file.read_bytes() == b"<p>the page</p>" for file in (run.path / "trackio").rglob("*") if file.is_file())


@pytest.mark.slow
def test_mlflow_keeps_curves_results_tables_and_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    run, lines = logged(tmp_path, "mlflow")
    run_id = check_lines(lines, "MLflow", page=True)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    client = MlflowClient((run.path / "mlflow").as_uri())
    by_name = {e.name: e.experiment_id for e in client.search_experiments()}
    (training,) = client.search_runs([by_name["p"]])
    curve = client.get_metric_history(training.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in curve] == [(1, 1.0), (2, 0.5)]
    assert (training.data.params["train.seed"], training.info.status) == ("7", "FINISHED")
    (evaluation,) = client.search_runs([by_name["qa-harness"]])
    assert evaluation.data.tags["qa_harness.run_id"] == run_id
    check_results(run, evaluation.data.metrics | evaluation.data.tags)
    kept = {Path(file).relative_to(run.path).name for file in (run.path / "mlflow").rglob("artifacts/**/*.*")}
    assert kept == {"variants.json", "pairs.json", "questions.json", "report.html"}


def test_tensorboard_keeps_curves_results_and_tables(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run, lines = logged(tmp_path, "tensorboard")
    run_id = check_lines(lines, "TensorBoard", page=False)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training, evaluation = (EventAccumulator(str(run.path / "tensorboard" / name)) for name in ("demo-1", run_id))
    training.Reload()
    evaluation.Reload()
    assert [(e.step, e.value) for e in training.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]
    scalars = {tag: evaluation.Scalars(tag)[-1].value for tag in evaluation.Tags()["scalars"]}
    texts = {
        tag: evaluation.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in evaluation.Tags()["tensors"]
    }
    check_results(run, scalars | texts)
    assert texts["eval/pairs"].startswith("| left | right | metric |")


def check_results(run: RunFolder, found: Mapping[str, Any]) -> None:
    """Every mean of the comparison, and its first sentence."""
    comparison = json.loads(run.comparison_json.read_text())
    assert found["verdict"].startswith("Fine-tuning raised exact match")
    for variant, result in comparison["variants"].items():
        for metric, value in result["metrics"].items():
            assert found[f"{variant}/{metric}"] == pytest.approx(value["value"], rel=1e-6)


@pytest.mark.parametrize("name", ["trackio", "mlflow", "tensorboard"])
def test_one_that_is_not_installed_fails_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    for loaded in [module for module in sys.modules if module.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    kind = tracker.chosen(Config.model_validate({"tracking": name}))
    log = kind(Start(tmp_path, "p", "n", "g", "id"))
    log.log({"loss": 1.0}, step=1)
    assert log.finish()["error"] == "ModuleNotFoundError"
    assert log.problem() == f"{kind.label}: failed (ModuleNotFoundError)"
    find_spec = checks.find_spec
    monkeypatch.setattr(checks, "find_spec", lambda package: None if package == kind.package else find_spec(package))
    found = checks._tracking(load("tiny", [f"tracking={name}"]))
    assert (found.status, found.hint) == ("warn", f"pip install 'qa-harness[{name}]'")


def test_every_choice_is_a_class_and_another_is_refused() -> None:
    for name, place in tracker.CLASSES.items():
        module, _, attribute = place.partition(":")
        assert issubclass(getattr(import_module(module), attribute), Tracker)
        assert load("tiny", [f"tracking={name}"]).tracking == name
    with pytest.raises(ConfigError, match="tracking"):
        load("tiny", ["tracking=comet"])
