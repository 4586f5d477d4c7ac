import json

import pytest

from harness import storage
from harness.analysis import buckets, paired
from harness.analysis.primary import primary_metric
from harness.config import Config
from harness.errors import ArtifactError, ConfigError, IncomparableError
from harness.records import Comparison, PredictionSet, Question
from harness.stages import compare, score
from harness.storage import RunFolder
from tests.helpers.logged import messages
from tests.helpers.scored_run import BASELINES, CONFIG, GENERATION, make, predict, questions

MANY = questions(n_groups=30, size=4)


def right(question):
    return question.answer


def wrong(question):
    return "nothing"


def varied(question):
    return f"nothing {question.id}"


def compared(root, answers, config=CONFIG, **changes):
    run = make(root, answers, asked=MANY, **changes)
    score.run(run, config)
    return compare.run(run, config)


def pair(comparison, left, right, metric="exact_match"):
    return next(p for p in comparison.pairs if (p.left, p.right, p.metric) == (left, right, metric))


def codes(comparison, variant):
    return [a.code for a in comparison.alarms if a.variant == variant]


# --------------------------------------------------------------------------------------------------------------- pairs


def test_each_variant_against_base_and_each_format_against_its_source(tmp_path):
    names = ["base", "adapter", "merged_16bit", "gguf_q8_0", "elsewhere"]
    extra = {"backend": "replay", "path": "x"}
    settings = {"predict": {"extra": {"elsewhere": extra}}, "score": {"resamples": 100, "metrics": ["exact_match"]}}
    comparison = compared(tmp_path, dict.fromkeys(names, right), Config.model_validate(settings))
    assert [(p.left, p.right) for p in comparison.pairs] == [
        *((name, "base") for name in names[1:]),
        ("merged_16bit", "adapter"),
        ("gguf_q8_0", "adapter"),
        ("gguf_q8_0", "merged_16bit"),
    ]


def test_a_clear_gain_is_better_and_identical_answers_are_identical(tmp_path):
    comparison = compared(tmp_path, {"base": wrong, "adapter": right, "merged_16bit": right})
    gain = pair(comparison, "adapter", "base")
    assert (gain.delta, gain.verdict, gain.wins, gain.losses) == (1, "better", len(MANY), 0)
    assert gain.p_adjusted is not None and gain.p is not None and gain.p <= gain.p_adjusted <= 0.05
    same = pair(comparison, "merged_16bit", "adapter")
    assert (same.delta, same.p, same.p_adjusted, same.verdict, same.mde) == (0, 1, 1, "identical", None)
    assert same.ci95 is not None and same.ci95[0] == -same.ci95[1] < 0
    assert same.p_mcnemar == 1
    assert pair(comparison, "adapter", "base", "token_f1").p_mcnemar is None
    assert {p.margin for p in comparison.pairs} == {CONFIG.compare.margin}


def test_a_loss_is_worse(tmp_path):
    assert pair(compared(tmp_path, {"base": right, "adapter": wrong}), "adapter", "base").verdict == "worse"


def test_unscored_questions_are_left_out_of_the_pair_not_lost(tmp_path):
    failed = {"finish_reason": "error", "error": "x"}
    comparison = compared(tmp_path, {"base": right, "adapter": lambda q: failed if q.id in ("q1", "q2") else q.answer})
    found = pair(comparison, "adapter", "base")
    assert (found.n, found.delta, found.ties) == (len(MANY) - 2, 0, len(MANY) - 2)


def test_without_a_base_there_is_no_pair_and_no_error(tmp_path):
    assert compared(tmp_path, {"adapter": right}).pairs == []


def test_the_primary_metric_on_the_headlines_pairs_is_a_separate_family(tmp_path):
    comparison = compared(tmp_path, {"base": wrong, "adapter": right, "merged_16bit": right})
    assert comparison.primary and comparison.primary_reason
    confirmatory = {(p.left, p.right, p.metric) for p in comparison.pairs if p.family == "confirmatory"}
    assert confirmatory == {(v, "base", comparison.primary) for v in ("adapter", "merged_16bit")}


def test_what_differs_nowhere_but_in_the_text_is_not_identical(tmp_path):
    comparison = compared(tmp_path, {"base": wrong, "adapter": lambda q: f"{wrong(q)} "})
    found = pair(comparison, "adapter", "base")
    assert (found.delta, found.verdict) == (0, "undecided")


