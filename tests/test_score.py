import json
import os
import subprocess
import sys

import pytest

from harness import storage
from harness.config import Config
from harness.errors import ArtifactError, HarnessError, IncomparableError
from harness.metrics import find
from harness.records import Score, ScoreManifest, ScoreSet
from harness.stages import score
from tests.helpers.scored_run import CONFIG, make, predict, questions


def right(question):
    return question.answer


def wrong(question):
    return "nothing"


def half(question):
    return question.answer if int(question.id[1:]) % 2 else "nothing"


def read(run, variant):
    lines, manifest = run.score(variant)
    return storage.read_records(lines, Score), storage.read_record(manifest, ScoreManifest)


def test_every_variant_is_scored_with_an_interval_and_a_signature(tmp_path):
    run = make(tmp_path, {"base": wrong, "adapter": half})
    assert score.run(run, CONFIG).variants == ["base", "adapter"]
    rows, manifest = read(run, "adapter")
    assert [row.id for row in rows] == [q.id for q in questions()]
    assert list(manifest.metrics) == sorted(CONFIG.score.metrics)
    value = manifest.metrics["exact_match"]
    assert (value.value, value.n, value.n_unscored) == (0.5, 36, 0)
    assert value.ci95 is not None and value.ci95[0] < 0.5 < value.ci95[1]
    assert value.signature == find("exact_match").signature
    none = read(run, "base")[1].metrics["exact_match"]
    assert none.value == 0 and none.ci95 is not None and none.ci95[1] > 0
    assert "Wilson" in none.interval
    assert storage.read_record(run.score_json, ScoreSet).variants == ["base", "adapter"]


def test_a_failed_generation_is_unscored_and_counted_never_0(tmp_path):
    def answer(question):
        failed = question.id in ("q0", "q7")
        return {"finish_reason": "error", "error": "out of memory"} if failed else question.answer

    run = make(tmp_path, {"base": answer})
    score.run(run, CONFIG)
    rows, manifest = read(run, "base")
    assert manifest.metrics["exact_match"].value == 1
    assert (manifest.metrics["exact_match"].n, manifest.metrics["exact_match"].n_unscored) == (34, 2)
    assert rows[7].unscored == "out of memory" and set(rows[7].scores.values()) == {None}
    assert manifest.empty_answers == 0


def test_failures_as_wrong_are_a_second_figure_over_what_the_metric_would_have_scored(tmp_path):
    """A variant that fails on the hard questions has a higher mean over fewer; with failures counted as wrong all means have the same questions."""

    def answer(question):
        failed = question.row <= 9
        return {"finish_reason": "error", "error": "out of memory"} if failed else question.answer

    asked = [q.model_copy(update={"answer": "Parliament"}) if q.row <= 4 else q for q in questions()]
    config = CONFIG.model_copy(
        update={"score": CONFIG.score.model_copy(update={"metrics": ["exact_match", "citation_f1"]})}
    )
    run = make(tmp_path, {"base": answer, "adapter": lambda q: q.answer}, asked=asked)
    score.run(run, config)
    found = storage.read_record(run.score("base")[1], ScoreManifest).metrics
    exact, cited = found["exact_match"], found["citation_f1"]
    assert (exact.value, exact.n, exact.n_failed, exact.failures_as_wrong) == (1, 27, 9, 0.75)
    assert exact.failures_as_wrong_ci95 and exact.failures_as_wrong_ci95[0] < 0.75 < exact.failures_as_wrong_ci95[1]
    # Four of the failed ones cite nothing: citation F1 would not have scored them.
    assert (cited.n, cited.n_failed, cited.failures_as_wrong) == (27, 5, pytest.approx(27 / 32))
    whole = storage.read_record(run.score("adapter")[1], ScoreManifest).metrics["exact_match"]
    assert (whole.n_failed, whole.failures_as_wrong, whole.failures_as_wrong_ci95) == (0, None, None)


def test_all_failed_gives_no_mean(tmp_path):
    run = make(tmp_path, {"base": lambda q: {"finish_reason": "error", "error": "x"}})
    score.run(run, CONFIG)
    for value in read(run, "base")[1].metrics.values():
        assert (value.value, value.ci95, value.n, value.n_unscored) == (None, None, 0, 36)


