import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import config, storage
from harness.errors import StorageError
from harness.records import Question, SplitManifest
from harness.stages import split
from tests.helpers.qa_files import make, subject


def run(folder, rows, *overrides, **options):
    path = folder / "qa.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    run = storage.RunFolder("test", folder)
    manifest = split.run(run, config.load("tiny", list(overrides), qa=str(path)), **options)
    return run, manifest


def sides(run):
    read = {
        side: storage.read_records(path, Question)
        for side, path in (("train", run.train_jsonl), ("dev", run.dev_jsonl), ("heldout", run.heldout_jsonl))
    }
    return {question.row: side for side, questions in read.items() for question in questions}


def test_every_row_is_on_one_side_and_groups_are_whole(tmp_path):
    rows = make(400)
    folder, manifest = run(tmp_path, rows)
    train, dev, heldout = (
        storage.read_records(path, Question) for path in (folder.train_jsonl, folder.dev_jsonl, folder.heldout_jsonl)
    )
    assert (len(train), len(dev), len(heldout)) == (manifest.n_train, manifest.n_dev, manifest.n_heldout)
    assert sorted(q.row for q in train + dev + heldout) == list(range(1, 401))
    groups = [{q.group for q in side} for side in (train, dev, heldout)]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert [len(g) for g in groups] == [manifest.n_groups_train, manifest.n_groups_dev, manifest.n_groups_heldout]
    assert 0.06 < manifest.n_heldout / 400 < 0.14 and 0.06 < manifest.n_dev / 400 < 0.14
    assert all(q.nearest_train is None for q in train + dev)
    assert manifest.leakage["checked"] and not manifest.leakage["train_rows"]
    assert all(q.nearest_train is not None and 0 <= q.nearest_train < 0.9 for q in heldout)
    assert manifest.merges["near_duplicate"] > 50
    assert storage.read_record(folder.split_json, SplitManifest) == manifest


def test_fields_of_the_file_are_kept(tmp_path):
    rows = [
        *make(80),
        {
            "question": "Q?",
            "answer": "A",
            "id": "x",
            "article": 14,
            "kind": "term",
            "references": ["B"],
            "source": {"page": 3},
        },
    ]
    folder, _ = run(tmp_path, rows)
    kept = next(
        q
        for path in (folder.train_jsonl, folder.dev_jsonl, folder.heldout_jsonl)
        for q in storage.read_records(path, Question)
        if q.id == "x"
    )
    assert (kept.article, kept.kind, kept.references, kept.extra, kept.row) == (
        "14",
        "term",
        ["B"],
        {"source": {"page": 3}},
        81,
    )


def test_the_same_bytes_twice_and_another_split_for_another_seed(tmp_path):
    rows = make(200)
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    first, one = run(tmp_path, rows)
    second, two = run(tmp_path / "b", rows)
    _, other = run(tmp_path / "c", rows, "data.seed=1")
    assert first.train_jsonl.read_bytes() == second.train_jsonl.read_bytes()
    assert first.heldout_jsonl.read_bytes() == second.heldout_jsonl.read_bytes()
    ignored = {"seconds": 0, "source": "", "fingerprint": "", "files": []}
    assert one.model_copy(update=ignored) == two.model_copy(update=ignored)
    assert one.split_id == two.split_id != other.split_id


def test_an_unchanged_split_is_left_alone(tmp_path):
    rows = make(60)
    folder, first = run(tmp_path, rows)
    before = folder.split_json.stat().st_mtime_ns
    assert run(tmp_path, rows)[1] == first
    assert folder.split_json.stat().st_mtime_ns == before
    run(tmp_path, rows, force=True)
    assert folder.split_json.stat().st_mtime_ns > before
    assert run(tmp_path, rows, "data.similarity=0.6")[1].fingerprint != first.fingerprint
    again = run(tmp_path, make(61))[1]
    assert again.n_train + again.n_dev + again.n_heldout == 61


