import json

import pytest

from harness.config import Config
from harness.errors import ArtifactError, ConfigError, IncomparableError
from harness.gating import baseline, likeness
from harness.gating.noninferiority import NOT_KNOWN
from harness.stages import compare, score
from tests.helpers.scored_run import CONFIG, make, predict, questions

SEVEN = ["base", "adapter", "merged_16bit", "merged_4bit", "gguf_f16", "gguf_q8_0", "gguf_q4_k_m"]


def right(question):
    return question.answer


def half(question):
    return question.answer if question.row % 2 else f"{question.answer} or another"


def scored(root, answers, name="r", config=CONFIG, **changes):
    run = make(root, answers, name=name, **changes)
    score.run(run, config)
    compare.run(run, config)
    return run


def never(better):
    raise AssertionError(f"asked about {better}")


def saved(path, run, config=CONFIG, confirm=never):
    return baseline.save(path, baseline.snapshot(run, config), config, confirm=confirm)


def test_what_is_saved_is_read_again_and_holds_each_score(tmp_path):
    run = scored(tmp_path, {"base": right, "adapter": half})
    path = tmp_path / "reports" / "baseline.json"
    written = saved(path, run)
    read = baseline.read(path)
    assert read.model_dump() == written.model_dump()
    assert list(read.variants) == ["adapter"], "the base does not change with a change, and is not kept"
    rows = [json.loads(line)["scores"] for line in run.score("adapter")[0].read_text().splitlines()]
    for metric in CONFIG.gate.metrics:
        assert baseline.column(read, "adapter", metric).tolist() == pytest.approx(
            [row[metric] for row in rows], abs=5e-5
        )
    assert read.metrics["token_f1"].startswith("token_f1|")
    assert read.prompts_sha256 and read.generation["temperature"] == 0
    assert Config.model_validate(read.config).train.seed == 3407


def test_columns_are_found_whatever_order_the_metrics_are_named_in(tmp_path):
    """JSON is written with sorted keys: an order kept only in a mapping would be lost, and metrics held against each other."""
    config = Config.model_validate({**CONFIG.model_dump(), "gate": {"metrics": ["token_f1", "exact_match"]}})
    run = scored(tmp_path, {"adapter": half})
    path = tmp_path / "b.json"
    new = saved(path, run, config)
    for metric in ("exact_match", "token_f1"):
        assert (
            baseline.column(baseline.read(path), "adapter", metric).tolist()
            == baseline.column(new, "adapter", metric).tolist()
        )
    assert (
        baseline.column(new, "adapter", "exact_match").mean()
        == 0.5
        < baseline.column(new, "adapter", "token_f1").mean()
    )


def test_the_same_run_gives_the_same_file_but_for_the_time(tmp_path):
    run = scored(tmp_path, {"adapter": half})
    texts = []
    for name in ("a", "b"):
        saved(tmp_path / name, run)
        texts.append([line for line in (tmp_path / name).read_text().splitlines() if '"saved"' not in line])
    assert texts[0] == texts[1]


def test_the_file_is_small_with_a_line_for_each_question(tmp_path):
    asked = questions(n_groups=120, size=3)
    run = scored(tmp_path, dict.fromkeys(SEVEN, half), asked=asked)
    path = tmp_path / "b.json"
    saved(path, run)
    assert path.stat().st_size < 300_000
    assert sum('"sha256":' in line for line in path.read_text().splitlines()) == 360


# ---------------------------------------------------------------------------------------------------------- saving over


def test_a_better_baseline_is_not_lowered_unasked(tmp_path):
    good, poor = scored(tmp_path, {"adapter": right}, "good"), scored(tmp_path, {"adapter": half}, "poor")
    path = tmp_path / "b.json"
    saved(path, good)
    asked = []
    with pytest.raises(ArtifactError, match=r"holds a better baseline: .*100% to 50%.*; add --force"):
        saved(path, poor, confirm=lambda better: bool(asked.extend(better)))
    assert len(asked) == len(CONFIG.gate.metrics)
    assert baseline.read(path).run == "good"
    saved(path, poor, confirm=lambda _: True)
    assert baseline.read(path).run == "poor"
    saved(path, good)  # raising needs no question