def test_an_empty_answer_is_scored_0_and_counted(tmp_path):
    run = make(tmp_path, {"base": lambda q: "  " if q.id == "q1" else q.answer})
    score.run(run, CONFIG)
    rows, manifest = read(run, "base")
    assert manifest.empty_answers == 1
    assert rows[1].scores["exact_match"] == 0


def test_further_references_count(tmp_path):
    asked = [q.model_copy(update={"references": ["nothing"]}) for q in questions()]
    run = make(tmp_path, {"base": wrong}, asked=asked)
    score.run(run, CONFIG)
    assert read(run, "base")[1].metrics["exact_match"].value == 1


def test_nothing_changed_scores_nothing_again(tmp_path):
    run = make(tmp_path, {"base": wrong, "adapter": half})
    score.run(run, CONFIG)
    before = {file: file.stat().st_mtime_ns for file in run.scores.iterdir()}
    score.run(run, CONFIG)
    assert {file: file.stat().st_mtime_ns for file in before} == before


@pytest.mark.parametrize("change", ["answers", "setting", "metric", "scores", "force"])
def test_what_changed_is_scored_again(tmp_path, monkeypatch, change):
    run = make(tmp_path, {"base": wrong, "adapter": half})
    score.run(run, CONFIG)
    config, before = CONFIG, read(run, "adapter")[1]
    os.utime(run.score("adapter")[1], (0, 0))
    if change == "answers":
        predict(run, "adapter", questions(), right)
    elif change == "setting":
        config = Config.model_validate({"score": {"resamples": 100}})
    elif change == "metric":
        monkeypatch.setattr(type(find("exact_match")), "version", 2)
    elif change == "scores":
        run.score("adapter")[0].write_text("")
    score.run(run, config, force=change == "force")
    assert run.score("adapter")[1].stat().st_mtime > 0
    after = read(run, "adapter")[1]
    assert (after.fingerprint != before.fingerprint) == (change not in ("scores", "force"))
    assert len(read(run, "adapter")[0]) == 36


def test_two_runs_of_the_stage_give_the_same_bytes(tmp_path):
    runs = [make(tmp_path / side, {"base": half}) for side in "ab"]
    for run in runs:
        score.run(run, CONFIG)
    assert [p.read_bytes() for p in sorted(runs[0].scores.iterdir())] == [
        p.read_bytes() for p in sorted(runs[1].scores.iterdir())
    ]


@pytest.mark.parametrize(
    "fault, error, named",
    [
        ("another split", IncomparableError, "answered split"),
        ("missing question", ArtifactError, "'q3'"),
        ("unknown question", ArtifactError, "'stranger'"),
        ("answered twice", ArtifactError, "'q0' twice"),
        ("edited", ArtifactError, "not what predict wrote"),
        ("no predictions", ArtifactError, "missing"),
        ("truncated line", ArtifactError, "row 36"),
    ],
)
def test_predictions_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, fault, error, named):
    run = make(tmp_path, {"base": wrong})
    lines, manifest = run.prediction("base")
    rows = lines.read_text().splitlines()
    changes = {"lines_sha256": "", "checksum": ""}
    if fault == "another split":
        changes["split_id"] = "0" * 64
    elif fault == "missing question":
        lines.write_text("\n".join(r for r in rows if '"id": "q3"' not in r) + "\n")
    elif fault == "unknown question":
        lines.write_text("\n".join([*rows, json.dumps(json.loads(rows[0]) | {"id": "stranger"})]) + "\n")
    elif fault == "answered twice":
        lines.write_text("\n".join([*rows, rows[0]]) + "\n")
    elif fault == "edited":
        lines.write_text(lines.read_text().replace("nothing", "something"))
        changes = {}
    elif fault == "no predictions":
        lines.unlink()
    elif fault == "truncated line":
        lines.write_text("\n".join(rows)[:-20])
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))
    with pytest.raises(error, match=named):
        score.run(run, CONFIG)
    assert not run.score_json.exists() and not run.score("base")[1].exists()


def test_an_unknown_metric_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="bleurt"):
        Config.model_validate({"score": {"metrics": ["exact_match", "bleurt"]}})
    with pytest.raises(HarnessError):
        score.run(storage.RunFolder("nowhere", tmp_path), CONFIG)


def test_scoring_imports_neither_torch_nor_evaluate():
    code = "import sys; import harness.stages.score, harness.stages.compare; print({'torch', 'evaluate', 'transformers'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "set()"
    )
