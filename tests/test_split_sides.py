"""Three sides, a test file of one's own, and what a model was trained on elsewhere."""

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
    # Poison: no JSON at all, and a marker that would be found in whatever training writes.
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
    """100 training rows and 20 to test: of these two are asked in training, and three in other words."""
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
    with pytest.raises(
        DataError, match=r"test\.json: all its 20 questions stand in the training file .*; .*drop_leaks"
    ):
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


def asked_in_ways(facts: int, ways: int) -> list[dict[str, Any]]:
    """Each fact in its own group, asked in so many ways."""
    rng = random.Random(facts)
    topics = [subject(rng) for _ in range(facts)]
    forms = ["How old is {0}?", "State the age that {0} has reached.", "{0} was asked for the years lived. What is it?"]
    return [
        {"question": form.format(topic), "answer": f"{fact} years", "group": f"g{fact}", "fact": f"f{fact}"}
        for fact, topic in enumerate(topics)
        for form in forms[:ways]
    ]


def test_one_phrasing_of_a_trained_fact_is_kept_back_and_the_other_sides_stay(tmp_path: Path) -> None:
    rows = asked_in_ways(60, 3)
    off = run(tmp_path, "data.taught=0", qa=rows)[0]
    before = {side: read(off, side) for side in ("train", "dev", "heldout")}
    assert not off.taught_jsonl.exists()
    made, manifest = run(tmp_path, "data.taught=1", qa=rows)
    taught, trained = read(made, "taught"), read(made, "train")
    facts = {q.extra["fact"] for q in trained}
    assert manifest.n_taught == len(taught) == len(facts) == len({q.extra["fact"] for q in taught}) > 30
    assert {q.extra["fact"] for q in taught} == facts, "every fact that is asked again is also trained on"
    assert not {q.question for q in taught} & {q.question for q in trained}
    assert {q.id for q in before["train"]} == {q.id for q in [*trained, *taught]}
    assert [q.id for q in read(made, "heldout")] == [q.id for q in before["heldout"]]
    assert read(made, "dev") == before["dev"]


def test_a_share_of_the_facts_is_kept_back(tmp_path: Path) -> None:
    rows = asked_in_ways(80, 2)
    whole = {q.id for q in read(run(tmp_path, "data.taught=1", qa=rows)[0], "taught")}
    half = {q.id for q in read(run(tmp_path, "data.taught=0.5", qa=rows)[0], "taught")}
    assert half < whole and 0.25 < len(half) / len(whole) < 0.75


def test_a_file_without_facts_has_no_second_side(tmp_path: Path) -> None:
    made, manifest = run(tmp_path, "data.taught=1", qa=make(60))
    assert manifest.n_taught == 0 and not made.taught_jsonl.exists()


def test_facts_beside_a_test_file_are_kept_back_too(tmp_path: Path) -> None:
    made, manifest = run(tmp_path, "data.taught=1", qa=asked_in_ways(40, 2), test=make(20))
    assert manifest.n_taught == 40 and manifest.n_train == 40
    assert {q.extra["fact"] for q in read(made, "taught")} == {q.extra["fact"] for q in read(made, "train")}
