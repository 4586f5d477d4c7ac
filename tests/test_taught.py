"""The second held-out side: chosen by the split, asked in the same process, scored apart, reported in a separate row."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import storage
from harness.config import Config
from harness.records import Comparison, Prediction, Question, TaughtScores
from harness.report.figures import table
from harness.stages import compare, predict, score
from harness.storage import RunFolder
from tests.helpers import small_run

TAUGHT = [
    Question(id=f"again{i}", row=200 + i, question=question, answer=answer, group=f"t{i}", extra={"fact": f"f{i}"})
    for i, (question, answer) in enumerate([("Which Article is on life?", "Article 21"), ("Who heads India?", "X")])
]
VARIANTS = ["base"]


def with_taught(run: RunFolder, asked: list[Question]) -> None:
    """Adds a second held-out side to a split."""
    storage.write_jsonl(run.taught_jsonl, asked)
    written = storage.read_json(run.split_json)
    changed = {"n_taught": len(asked), "taught_sha256": storage.sha256_file(run.taught_jsonl)}
    storage.write_json(run.split_json, {k: v for k, v in written.items() if k != "checksum"} | changed)


def config_of(model: Path) -> Config:
    sections = {
        "predict": {"variants": VARIANTS, "fidelity_questions": 0},
        "score": {"resamples": 100},
        "compare": {"resamples": 100},
    }
    return small_run.config(model, **sections)


@pytest.fixture(scope="module")
def done(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, Config, Comparison, Comparison]:
    """A run without the second side, the comparison before it was added, and the one after."""
    root = tmp_path_factory.mktemp("taught")
    run, config = small_run.split(root), config_of(tiny_model)

    def judged() -> Comparison:
        predict.run(run, config)
        score.run(run, config)
        return compare.run(run, config)

    before = judged()
    with_taught(run, TAUGHT)
    return run, config, before, judged()


def test_the_second_side_is_asked_and_answered_by_every_variant(done: tuple) -> None:
    run = done[0]
    for variant in VARIANTS:
        lines = run.taught_prediction(variant)[0]
        assert [p.id for p in storage.iter_records(lines, Prediction)] == [q.id for q in TAUGHT]
    assert storage.read_json(run.predict_json)["variants"] == VARIANTS


def test_no_figure_of_the_first_side_changes(done: tuple) -> None:
    _, _, before, after = done
    assert before.n == after.n == len(small_run.QUESTIONS)
    for variant in VARIANTS:
        assert before.variants[variant].metrics == after.variants[variant].metrics
    assert before.pairs == after.pairs and before.breakdowns == after.breakdowns
    assert [f for f in after.figures if f.name != "taught"] == before.figures


def test_it_is_a_separate_row_beside_what_a_copy_scores(done: tuple) -> None:
    run, _, _, after = done
    taught_figures = [figure for figure in after.figures if figure.name == "taught"]
    assert [figure.variant for figure in taught_figures] == VARIANTS and {figure.n for figure in taught_figures} == {
        len(TAUGHT)
    }
    label = table(after).lines[-1].label
    assert label.startswith("Trained questions in other words, ")
    assert "(the nearest training answer: 0%)" in label
    assert storage.read_record(run.taught_json, TaughtScores).nearest_train_copy[after.primary] == 0


def test_a_right_answer_counts(done: tuple) -> None:
    run, config, _, _ = done
    lines, manifest = run.taught_prediction("base")
    rows = list(storage.iter_records(lines, Prediction))
    was = lines.read_bytes(), manifest.read_bytes()
    storage.write_jsonl(lines, [rows[0].model_copy(update={"text": "Article 21"}), rows[1]])
    try:
        score.run(run, config)
        means = storage.read_record(run.taught_json, TaughtScores).variants
        assert means["base"]["exact_match"].value == 0.5
    finally:
        lines.write_bytes(was[0])
        manifest.write_bytes(was[1])


def test_nothing_is_asked_twice_and_damage_is_repaired(done: tuple) -> None:
    run, config, _, _ = done
    first, second = run.prediction("base")[0], run.taught_prediction("base")[0]
    before = first.stat().st_mtime_ns, second.stat().st_mtime_ns
    predict.run(run, config)
    assert (first.stat().st_mtime_ns, second.stat().st_mtime_ns) == before
    whole = second.read_text()
    second.write_text(whole[:-20])
    predict.run(run, config)
    assert first.stat().st_mtime_ns == before[0], "only the damaged side is asked again"
    assert len(list(storage.iter_records(second, Prediction))) == len(TAUGHT)


def test_without_the_second_side_its_score_goes(done: tuple) -> None:
    run, config, before, _ = done
    written = storage.read_json(run.split_json)
    with_taught(run, [])
    try:
        score.run(run, config)
        assert not run.taught_json.exists()
        assert compare.run(run, config).figures == before.figures
    finally:
        storage.write_json(run.split_json, {k: v for k, v in written.items() if k != "checksum"})