@pytest.mark.parametrize("damage", ["{", "", '{"n_train": 1}'])
def test_a_damaged_manifest_is_made_again(tmp_path, damage):
    folder, first = run(tmp_path, make(60))
    folder.split_json.write_text(damage)
    assert run(tmp_path, make(60))[1].split_id == first.split_id
    folder.heldout_jsonl.unlink()
    run(tmp_path, make(60))
    assert folder.heldout_jsonl.exists()


def test_no_manifest_is_left_beside_files_that_could_not_be_written(tmp_path, monkeypatch):
    folder, _ = run(tmp_path, make(60))

    def full(path, rows):
        raise StorageError("cannot write: no space left on device", "free some space", file=path)

    monkeypatch.setattr(storage, "write_jsonl", full)
    with pytest.raises(StorageError):
        run(tmp_path, make(61))
    assert not folder.split_json.exists()


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(0, 3), st.booleans())
def test_rows_added_at_the_end_move_nothing(tmp_path_factory, seed, added, split_seed, labelled):
    rng = random.Random(seed)
    rows, more = make(80, seed), make(added, seed + 20_000)
    # Some of the new rows join old groups: by a paraphrase, an answer of its own question, or a label.
    for row in rng.sample(rows, 10):
        more.append({"question": row["question"].replace("may", "then may"), "answer": row["answer"]})
    if labelled:
        for row in rows:
            row["group"] = row["answer"]
        more += [
            {"question": f"Who may {subject(rng)}?", "answer": subject(rng), "group": row["group"]}
            for row in rng.sample(rows, 5)
        ]
    overrides = [f"data.seed={split_seed}", "data.heldout=0.3"]
    before, after = tmp_path_factory.mktemp("before"), tmp_path_factory.mktemp("after")
    old, new = sides(run(before, rows, *overrides)[0]), sides(run(after, rows + more, *overrides)[0])
    assert {row: new[row] for row in old} == old


def test_labelled_rows_may_be_added_anywhere(tmp_path):
    rng = random.Random(5)
    rows = [row | {"group": row["answer"], "id": row["question"]} for row in make(200)]
    more = [
        {"question": f"Who may {subject(rng)}?", "answer": subject(rng), "group": row["group"], "id": f"new{n}"}
        for n, row in enumerate(rows[:50])
    ]
    (tmp_path / "b").mkdir()
    shuffled = rows + more
    rng.shuffle(shuffled)
    found = []
    for folder, given_rows in ((tmp_path, rows), (tmp_path / "b", shuffled)):
        made, _ = run(folder, given_rows)
        found.append({q.id for q in storage.read_records(made.heldout_jsonl, Question)})
    assert found[0] == {name for name in found[1] if not name.startswith("new")}


@pytest.mark.parametrize("count", [2, 17, 150])
def test_a_count_is_met_to_within_a_group(tmp_path, count):
    _, manifest = run(tmp_path, make(200), f"data.heldout={count}")
    assert count - 1 <= manifest.n_heldout <= count


def test_a_large_group_and_a_share_far_off_are_warned_of(tmp_path):
    labelled = [
        {
            "question": f"Who may {subject(random.Random(1000 + n))}?",
            "answer": subject(random.Random(n)),
            "group": "one",
        }
        for n in range(30)
    ]
    rows = make(100) + labelled
    _, manifest = run(tmp_path, rows, "data.heldout=0.05")
    large = manifest.largest_groups[0]
    assert large["rows"] == 30
    assert large["share"] == pytest.approx(30 / 130, abs=1e-6)
    side, total = ("training", manifest.n_train) if large["side"] == "train" else ("held-out", manifest.n_heldout)
    assert any(f"{30 / total:.0%} of the {side} rows (30) form one group" in warning for warning in manifest.warnings)
    exact = manifest.n_heldout / 130
    assert any("whole groups go to one side" in warning for warning in manifest.warnings) == (abs(exact - 0.05) > 0.01)


def test_a_group_of_one_row_is_never_large(tmp_path):
    _, manifest = run(tmp_path, [row for row in make(14) if "then" not in row["question"]], "data.heldout=2")
    assert manifest.n_heldout == 2
    assert not any("form one group" in warning for warning in manifest.warnings)