def test_a_lost_variant_or_metric_is_asked_about(tmp_path):
    both, one = (
        scored(tmp_path, {"adapter": half, "gguf_f16": half}, "both"),
        scored(tmp_path, {"adapter": half}, "one"),
    )
    path = tmp_path / "b.json"
    saved(path, both)
    fewer = Config.model_validate({**CONFIG.model_dump(), "gate": {"metrics": ["token_f1"]}})
    assert baseline.losses_against(baseline.read(path), baseline.snapshot(one, CONFIG)) == [
        "gguf_f16 is not in run one"
    ]
    assert "rougeL is not gated any more" in baseline.losses_against(
        baseline.read(path), baseline.snapshot(both, fewer)
    )


def test_a_damaged_one_is_asked_about_too(tmp_path):
    path = tmp_path / "b.json"
    path.write_text("{")
    with pytest.raises(ArtifactError, match="--force"):
        saved(path, scored(tmp_path, {"adapter": right}), confirm=lambda _: False)


def test_nothing_scored_is_no_baseline(tmp_path):
    failed = {"finish_reason": "error", "error": "x"}
    with pytest.raises(ArtifactError, match="no answer was scored"):
        saved(tmp_path / "b.json", scored(tmp_path, {"adapter": lambda q: failed}))
    with pytest.raises(ArtifactError, match="no variant to gate"):
        saved(tmp_path / "b.json", scored(tmp_path, {"base": right}, "s"))
    assert not (tmp_path / "b.json").exists()


def test_further_trainings_are_kept_by_their_means_and_reported(tmp_path):
    first, second, third = (
        baseline.snapshot(scored(tmp_path, {"base": half, "adapter": answer}, name, weights_sha256=name), CONFIG)
        for name, answer in (("a", right), ("b", half), ("c", right))
    )
    path = tmp_path / "b.json"
    baseline.save(path, baseline.with_trainings(first, [second, third]), CONFIG, confirm=never)
    read = baseline.read(path)
    assert read.variants["adapter"].trainings["exact_match_normalized"] == [0.5, 1.0]
    bound = baseline.seed_bound(read, "adapter", "exact_match_normalized")
    # Trainings 1, 0.5, 1: mean 0.833, standard deviation 0.289, t of 95% with 2 degrees of freedom 2.920.
    assert (bound.centre, bound.half) == pytest.approx((-1 / 6, 2.919986 * 0.2886751 * (4 / 3) ** 0.5))
    assert baseline.seed_bound(first, "adapter", "exact_match_normalized") == NOT_KNOWN
    lookup = baseline.seed_bound(read, "adapter", "exact_match_normalized", "lookup")
    content = baseline.seed_bound(read, "adapter", "exact_match_normalized", "content")
    assert (lookup.half, content.centre) == pytest.approx((0.0, -1 / 3)), (
        "the rows that `half` gets right are of one kind"
    )
    assert "exact_match_normalized of further trainings: 0.500, 1.000" in "\n".join(baseline.describe(read))
    assert baseline.column(read, "adapter", "exact_match_normalized").mean() == 1, "the scores are those of the first"


def test_a_further_training_is_another_one_with_the_same_settings(tmp_path):
    first = baseline.snapshot(scored(tmp_path, {"adapter": right}, "a", weights_sha256="a"), CONFIG)
    with pytest.raises(ArtifactError, match="runs a and a are one training"):
        baseline.with_trainings(first, [first])
    other = baseline.snapshot(scored(tmp_path, {"adapter": right}, "b", weights_sha256="b", prompts_sha256="0"), CONFIG)
    with pytest.raises(IncomparableError, match="runs a and b differ: prompts"):
        baseline.with_trainings(first, [other])