# ---------------------------------------------------------------------------------------------------------- the whole file


def test_comparison_json_is_whole_stable_and_not_computed_twice(tmp_path):
    run = make(tmp_path, {"base": wrong, "adapter": right})
    storage.write_json(
        run.run_json,
        {"git": {"commit": "c"}, "stages": {"split": {"status": "done"}, "compare": {"status": "running"}}},
    )
    score.run(run, CONFIG)
    first = compare.run(run, CONFIG)
    read = storage.read_record(run.comparison_json, Comparison)
    assert read.model_dump() == first.model_dump()
    assert json.loads(run.comparison_json.read_text())["schema"] == 1
    assert first.baselines == BASELINES
    assert first.provenance["git"] == {"commit": "c"}
    assert list(first.provenance["stages"]) == ["split"]
    assert first.provenance["variants"]["base"]["weights_sha256"] == "w"
    contents = run.comparison_json.read_bytes()
    with messages() as logged:
        compare.run(run, CONFIG)
    assert logged == ["compare: scores are unchanged"]
    assert run.comparison_json.read_bytes() == contents
    with messages() as logged:
        compare.run(run, CONFIG, force=True)
    assert run.comparison_json.read_bytes() == contents
    assert logged and logged != ["compare: scores are unchanged"]


def test_another_setting_or_score_is_compared_again(tmp_path):
    run = make(tmp_path, {"base": wrong, "adapter": right})
    score.run(run, CONFIG)
    compare.run(run, CONFIG)
    wide = Config.model_validate({"compare": {"margin": 0.5, "resamples": 200}, "score": {"resamples": 200}})
    assert {p.margin for p in compare.run(run, wide).pairs} == {0.5}
    predict(run, "adapter", questions(), wrong)
    score.run(run, wide)
    assert pair(compare.run(run, wide), "adapter", "base").delta == 0


# ------------------------------------------------------------------------------------------------------------- examples


def test_the_largest_wins_and_losses_are_given_as_examples(tmp_path):
    def mixed(question):
        """Right on the odd rows (wins of 1), wrong on row 2 (a loss of 1), half right on rows 4 and 6 (losses of a third)."""
        if question.row % 2:
            return question.answer
        return {2: "other", 4: "article", 6: "article"}.get(question.row, "Article 0")

    asked = [q.model_copy(update={"answer": "Article 0"}) if q.row % 2 == 0 else q for q in MANY]
    run = make(tmp_path, {"base": lambda q: "Article 0", "adapter": mixed, "merged_16bit": mixed}, asked=asked)
    score.run(run, CONFIG)
    found = {(e.left, e.right): e for e in compare.run(run, CONFIG).examples}
    assert list(found) == [("adapter", "base"), ("merged_16bit", "base")], "formats that do not differ have no examples"
    against_base = found["adapter", "base"]
    assert against_base.metric == "token_f1"
    assert [(e.id, e.left, e.right, e.delta) for e in against_base.losses] == [
        ("q1", 0, 1, -1),
        ("q3", pytest.approx(2 / 3), 1, pytest.approx(-1 / 3)),
        ("q5", pytest.approx(2 / 3), 1, pytest.approx(-1 / 3)),
    ]
    # All wins are equal: the first ones of the file are taken.
    assert [e.id for e in against_base.wins] == [f"q{i}" for i in range(0, 2 * paired.EXAMPLES, 2)]
    assert all(e.delta == e.left - e.right > 0 for e in against_base.wins)