def test_in_a_small_file_a_group_of_two_is_not_large_and_a_count_is_advised(tmp_path):
    rows = [row | {"group": str(at // 2)} for at, row in enumerate(make(30))]
    _, manifest = run(tmp_path, rows, "data.heldout=0.5")
    assert not any("form one group" in warning for warning in manifest.warnings)
    assert abs(manifest.n_dev / 30 - 0.1) <= 0.02 or any("data.dev=3, a count" in w for w in manifest.warnings)


def test_a_stock_answer_of_many_words_ties_nothing(tmp_path):
    rng = random.Random(3)
    penalties = [f"Imprisonment for {years} years and fine." for years in (2, 3, 7)]
    rows = [{"question": f"What follows {subject(rng)}?", "answer": penalties[n % 3]} for n in range(60)]
    rows += [
        {"question": f"{start} {subject(rng)}?", "answer": "The same long answer of rare words"} for start in "ABC"
    ]
    _, manifest = run(tmp_path, rows)
    assert manifest.similarity["rows_with_stock_answers"] == 60
    assert [group["rows"] for group in manifest.largest_groups[:2]] == [3, 1]


def test_conflicting_answers_are_reported_and_stay_together(tmp_path):
    rows = make(60)
    rows[10:13] = [
        {"question": "Who elects the Speaker?", "answer": "The House"},
        {"question": "who elects the speaker", "answer": "The Governor"},
        {"question": "Who elects the Speaker ?", "answer": "the house."},
    ]
    rows[20:22] = [
        {"question": "Who signs?", "answer": "A clerk", "references": ["The clerk"]},
        {"question": "Who signs?", "answer": "The clerk"},
    ]
    folder, manifest = run(tmp_path, rows)
    assert manifest.conflicts == [
        {
            "question": "Who elects the Speaker?",
            "answers": ["The House", "The Governor", "the house."],
            "rows": [11, 12, 13],
        }
    ]
    assert any("1 questions have several different answers" in warning for warning in manifest.warnings)
    assert len({sides(folder)[row] for row in (11, 12, 13)}) == 1


def test_leakage_counts_short_answers_and_no_long_one_is_left(tmp_path):
    rng = random.Random(1)
    rows = [
        {
            "question": f"Who may {subject(rng)}?",
            "answer": "The President" if n % 2 else f"{subject(rng)} {subject(rng)}",
        }
        for n in range(200)
    ]
    rows += [
        {"question": f"When is {subject(rng)}?", "answer": row["answer"]}
        for row in rows
        if row["answer"] != "The President"
    ]
    folder, manifest = run(tmp_path, rows)
    heldout = storage.read_records(folder.heldout_jsonl, Question)
    presidents = sum(q.answer == "The President" for q in heldout)
    assert manifest.leakage["answers_in_train"] == presidents > 0
    assert manifest.leakage["long_answers_in_train"] == 0
    assert sum(manifest.leakage["similarity_histogram"].values()) == len(heldout)
    assert manifest.leakage["max_similarity"] == max(q.nearest_train or 0.0 for q in heldout)
    constant = manifest.baselines["grouped"]["constant_answer"]
    assert constant["exact_match"] == pytest.approx(presidents / len(heldout))


def test_the_baselines_show_what_the_grouping_is_worth(tmp_path):
    rng = random.Random(2)
    rows = []
    for _ in range(150):
        topic, answer = subject(rng), subject(rng)
        rows += [{"question": f"{start} may {topic}?", "answer": answer} for start in ("Who", "Who then", "Who else")]
    _, manifest = run(tmp_path, rows)
    copy = {name: values["nearest_train_copy"]["exact_match"] for name, values in manifest.baselines.items()}
    assert copy["grouped"] == 0
    assert copy["random"] > 0.9
    assert set(manifest.baselines["grouped"]["constant_answer"]) >= {
        "exact_match",
        "exact_match_normalized",
        "token_f1",
        "rougeL",
    }
