"""Several trainings of a recipe as one variant: statistics by simulation, the pooled comparison, and what is said with one training a side."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.seeds import share_outside
from harness import cli, storage
from harness.analysis import seeds, statistics
from harness.config import Config
from harness.gating import baseline
from harness.records import SeedRuns
from harness.report import two_runs
from harness.stages import compare, pipeline, score
from harness.storage import RunFolder
from tests.helpers.scored_run import CONFIG, make, questions

MANY = questions(n_groups=40, size=3)
ACCURACIES = {"1": 3, "2": 4, "3": 5}
"""Seed -> every how many questions one is wrong."""


def wrong_on(every, shift=0):
    return lambda q: "nothing" if (q.row + shift) % every == 0 else q.answer


def scored(root, name, adapter, **further):
    run = make(root, {"base": lambda q: "x", "adapter": adapter, **further}, name=name, asked=MANY)
    score.run(run, CONFIG)
    return run


def trained(root, name, shift=0):
    """A run of three trainings: its own with seed 1, two further ones in separate runs."""
    first, *others = (
        scored(
            root,
            name if seed == "1" else f"{name}-seed-{seed}",
            wrong_on(every, shift),
            gguf_f16=wrong_on(every, shift),
        )
        for seed, every in ACCURACIES.items()
    )
    further = {seed: run.name for seed, run in zip(list(ACCURACIES)[1:], others, strict=True)}
    storage.write_json(first.seeds_json, SeedRuns(seed=1, further=further))
    return first


# ---------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_equal_recipes_of_several_seeds_seldom_differ_outside_the_interval(n_seeds):
    assert share_outside(n_seeds, pairs=150) <= 0.07
    assert share_outside(n_seeds, pairs=150, with_seeds=False) > 0.10


def test_the_variance_of_seeds_leaves_out_what_the_questions_show_already():
    """Trainings that differ in single answers only, with no common shift: their means differ by the variance of questions alone."""
    rng = np.random.default_rng(0)
    groups = np.arange(400)
    usual = rng.random(400) < 0.6
    found = []
    for _ in range(60):
        of_seeds = [np.where(rng.random(400) < 0.2, rng.random(400) < 0.6, usual).astype(float) for _ in range(4)]
        one = seeds.of_trainings(of_seeds, groups)
        found.append((one.variance, np.var([s.mean() for s in of_seeds], ddof=1) / 4))
    variance, naive = np.mean(found, axis=0)
    assert variance < 0.5 * naive
    assert seeds.of_trainings([usual.astype(float)], groups) is None


def test_a_widened_difference_is_never_shorter_and_no_surer():
    rng = np.random.default_rng(1)
    left, right = rng.random(90) < 0.9, rng.random(90) < 0.5
    d = statistics.paired_differences(
        left.astype(float), right.astype(float), np.arange(90) // 3, resamples=200, seed=0
    )[0]
    wide = seeds.widened(d, seeds.of_known_spread(0.05, 3))
    assert wide.ci95[0] < d.ci95[0] < d.value < d.ci95[1] < wide.ci95[1] and wide.p >= d.p and wide.mde > d.mde
    assert seeds.widened(d, None) == d
    still = seeds.widened(d, seeds.SeedVariance(0.0, 0.0))
    assert still.ci95 == pytest.approx(d.ci95)


# ---------------------------------------------------------------------------------------------------------- comparison


def test_trainings_are_one_variant_with_the_mean_over_seeds(tmp_path):
    run = trained(tmp_path, "r")
    found = compare.run(run, CONFIG)
    adapter, base = found.variants["adapter"], found.variants["base"]
    name = "exact_match"
    by_seed = {seed: means[name] for seed, means in adapter.trainings.items()}
    assert by_seed == pytest.approx({seed: 1 - 1 / every for seed, every in ACCURACIES.items()})
    assert adapter.metrics[name].value == pytest.approx(np.mean(list(by_seed.values())))
    assert adapter.own[name].value == pytest.approx(2 / 3) and not base.trainings and not base.own
    questions_only = statistics.mean_intervals(
        np.mean(
            [
                [
                    row.scores[name]
                    for row in storage.read_records(RunFolder(r, tmp_path).score("adapter")[0], compare.Score)
                ]
                for r in ("r", "r-seed-2", "r-seed-3")
            ],
            axis=0,
        ),
        [q.group for q in MANY],
        resamples=200,
        seed=0,
    )[0]
    ci95 = adapter.metrics[name].ci95
    assert ci95[0] < questions_only.ci95[0] and questions_only.ci95[1] < ci95[1]
    assert "3 trainings" in adapter.metrics[name].interval
    pairs = {(p.left, p.right): p for p in found.pairs if p.metric == name}
    against_base = pairs["adapter", "base"]
    assert against_base.trainings == (3, 1) and "questions and seeds" in against_base.seed_note
    formats = pairs["gguf_f16", "adapter"]
    assert formats.trainings is None and formats.seed_note == "" and formats.verdict == "identical"
    # What the gate reads is the run's own training.
    assert baseline.snapshot(run, CONFIG).variants["adapter"].means["exact_match_normalized"] == pytest.approx(2 / 3)


def test_a_change_of_another_training_is_noticed(tmp_path):
    run = trained(tmp_path, "r")
    before = compare.run(run, CONFIG)
    assert compare.run(run, CONFIG).fingerprint == before.fingerprint
    scored(tmp_path, "r-seed-2", wrong_on(2), gguf_f16=wrong_on(2))
    assert compare.run(run, CONFIG).variants["adapter"].trainings["2"]["exact_match"] == 0.5
    run.seeds_json.unlink()
    alone = compare.run(run, CONFIG)
    assert alone.variants["adapter"].metrics["exact_match"].value == pytest.approx(2 / 3)


def test_two_runs_of_one_training_each_say_so(tmp_path):
    left, right = (scored(tmp_path, name, wrong_on(every)) for name, every in (("a", 3), ("b", 4)))
    pairs = {(p.left, p.metric): p for p in compare.compare_runs(left, right, CONFIG)}
    pair, of_base = pairs["a/adapter", "exact_match"], pairs["a/base", "exact_match"]
    assert pair.trainings == (1, 1) and "one training a side" in pair.seed_note and "questions only" in pair.seed_note
    assert of_base.seed_note == ""
    # Terminal, --json, --markdown and the report's banner all show the evidence.
    assert pair.seed_note in two_runs.evidence(pair)
    everything = list(pairs.values())
    texts = [
        two_runs.summary(everything, "a", "b"),
        two_runs.as_json(everything, "a", "b"),
        two_runs.as_markdown(everything, "a", "b", str),
    ]
    assert all("one training a side" in text for text in texts)


def test_the_spread_that_a_baseline_knows_widens_two_runs_of_one_training(tmp_path):
    runs = {name: scored(tmp_path, name, wrong_on(every)) for name, every in (("a", 3), ("b", 4), ("c", 5))}
    for run, weights in zip(runs.values(), "xyz", strict=True):
        _, manifest = run.prediction("adapter")
        stored = json.loads(manifest.read_text()) | {"weights_sha256": weights, "checksum": ""}
        manifest.write_text(json.dumps(stored))
        compare.run(run, CONFIG)
    first, *others = (baseline.snapshot(run, CONFIG) for run in runs.values())
    path = tmp_path / "baseline.json"
    baseline.save(path, baseline.with_trainings(first, others), CONFIG, confirm=lambda _: True)

    def of_adapter(file):
        pairs = compare.compare_runs(runs["a"], runs["c"], CONFIG, spread=baseline.known_spread(file))
        return next(p for p in pairs if p.left == "a/adapter" and p.metric == "exact_match_normalized")

    alone, known = of_adapter(tmp_path / "none.json"), of_adapter(path)
    assert known.ci95[0] < alone.ci95[0] and alone.ci95[1] < known.ci95[1]
    assert "spread of the baseline's 3 trainings" in known.seed_note
    path.write_text("{")
    assert of_adapter(path).ci95 == alone.ci95


def test_two_runs_of_several_trainings(tmp_path):
    left, right = trained(tmp_path, "a"), trained(tmp_path, "b", shift=1)
    pair = next(
        p for p in compare.compare_runs(left, right, CONFIG) if (p.left, p.metric) == ("a/adapter", "exact_match")
    )
    assert pair.trainings == (3, 3) and pair.delta == pytest.approx(0, abs=0.01) and pair.ci95[0] < 0 < pair.ci95[1]
    assert pair.seed_note == "3 and 3 trainings: the interval is over questions and seeds together"


# -------------------------------------------------------------------------------------------------------- config and verbs


def test_seeds_in_a_config():
    assert Config.model_validate({"train": {"seeds": [7, 8]}}).train.seed == 7
    for broken in ({"seeds": [7, 7]}, {"seeds": [7, 8], "seed": 9}):
        with pytest.raises(ValueError, match="seed"):
            Config.model_validate({"train": broken})


def test_run_with_seeds_trains_each_in_a_separate_run_and_lists_them(tmp_path, monkeypatch):
    """The stages are recorded instead of run: a training takes minutes. What compare does with the list is tested above."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def recorded(name, folder, resolved, chosen, force, gpus, *, decision=False):
        calls.append((folder.name, name, resolved.train.seed, "base" in resolved.predict.variants))

    monkeypatch.setattr("harness.cli.pipeline._stage_of_run", recorded)
    done = CliRunner().invoke(cli.app, ["run", "--seeds", "2", "--run", "mine", "--until", "compare"])
    assert done.exit_code == 0, done.output
    own, other = ([call for call in calls if call[0] == name] for name in ("mine", "mine-seed-3408"))
    assert [call[1] for call in own] == list(pipeline.until("compare")) and {call[2:] for call in own} == {(3407, True)}
    assert [call[1] for call in other] == list(pipeline.until("score")) and {call[2:] for call in other} == {
        (3408, False)
    }
    assert calls.index(other[-1]) < calls.index(own[-1]), "compared when all are scored"
    assert storage.read_record(RunFolder("mine").seeds_json, SeedRuns).further == {"3408": "mine-seed-3408"}
    CliRunner().invoke(cli.app, ["run", "--run", "mine", "--until", "compare"])
    assert not RunFolder("mine").seeds_json.exists()