def test_failed_answers_are_no_examples_and_another_metric_replaces_theirs(tmp_path):
    config = Config.model_validate({"score": {"resamples": 100, "metrics": ["exact_match"]}})
    failed = {"finish_reason": "error", "error": "x"}
    comparison = compared(
        tmp_path,
        {"base": lambda q: failed if q.row == 1 else "x", "adapter": lambda q: q.answer if q.row < 3 else "x"},
        config,
    )
    assert [(e.metric, [x.id for x in e.wins], e.losses) for e in comparison.examples] == [("exact_match", ["q1"], [])]


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"generation": GENERATION | {"max_new_tokens": 16}}, "max_new_tokens 64 against 16"),
        ({"generation": GENERATION | {"repeat_penalty": 1.1}}, "repeat_penalty absent against 1.1"),
        ({"prompts_sha256": "0" * 64}, "prompts"),
    ],
)
def test_variants_that_were_asked_differently_are_refused(tmp_path, changes, named):
    run = make(tmp_path, {"base": wrong})
    predict(run, "adapter", questions(), right, **changes)
    storage.write_json(run.predict_json, PredictionSet(fingerprint="f", variants=["base", "adapter"]))
    score.run(run, CONFIG)
    with pytest.raises(IncomparableError, match=named) as caught:
        compare.run(run, CONFIG)
    assert caught.value.exit_code == 3
    assert "base" in str(caught.value) and "adapter" in str(caught.value)
    assert not run.comparison_json.exists()


def test_other_metric_signatures_are_refused(tmp_path):
    run = make(tmp_path, {"base": wrong, "adapter": right})
    score.run(run, CONFIG)
    path = run.score("adapter")[1]
    text = path.read_text().replace(
        "rouge1|v:1|norm:none|tok:unicode-words-2|stem:none", "rouge1|v:1|norm:none|tok:default|stem:porter"
    )
    path.write_text(json.dumps(json.loads(text) | {"checksum": ""}))
    with pytest.raises(IncomparableError, match=r"metric signatures: rouge1 .*stem:none.* against .*stem:porter"):
        compare.run(run, CONFIG)


def test_scores_of_another_split_are_refused(tmp_path):
    run = make(tmp_path, {"base": wrong})
    score.run(run, CONFIG)
    path = run.score("base")[1]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"split_id": "0" * 64, "checksum": ""}))
    with pytest.raises(IncomparableError, match="split"):
        compare.run(run, CONFIG)


def test_stale_or_edited_scores_are_refused(tmp_path):
    run = make(tmp_path, {"base": wrong})
    score.run(run, CONFIG)
    predict(run, "base", questions(), right)
    with pytest.raises(ArtifactError, match="other answers"):
        compare.run(run, CONFIG)
    score.run(run, CONFIG)
    lines = run.score("base")[0]
    lines.write_text(lines.read_text().replace("1.0", "0.0"))
    with pytest.raises(ArtifactError, match="not what score wrote"):
        compare.run(run, CONFIG)


def test_missing_scores_name_the_file(tmp_path):
    with pytest.raises(ArtifactError, match="missing"):
        compare.run(make(tmp_path, {"base": wrong}), CONFIG)


# --------------------------------------------------------------------------------------------------------------- alarms


def test_alarms_name_the_variant_and_the_count(tmp_path):
    def bad(question):
        faults = {
            "q0": {"text": "   "},
            "q1": {"finish_reason": "error", "error": "x"},
            "q2": {"text": "a", "prompt_cut": True},
            **{f"q{i}": {"text": "a a a", "finish_reason": "length"} for i in range(3, 7)},
        }
        return faults.get(question.id, question.answer)

    comparison = compared(tmp_path, {"base": right, "adapter": bad})
    assert codes(comparison, "base") == []
    assert codes(comparison, "adapter") == ["runaway", "prompts_cut", "empty_answers", "unscored"]
    runaway = comparison.alarms[0]
    assert (runaway.value, runaway.limit) == (4 / 120, 0.02)
    assert "3.3%" in runaway.message and "64 tokens" in runaway.message
    assert comparison.variants["adapter"].empty_answers == 1


def test_at_the_runaway_limit_there_is_no_alarm(tmp_path):
    config = Config.model_validate({"compare": {"runaway_limit": 0.025, "resamples": 100}, "score": {"resamples": 100}})
    run = {"base": lambda q: {"text": "a", "finish_reason": "length"} if q.id in ("q0", "q1", "q2") else q.answer}
    assert codes(compared(tmp_path, run, config), "base") == []


def test_an_adapter_without_effect_is_reported(tmp_path):
    comparison = compared(tmp_path, {"base": varied, "adapter": varied, "merged_16bit": right})
    assert codes(comparison, "adapter") == ["adapter_without_effect"]
    assert codes(comparison, "merged_16bit") == []
    one = compared(tmp_path / "one", {"base": varied, "adapter": lambda q: "else" if q.id == "q5" else varied(q)})
    assert codes(one, "adapter") == []