# -------------------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"run": 1}'])
def test_a_damaged_baseline_is_refused_with_a_hint(tmp_path, damage):
    path = tmp_path / "b.json"
    path.write_text(damage)
    with pytest.raises(ArtifactError, match="harness baseline save"):
        baseline.read(path)


def test_a_baseline_whose_parts_do_not_fit_is_refused(tmp_path):
    path = tmp_path / "b.json"
    saved(path, scored(tmp_path, {"adapter": right}))
    whole = json.loads(path.read_text())
    for broken in ({**whole, "questions": []}, {**whole, "metrics": {}}, {**whole, "variants": {}}):
        path.write_text(json.dumps(broken))
        with pytest.raises(ArtifactError, match="is damaged"):
            baseline.read(path)


def test_a_comparison_of_older_scores_is_refused(tmp_path):
    run = scored(tmp_path, {"adapter": right})
    predict(run, "adapter", questions(), half)
    score.run(run, CONFIG)
    with pytest.raises(ArtifactError, match="run harness compare again"):
        baseline.snapshot(run, CONFIG)


def test_a_metric_that_was_not_scored_is_named(tmp_path):
    config = CONFIG.model_copy(update={"gate": CONFIG.gate.model_copy(update={"metrics": ["no_such"]})})
    with pytest.raises(ConfigError, match=r"gate.metrics: 'no_such' was not scored"):
        baseline.snapshot(scored(tmp_path, {"adapter": right}), config)


# --------------------------------------------------------------------------------------------------- what is not alike


def test_what_must_be_equal_is_named(tmp_path):
    old = baseline.snapshot(scored(tmp_path, {"adapter": right}), CONFIG)
    assert list(baseline.differs(old, old, ["adapter"], CONFIG.gate.metrics)) == []

    def named(**update):
        return list(baseline.differs(old, old.model_copy(update=update), ["adapter"], CONFIG.gate.metrics))

    first = old.questions[0]
    assert "prompts: " in named(prompts_sha256="0" * 64)[0]
    assert named(generation={**old.generation, "max_new_tokens": 16}) == ["generation: max_new_tokens 64 -> 16"]
    assert "metric signature: " in named(metrics={**old.metrics, "rougeL": "rougeL|v:2"})[0]
    assert named(variants={})[0] == "variant adapter is not in the run"
    assert "1 gone, 0 new, 0 reworded" in named(questions=old.questions[1:])[0]
    assert (
        "0 gone, 0 new, 1 reworded"
        in named(questions=[first.model_copy(update={"sha256": "x"}), *old.questions[1:]])[0]
    )
    assert "another order" in named(questions=old.questions[::-1])[0]
    assert named(split_id="other training rows") == []


def test_what_may_have_caused_it_is_reported(tmp_path):
    run = scored(tmp_path, {"adapter": right})
    old = baseline.snapshot(run, CONFIG)
    hot = Config.model_validate({**CONFIG.model_dump(), "train": {"learning_rate": 0.02}, "gate": {"margin": 0.1}})
    assert likeness.changes(old, baseline.snapshot(run, hot)) == ["setting train.learning_rate 0.0002 -> 0.02"]
    newer = old.model_copy(
        update={"provenance": {"packages": {"torch": "9"}, "git": {"commit": "c" * 40}}, "split_id": "s"}
    )
    reported = likeness.changes(old, newer)
    assert (
        "package torch absent -> 9" in reported
        and "training or held-out rows" in reported
        and f"commit unknown -> {'c' * 12}" in reported
    )


def test_describe_names_run_questions_and_scores(tmp_path):
    text = "\n".join(baseline.describe(baseline.snapshot(scored(tmp_path, {"adapter": half}), CONFIG)))
    assert "36 questions in 12 groups" in text and "exact_match_normalized 0.500" in text
