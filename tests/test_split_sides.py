"""Three sides, a user's test file, and questions that a model was trained on elsewhere."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import config, storage
from harness.analysis import alarms
from harness.errors import ArtifactError, ConfigError, DataError
from harness.records import Question, SplitManifest
from harness.stages import split, train
from tests.helpers import small_run
from tests.helpers.qa_files import make, subject

Made = tuple[storage.RunFolder, SplitManifest]


def save(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def run(folder: Path, *overrides: str, qa: list[dict[str, Any]] | None = None, **files: list[dict[str, Any]]) -> Made:
    """Splits with these rows as data.qa (none: null), and others as data.test and data.trained_on."""
    given = [f"data.{role}={save(folder / f'{role}.json', rows)}" for role, rows in files.items()]
    source = f"data.qa={save(folder / 'qa.json', qa) if qa else 'null'}"
    made = storage.RunFolder("test", folder)
    return made, split.run(made, config.load("tiny", [source, *given, *overrides]))


def read(made: storage.RunFolder, side: str) -> list[Question]:
    return storage.read_records(getattr(made, f"{side}_jsonl"), Question)


# -------------------------------------------------------------------------------------------------------- three sides


def test_dev_is_taken_from_training_rows_and_held_out_stays(tmp_path: Path) -> None:
    rows = make(300)
    without = {q.id for q in read(run(tmp_path, "data.dev=0", qa=rows)[0], "heldout")}
    made, manifest = run(tmp_path, qa=rows)
    assert {q.id for q in read(made, "heldout")} == without
    assert 15 < manifest.n_dev < 45 and manifest.dev_requested == 0.1
    run(tmp_path, "data.dev=0.3", qa=rows)
    assert {q.id for q in read(made, "heldout")} == without
    assert 60 < len(read(made, "dev")) < 120


@pytest.mark.parametrize("dev", [2, 40])
@pytest.mark.parametrize("heldout", ["0.1", "30"])
def test_dev_as_a_count(tmp_path: Path, dev: int, heldout: str) -> None:
    _, manifest = run(tmp_path, f"data.dev={dev}", f"data.heldout={heldout}", qa=make(200))
    assert dev - 1 <= manifest.n_dev <= dev


def test_a_share_beside_a_count_is_met_as_a_count(tmp_path: Path) -> None:
    _, manifest = run(tmp_path, "data.dev=0.2", "data.heldout=30", qa=make(200))
    assert 39 <= manifest.n_dev <= 40 and 29 <= manifest.n_heldout <= 30


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(10, 60), st.sampled_from(["0.1", "0.3", "2"]), st.sampled_from([0.1, 0.2]))
def test_a_small_file_gets_three_sides(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, heldout: str, dev: float
) -> None:
    rng = random.Random(seed)
    rows = [{"question": f"Who may {subject(rng)}?", "answer": subject(rng)} for _ in range(count)]
    folder = tmp_path_factory.mktemp("small")
    _, manifest = run(folder, f"data.seed={seed}", f"data.heldout={heldout}", f"data.dev={dev}", qa=rows)
    assert manifest.n_train and manifest.n_dev and manifest.n_heldout
    assert manifest.n_train + manifest.n_dev + manifest.n_heldout == count
    assert any("questions are held out, which shows large differences only" in w for w in manifest.warnings)


def test_a_group_of_one_row_is_not_warned_of_as_large(tmp_path: Path) -> None:
    _, manifest = run(tmp_path, qa=[row for at, row in enumerate(make(40)) if at % 4 < 2][:14])
    assert not any("form one group" in warning and "(1)" in warning for warning in manifest.warnings)


def test_a_group_that_is_much_of_the_held_out_side_is_warned_of(tmp_path: Path) -> None:
    rows = make(900)
    stock = {"answer": "Imprisonment for seven years and fine."}
    rows += [{"question": f"Which {subject(random.Random(n))} is punished?"} | stock for n in range(40)]
    for seed in range(30):
        made, manifest = run(tmp_path, f"data.seed={seed}", qa=rows)
        if sum(q.answer == stock["answer"] for q in read(made, "heldout")):
            break
    assert any(re.search(r"of the held-out rows \(4\d\) form one group", warning) for warning in manifest.warnings)


def test_training_reads_train_and_dev_and_never_opens_held_out(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    made = small_run.split(tmp_path)
    # A canary: not JSON, and a marker that would be found in any output of training.
    made.heldout_jsonl.write_text("MARKER-held-out-was-read\n")
    opened: list[str] = []
    import sys

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and WATCHING and "heldout" in str(arguments[0]):
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    WATCHING.append(True)
    try:
        manifest = train.run(made, small_run.config(tiny_model, train={"max_steps": 2, "eval_every": 1}))
    finally:
        WATCHING.clear()
    assert opened == []
    assert manifest.final_dev_loss is not None
    for file in (p for p in tmp_path.rglob("*") if p.is_file() and p != made.heldout_jsonl):
        assert b"MARKER-held-out" not in file.read_bytes(), file


WATCHING: list[bool] = []
"""Non-empty while files are watched: an audit hook cannot be removed."""


# --------------------------------------------------------------------------------------------------------- a test file


def test_a_test_file_is_held_out_exactly_and_all_else_trains(tmp_path: Path) -> None:
    rows = make(120)
    made, manifest = run(tmp_path, qa=rows[:100], test=rows[100:])
    assert [q.question for q in read(made, "heldout")] == [row["question"] for row in rows[100:]]
    assert [q.question for q in read(made, "train")] == [row["question"] for row in rows[:100]]
    assert read(made, "dev") == [] and manifest.n_dev == 0
    assert [file["role"] for file in manifest.files] == ["test", "qa"]
    assert set(manifest.baselines) == {"grouped"}
    made, manifest = run(tmp_path, "data.dev=0.2", qa=rows[:100], test=rows[100:])
    assert manifest.n_dev and manifest.n_train + manifest.n_dev == 100


def leaky() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """100 training rows and 20 to test: two of these are training questions, and three are paraphrases of some."""
    rows = [row for row in make(400) if "then" not in row["question"]]
    qa, test = rows[:100], rows[100:120]
    qa[7] = {"question": test[0]["question"].upper(), "answer": "something else"}
    qa[8] = dict(test[1])
    for at in (2, 3, 4):
        qa[at] = {"question": test[at]["question"].replace("may", "then may"), "answer": test[at]["answer"]}
    return qa, test


def test_leaks_are_counted_raised_and_left_out_on_demand(tmp_path: Path) -> None:
    qa, test = leaky()
    made, manifest = run(tmp_path, qa=qa, test=test)
    leakage = manifest.leakage
    assert (leakage["questions_in_train"], leakage["near_duplicates_in_train"], leakage["train_rows"]) == (2, 3, 5)
    assert manifest.n_train == 100 and leakage["dropped"] == 0 and len(leakage["examples"]) == 5
    assert any("5 of 20 held-out questions leak" in warning for warning in manifest.warnings)
    (alarm,) = alarms.of_split(manifest)
    assert (alarm.code, alarm.variant, alarm.value) == ("leakage", None, 0.25)

    made, manifest = run(tmp_path, "data.drop_leaks=true", qa=qa, test=test)
    assert (manifest.n_train, manifest.n_heldout, manifest.leakage["dropped"]) == (95, 20, 5)
    assert not {q.row for q in read(made, "train")} & {3, 4, 5, 8, 9}
    assert not list(alarms.of_split(manifest))
    assert max(q.nearest_train or 0 for q in read(made, "heldout")) < 0.9


def test_every_test_question_in_training_is_refused(tmp_path: Path) -> None:
    rows = make(60)
    with pytest.raises(DataError, match=r"test\.json: all its 20 questions are in the training file .*; .*drop_leaks"):
        run(tmp_path, qa=rows, test=rows[:20])
    assert not (tmp_path / "runs").exists()
    _, manifest = run(tmp_path, "data.drop_leaks=true", qa=rows, test=rows[:20])
    assert manifest.n_heldout == 20 and 30 <= manifest.n_train <= 40
    with pytest.raises(DataError, match="nothing is left to train on"):
        run(tmp_path, "data.drop_leaks=true", qa=rows[:20], test=rows)


def test_groups_of_a_test_file_do_not_hang_on_training_rows(tmp_path: Path) -> None:
    qa, test = leaky()
    alone = run(tmp_path, test=test)[0]
    groups = [q.group for q in read(alone, "heldout")]
    assert [q.group for q in read(run(tmp_path, qa=qa, test=test)[0], "heldout")] == groups


# ------------------------------------------------------------------------------------------------- trained on elsewhere


def test_the_held_out_side_of_a_run_is_itself_as_a_test_file(tmp_path: Path) -> None:
    rows = [row | {"answer_type": "short"} for row in make(200)]
    theirs = read(run(tmp_path, qa=rows)[0], "heldout")
    asked = [question.model_dump(mode="json", exclude_none=True) for question in theirs]
    ours = read(run(tmp_path, test=asked)[0], "heldout")
    kept = ("id", "question", "answer", "references", "group", "kind")
    assert [[getattr(q, key) for key in kept] for q in ours] == [[getattr(q, key) for key in kept] for q in theirs]
    assert all(q.extra["answer_type"] == "short" for q in ours)


def test_what_a_model_was_trained_on_elsewhere_is_only_measured(tmp_path: Path) -> None:
    qa, test = leaky()
    made, manifest = run(tmp_path, trained_on=qa, test=test)
    assert (manifest.n_train, manifest.n_dev, manifest.n_heldout, manifest.n_trained_on) == (0, 0, 20, 100)
    assert manifest.leakage["questions_in_train"] == 2 and manifest.baselines["grouped"]["nearest_train_copy"]
    assert len(read(made, "trained_on")) == 100 and read(made, "train") == []
    assert all(q.nearest_train is not None for q in read(made, "heldout"))
    with pytest.raises(ArtifactError, match="has no rows to train on"):
        train.run(made, config.load("tiny"))
    # Without it the file of another split is not left behind.
    made, manifest = run(tmp_path, test=test)
    assert not made.trained_on_jsonl.exists() and manifest.baselines == {}
    assert manifest.leakage == {"checked": False}
    (alarm,) = alarms.of_split(manifest)
    assert alarm.code == "leakage_unknown" and "could not be checked" in alarm.message
    assert manifest.source.endswith("test.json")


def test_all_of_the_test_may_have_been_trained_on_elsewhere(tmp_path: Path) -> None:
    rows = make(30)
    _, manifest = run(tmp_path, trained_on=rows, test=rows)
    (alarm,) = alarms.of_split(manifest)
    assert alarm.value == 1.0


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["data.trained_on=x.json"], "needs data.test"),
        (["data.qa=null"], "name one of them"),
        (["data.heldout=0.6", "data.dev=0.4"], "leave nothing to train on"),
        (["data.dev=1"], "must be a share"),
        (["data.dev=true"], "must be a share"),
        (["data.dev=-0.1"], "must be a share"),
        (["data.turns=first"], "data.turns"),
        (["data.columns.reply=x"], "data.columns.reply"),
    ],
)
def test_settings_that_do_not_fit(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        config.load("tiny", overrides)


def test_an_unchanged_split_of_two_files_is_left_alone(tmp_path: Path) -> None:
    qa, test = leaky()
    made, first = run(tmp_path, qa=qa, test=test)
    before = made.split_json.stat().st_mtime_ns
    assert run(tmp_path, qa=qa, test=test)[1] == first and made.split_json.stat().st_mtime_ns == before
    assert run(tmp_path, qa=qa, test=test[:-1])[1].split_id != first.split_id
    made.dev_jsonl.unlink()
    run(tmp_path, qa=qa, test=test[:-1])
    assert made.dev_jsonl.exists()


# ------------------------------------------------------------------------------------------- the second held-out side


def restate(rows: list[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
    """Each question in other words."""
    return [
        {"question": f"Please tell: {r['question'].lower()}", "answer": r["answer"], "restates": r["question"]} | more
        for r in rows
    ]


def test_trained_questions_in_other_words_are_a_side_and_no_other_changes(tmp_path: Path) -> None:
    rows = make(200)
    off, without = run(tmp_path, qa=rows)
    before = {side: read(off, side) for side in ("train", "dev", "heldout")}
    made, manifest = run(tmp_path, qa=rows, taught=restate(rows))
    assert {side: read(made, side) for side in before} == before
    assert (manifest.split_id, manifest.n_train) == (without.split_id, without.n_train)
    taught = read(made, "taught")
    assert [q.extra["restates"] for q in taught] == [q.question for q in before["train"]]
    assert [q.group for q in taught] == [q.group for q in before["train"]]
    assert manifest.n_taught == len(taught) and manifest.files[-1]["role"] == "taught"
    assert run(tmp_path, qa=rows)[1].n_taught == 0 and not off.taught_jsonl.exists()


def test_a_question_of_the_file_itself_is_never_of_the_second_side(tmp_path: Path) -> None:
    rows = make(60)
    again = [
        {"question": rows[i - 1]["question"], "answer": "x", "restates": r["question"]} for i, r in enumerate(rows)
    ]
    made, manifest = run(tmp_path, qa=rows, taught=again)
    assert manifest.n_taught == 0 and not made.taught_jsonl.exists()


def test_the_second_side_of_another_file_is_empty(tmp_path: Path) -> None:
    _, manifest = run(tmp_path, qa=make(60), taught=restate(make(20, seed=9)))
    assert manifest.n_taught == 0 and {file["role"] for file in manifest.files} == {"qa"}


def test_a_row_that_restates_nothing_is_named(tmp_path: Path) -> None:
    again = [*restate(make(3)), {"question": "Who?", "answer": "x"}]
    with pytest.raises(DataError, match=r"taught.json, row 4: has no restates; name in it the question"):
        run(tmp_path, qa=make(60), taught=again)


def test_a_changed_second_side_is_split_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    made, manifest = run(tmp_path, qa=make(60), taught=restate(make(60)))
    written = made.split_json.stat().st_mtime_ns
    assert run(tmp_path, qa=make(60), taught=restate(make(60)))[1] == manifest
    assert made.split_json.stat().st_mtime_ns == written
    made.taught_jsonl.write_text("")
    run(tmp_path, qa=make(60), taught=restate(make(60)))
    assert len(read(made, "taught")) == manifest.n_taught > 0