def test_answers_that_are_almost_always_the_same_are_reported(tmp_path):
    def mostly(question):
        return question.answer if question.row % 3 == 0 else ["It is nothing.", "it is nothing"][question.row % 2]

    comparison = compared(tmp_path, {"base": varied, "adapter": mostly})
    assert codes(comparison, "base") == [] and codes(comparison, "adapter") == ["constant_answers"]
    alarm = next(a for a in comparison.alarms if a.code == "constant_answers")
    assert alarm.value == pytest.approx(80 / 120 - 1 / 120) and alarm.limit == 0.5
    assert (
        alarm.message
        == "adapter: 66.7% of the answers are 'it is nothing'; the commonest reference is that of 0.8% of the questions"
    )
    assert codes(compared(tmp_path / "half", {"base": lambda q: "no" if q.row % 2 else q.answer}), "base") == []
    assert codes(compared(tmp_path / "blank", {"base": lambda q: " "}), "base") == ["empty_answers"]


@pytest.mark.parametrize("yes", [12, 60, 108])
def test_a_set_of_yes_and_no_is_not_taken_for_a_fault(tmp_path, yes):
    asked = [q.model_copy(update={"answer": "Yes." if q.row <= yes else "No."}) for q in MANY]
    run = make(tmp_path, {"base": lambda q: "no", "adapter": lambda q: "Yes", "merged_16bit": right}, asked=asked)
    score.run(run, CONFIG)
    assert compare.run(run, CONFIG).alarms == []


def test_a_set_of_few_answers_may_be_answered_in_the_same_shares(tmp_path):
    asked = [
        q.model_copy(update={"answer": "Parliament", "references": ["The Parliament"]} if q.row <= 90 else {})
        for q in MANY
    ]
    run = make(tmp_path, {"base": lambda q: "parliament"}, asked=asked)
    score.run(run, CONFIG)
    assert compare.run(run, CONFIG).alarms == []


def test_other_prompt_tokens_with_the_same_hash_are_reported(tmp_path):
    def tokenised_otherwise(question):
        ids = [0, *question.question.encode()] if question.id == "q4" else list(question.question.encode())
        return {"text": "x", "prompt_ids": ids}

    comparison = compared(tmp_path, {"base": wrong, "gguf_f16": tokenised_otherwise})
    alarm = next(a for a in comparison.alarms if a.code == "prompt_mismatch")
    assert (alarm.variant, alarm.value) == ("gguf_f16", 1 / 120)


# ----------------------------------------------------------------------------------------------------------- breakdowns


def test_breakdowns_cover_every_question_once_and_carry_intervals(tmp_path):
    comparison = compared(tmp_path, {"base": wrong, "adapter": lambda q: q.answer if q.kind == "lookup" else "nothing"})
    rows = [b for b in comparison.breakdowns if b.variant == "adapter" and b.metric == "exact_match_normalized"]
    for by in ("kind", "part", "answer_length", "answer_type", "similarity"):
        assert sum(b.n for b in rows if b.by == by) == len(MANY)
    kinds = {b.bucket: b for b in rows if b.by == "kind"}
    assert (kinds["lookup"].value, kinds["content"].value) == (1, 0)
    ci95 = kinds["content"].ci95
    assert ci95 is not None and ci95[0] == 0 and ci95[1] > 0


@pytest.mark.parametrize(
    "answer, length, kind",
    [
        ("Yes", "1 word", "yes/no"),
        ("No, it may not do so", "4-7 words", "yes/no"),
        ("Article 21A", "2-3 words", "citation"),
        ("25 years", "2-3 words", "number"),
        ("The President", "1 word", "term"),
        (" ".join(["word"] * 16), "16+ words", "sentence"),
        (".", "1 word", "term"),
    ],
)
def test_lengths_and_types_of_answers(answer, length, kind):
    question = Question(id="q", row=1, question="?", answer=answer, group="g")
    assert (buckets.answer_length(question), buckets.answer_type(question)) == (length, kind)


@pytest.mark.parametrize(
    "value, bucket",
    [(None, "unknown"), (0.0, "0.0-0.1"), (0.1, "0.1-0.2"), (0.49, "0.4-0.5"), (0.5, "0.5-1.0"), (1.0, "0.5-1.0")],
)
def test_similarity_buckets(value, bucket):
    assert (
        buckets.similarity(Question(id="q", row=1, question="?", answer="a", group="g", nearest_train=value)) == bucket
    )


def test_many_kinds_are_cut_to_the_largest_and_other():
    asked = [Question(id=f"q{i}", row=1, question="?", answer="a", group="g", kind=f"k{min(i, 40)}") for i in range(60)]
    found = [(bucket, len(rows)) for by, bucket, rows in buckets.buckets(asked) if by == "kind"]
    assert len(found) == buckets.MOST + 1
    assert ("k40", 20) in found and found[-1] == ("other", 41 - buckets.MOST)
    assert not [by for by, _, _ in buckets.buckets(asked) if by == "part"], "one bucket is no breakdown"


# ------------------------------------------------------------------------------------------------------------- two runs


def test_two_runs_are_paired_variant_by_variant(tmp_path):
    runs = [
        make(tmp_path, {"base": wrong, "adapter": answer}, name=name, asked=MANY)
        for name, answer in (("new", right), ("old", wrong))
    ]
    for run in runs:
        score.run(run, CONFIG)
    pairs = {(p.left, p.right): p for p in compare.compare_runs(runs[0], runs[1], CONFIG) if p.metric == "exact_match"}
    assert pairs["new/adapter", "old/adapter"].verdict == "better"
    assert pairs["new/base", "old/base"].verdict == "identical"
    assert {p.verdict for p in compare.compare_runs(runs[0], runs[0], CONFIG)} == {"identical"}
    assert {p.p for p in compare.compare_runs(runs[0], runs[0], CONFIG)} == {1.0}


def test_two_runs_on_different_splits_are_refused(tmp_path):
    runs = [make(tmp_path, {"base": wrong}, name=f"r{size}", asked=questions(size=size)) for size in (3, 4)]
    for run in runs:
        score.run(run, CONFIG)
    with pytest.raises(IncomparableError, match="r3/base and r4/base differ in split"):
        compare.compare_runs(runs[0], runs[1], CONFIG)


def test_all_that_differs_between_two_runs_is_named(tmp_path):
    runs = [
        make(tmp_path, {"base": wrong}, name="a"),
        make(tmp_path, {"base": wrong}, name="b", generation={}, prompts_sha256="0" * 64),
    ]
    score.run(runs[0], CONFIG)
    score.run(runs[1], Config.model_validate({"score": {"resamples": 200, "metrics": ["rouge1"]}}))
    with pytest.raises(IncomparableError) as caught:
        compare.compare_runs(runs[0], runs[1], CONFIG)
    said = str(caught.value)
    assert said.startswith("a/base and b/base differ in generation parameters: max_new_tokens 64 against absent")
    assert ", and in prompts: " in said and ", and in metric signatures: exact_match " in said
    assert "split" not in said


def test_two_runs_without_a_common_variant(tmp_path):
    runs = [make(tmp_path, {name: wrong}, name=name) for name in ("base", "adapter")]
    for run in runs:
        score.run(run, CONFIG)
    with pytest.raises(ArtifactError, match="no variant in common"):
        compare.compare_runs(runs[0], runs[1], CONFIG)
    with pytest.raises(ArtifactError, match="missing"):
        compare.compare_runs(runs[0], RunFolder("nowhere", tmp_path), CONFIG)


def test_the_primary_metric_follows_the_references_unless_one_is_named():
    measured = ["exact_match_normalized", "token_f1"]
    short, long = [["the President"]] * 3, [["one two three four five six seven"]] * 3
    assert primary_metric(measured, short)[0] == "exact_match_normalized"
    assert primary_metric(measured, long)[0] == "token_f1"
    assert primary_metric(measured, [["\u7b2c\u5341\u56db\u6761" * 6]])[0] == "token_f1", "Han has no spaces"
    assert primary_metric(measured, long, "exact_match_normalized")[0] == "exact_match_normalized"
    with pytest.raises(ConfigError, match="'tokn_f1' was not scored"):
        primary_metric(measured, long, "tokn_f1")
