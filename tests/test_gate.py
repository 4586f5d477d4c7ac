"""The gate: a table of its verdicts, its outputs, and how often it errs by simulation (benchmarks/gate_power.py), seeded: the outcome is deterministic."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from harness import cli, storage
from harness.errors import ArtifactError, IncomparableError
from harness.gating import baseline, differences
from harness.gating.noninferiority import SeedBound, judge
from harness.records import Comparison, SplitManifest
from harness.stages import compare, gate, report, score
from tests.helpers.gated_run import MANY, config, gated, right, right_but, scored, untuned
from tests.helpers.scored_run import CONFIG, COST, GENERATION, make, questions

FAILED = {"finish_reason": "error", "error": "out of memory"}


def wrong(question):
    return f"something else {question.id}"


CHURN = (
    lambda q: "nothing" if q.row % 8 in (0, 1) else q.answer,
    lambda q: "nothing" if q.row % 8 in (4, 5) else q.answer,
)
"""Before and after: a quarter of each is wrong, on other questions."""


def checks(result, kind):
    return {check.name: check for check in result.checks if check.kind == kind}


# ------------------------------------------------------------------------------------------------- one difference, judged


@pytest.mark.parametrize(
    "delta, ci95, p, verdict",
    [
        (0.0, (0.0, 0.0), 1.0, "pass"),  # the same answers
        (-0.02, (-0.02, -0.02), 0.001, "pass"),  # on the margin: a loss of the margin is tolerated
        (-0.02 - 1e-12, (-0.02 - 1e-12, 0.0), 0.001, "pass"),  # no rounding error makes it more
        (-0.021, (-0.021, -0.021), 0.001, "regression"),
        (-0.01, (-0.019, -0.001), 0.001, "pass"),  # real, and within the margin
        (-0.01, (-0.05, 0.03), 0.6, "inconclusive"),
        (-0.05, (-0.11, 0.01), 0.1, "inconclusive"),  # the estimate is far below, but the interval is wide
        (-0.05, (-0.09, -0.01), 0.001, "regression"),
        (-0.05, (-0.09, -0.01), 0.2, "inconclusive"),  # one of many differences: chance
        (-0.015, (-0.029, -0.001), 0.001, "inconclusive"),  # a loss, most likely within the margin
        (0.05, (0.01, 0.09), 0.001, "improvement"),
        (0.05, (0.01, 0.09), 0.2, "pass"),
        (0.05, (-0.01, 0.11), 0.1, "pass"),
        (0.03, (-0.05, 0.11), 0.4, "inconclusive"),
        (None, None, 1.0, "regression"),  # nothing scored is never a pass
        (-0.5, None, 1.0, "inconclusive"),  # a single group
    ],
)
def test_verdict_of_a_difference(delta, ci95, p, verdict):
    assert judge(delta, ci95, p, margin=0.02) == verdict


def test_a_format_breaches_its_limit_only_surely():
    assert judge(-0.06, (-0.09, -0.03), 0.001, margin=0.05, tolerated=0.05) == "inconclusive"
    assert judge(-0.06, (-0.069, -0.051), 0.001, margin=0.05, tolerated=0.05) == "regression"
    assert judge(-0.03, (-0.049, -0.011), 0.001, margin=0.05, tolerated=0.05) == "pass"


@pytest.mark.parametrize(
    "delta, centre, half, verdict",
    [
        (
            -0.05,
            -0.01,
            0.04,
            "inconclusive",
        ),  # another seed may lose nearly as much: 4 points below the mean, sqrt(4^2 + 2^2) = 4.5 wanted
        (-0.056, -0.01, 0.04, "regression"),
        (-0.05, 0.02, 0.04, "regression"),  # a bad seed in the baseline does not excuse the loss
        (0.05, 0.02, 0.04, "pass"),  # within seed variance: not an improvement
        (0.05, -0.02, 0.04, "improvement"),
        (0.05, 0.0, 0.04, "improvement"),
    ],
)
def test_a_difference_that_other_seeds_make_too_is_no_verdict(delta, centre, half, verdict):
    found = judge(delta, (delta - 0.03, delta + 0.03), 0.001, margin=0.02, seeds=SeedBound(centre, half))
    assert found == verdict


def test_the_bound_of_seeds_converges_instead_of_growing():
    rng = np.random.default_rng(0)
    halves = [np.mean([SeedBound.of(rng.normal(0.6, 0.02, n)).half for _ in range(300)]) for n in (3, 5, 10, 40, 160)]
    assert halves == sorted(halves, reverse=True) and halves[-1] == pytest.approx(1.645 * 0.02, rel=0.03)
    assert SeedBound.of([0.6]) == SeedBound(0.0, 0.0)


@given(st.floats(-1, 1), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0, 1), st.floats(0, 0.2))
def test_more_is_never_judged_worse(delta, below, above, p, margin):
    order = ["regression", "inconclusive", "pass", "improvement"]
    ranks = [order.index(judge(d, (d - below, d + above), p, margin)) for d in (delta, delta + 0.1)]
    assert ranks[0] <= ranks[1]


# ----------------------------------------------------------------------------------------------------------- the whole


@pytest.mark.parametrize(
    "before, after, verdict, exit_code",
    [
        (right, right, "pass", 0),
        (wrong, wrong, "pass", 0),  # a baseline of 0: no division by it
        (wrong, right, "improvement", 0),
        (right, wrong, "regression", 1),
        (right, right_but(5), "regression", 1),
        (right, right_but(143), "pass", 0),  # one of 285
        (*CHURN, "inconclusive", 0),  # as many lost as won, of both kinds
        (right, lambda q: FAILED, "regression", 1),  # all errors: unscored, not 0, and no pass
        (right, right_but(20, FAILED), "regression", 1),  # failed answers are not silently left out
    ],
    ids=["same", "zero", "improved", "lost all", "lost a fifth", "lost one", "churn", "all errors", "some errors"],
)
def test_verdicts(tmp_path, before, after, verdict, exit_code):
    result = gated(tmp_path, before, after)
    assert (result.verdict, result.exit_code) == (verdict, exit_code)
    assert json.loads((tmp_path / "reports/new/gate.json").read_text())["verdict"] == verdict


def test_too_few_questions_are_reported_and_fail_only_if_strict(tmp_path):
    assert gated(tmp_path, *CHURN).exit_code == 0
    assert gated(tmp_path, *CHURN, strict=True).exit_code == 4
    assert gated(tmp_path, *CHURN, config(strict=True)).exit_code == 4
    # More exclude a loss of 2 points; a wider margin needs fewer.
    assert gated(tmp_path, *CHURN, config(margin=0.2)).verdict == "pass"
    assert gated(tmp_path, *CHURN, config(margins=dict.fromkeys(CONFIG.gate.metrics, 0.2))).verdict == "pass"


def test_another_metric_or_variant_cannot_hide_a_loss(tmp_path):
    result = gated(tmp_path, {"adapter": wrong, "gguf_f16": right}, {"adapter": right, "gguf_f16": right_but(5)})
    assert result.verdict == "regression"
    found = checks(result, "baseline")
    assert found["baseline/adapter/rougeL"].verdict == "improvement"
    assert found["baseline/gguf_f16/exact_match_normalized"].verdict == "regression"
    assert "gguf_f16" in result.reason


def test_a_loss_no_worse_than_that_of_other_seeds_is_reported_and_does_not_fail(tmp_path):
    trainings = {"good": right, "second": right_but(30), "third": right_but(20)}
    runs = {
        name: scored(tmp_path, name, {"adapter": answer}, weights_sha256=name) for name, answer in trainings.items()
    }
    first, *others = (baseline.snapshot(run, config()) for run in runs.values())
    path = tmp_path / "baseline.json"
    for known, verdict, exit_code in (([], "regression", 1), (others, "inconclusive", 0)):
        baseline.save(path, baseline.with_trainings(first, known), config(), confirm=lambda _: True)
        result = gate.run(scored(tmp_path, "new", {"adapter": right_but(12, "no")}), config(), baseline_file=path)
        assert (result.verdict, result.exit_code) == (verdict, exit_code)
    assert "another seed -11 to +5.7" in result.reason
    far = gate.run(scored(tmp_path, "new", {"adapter": right_but(4)}), config(), baseline_file=path)
    assert (far.verdict, far.exit_code) == ("regression", 1)


def test_a_kind_of_question_cannot_vanish_in_the_mean(tmp_path):
    """19 of 285 questions are of a third kind, and all are lost: 6.7 points that the mean over all questions leaves open under churn."""
    asked = [q.model_copy(update={"kind": "scenario"}) if q.row % 15 == 0 else q for q in MANY]

    def lost(question):
        return "nothing" if question.row % 15 == 0 else CHURN[1](question)

    def run(settings, before=CHURN[0], after=lost):
        old = scored(tmp_path, "old", {"adapter": before}, asked=asked)
        (tmp_path / "baseline.json").unlink(missing_ok=True)
        baseline.save(tmp_path / "baseline.json", baseline.snapshot(old, settings), settings, confirm=lambda _: True)
        return gate.run(
            scored(tmp_path, "new", {"adapter": after}, asked=asked), settings, baseline_file=tmp_path / "baseline.json"
        )

    found = run(config())
    failed = {check.name for check in found.checks if check.verdict == "regression"}
    assert found.exit_code == 1 and "kind/adapter/exact_match_normalized/scenario" in failed
    assert all(name.endswith("/scenario") for name in failed)
    assert {example.id for example in found.examples} <= {q.id for q in asked if q.kind == "scenario"}
    assert run(config(kind_questions=0)).exit_code == run(config(kind_questions=20)).exit_code == 0
    # A baseline of an earlier version has no kinds; those of the run are used.
    path = tmp_path / "baseline.json"
    stored = json.loads(path.read_text())
    for question in stored["questions"]:
        del question["kind"]
    for variant in stored["variants"].values():
        del variant["best"], variant["trainings_by_kind"]
    path.write_text(json.dumps(stored | {"checksum": ""}))
    assert gate.run(storage.RunFolder("new", tmp_path), config(), baseline_file=path).exit_code == 1


def test_small_losses_in_a_row_are_compared_with_the_best_mean_ever(tmp_path):
    path, settings = tmp_path / "baseline.json", config()
    verdicts = []
    for release in range(6):
        # Five questions of 285 more are lost each time: 1.8 points, within the margin.
        run = scored(
            tmp_path, f"r{release}", {"adapter": lambda q, r=release: "nothing" if q.row % 57 < r else q.answer}
        )
        if path.exists():
            result = gate.run(run, settings, baseline_file=path)
            verdicts.append(result.verdict)
            if result.verdict == "regression":
                assert {c.kind for c in result.checks if c.verdict == "regression"} == {"best"}
                assert "points against the best mean ever" in result.reason and "--forget-best" in result.hint
                break
        baseline.save(path, baseline.snapshot(run, settings), settings, confirm=lambda _: True)
    assert verdicts == ["inconclusive", "inconclusive", "regression"], "4 points are lost with the third"
    saved = baseline.read(path).variants["adapter"]
    assert saved.best["exact_match_normalized"] == 1 > saved.means["exact_match_normalized"]


def test_best_means_of_other_questions_are_forgotten(tmp_path):
    few = questions(n_groups=40, size=3)
    old = baseline.snapshot(scored(tmp_path, "old", {"adapter": right}), config())
    new = baseline.snapshot(scored(tmp_path, "new", {"adapter": right_but(5)}, asked=few), config())
    assert baseline.with_best(new, old).variants["adapter"].best["exact_match_normalized"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    "answer, exit_code",
    [(untuned, 1), (lambda q: "nothing at all", 1), (right_but(60, "x"), 0), (right, 0)],
    ids=["untrained", "trained to no effect", "nearly all right", "right"],
)
def test_must_improve_fails_a_model_that_is_not_better_than_its_base(tmp_path, answer, exit_code):
    """The negative control: against its own baseline an untrained model passes every other check."""
    settings = config(alarms={})
    result = gated(tmp_path, answer, answer, settings)
    assert result.verdict == "pass"
    run = storage.RunFolder("new", tmp_path)
    asked = gate.run(run, settings, baseline_file=tmp_path / "baseline.json", must_improve=True)
    assert asked.exit_code == exit_code
    assert ("not surely better than base" in asked.reason) == bool(exit_code)
    by_config = gate.run(run, config(alarms={}, must_improve=True), baseline_file=tmp_path / "baseline.json")
    assert by_config.exit_code == exit_code


def test_what_changed_is_in_the_result(tmp_path):
    result = gated(tmp_path, right, right_but(5))
    worst = checks(result, "baseline")["baseline/adapter/exact_match_normalized"]
    assert worst.delta == pytest.approx(-0.2, abs=1e-9)
    assert worst.message.startswith("100% -> 80%, -20 points against the baseline (95% CI -")
    assert len(result.examples) == 5
    first = result.examples[0]
    assert (first.before, first.after, first.answer, first.expected) == (
        1,
        0,
        "nothing",
        MANY[int(first.id[1:])].answer,
    )
    assert "harness baseline save --run new" in gated(tmp_path, wrong, right).hint


# --------------------------------------------------------------------------------------------------------- incomparable


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"generation": GENERATION | {"max_new_tokens": 16}}, "generation: max_new_tokens 64 -> 16"),
        ({"prompts_sha256": "0" * 64}, "prompts: "),
        ({"asked": MANY[:-1]}, "held-out questions: 1 gone"),
    ],
)
def test_what_is_not_comparable_is_named_with_the_command_that_renews(tmp_path, changes, named):
    result = gated(tmp_path, right, wrong, **changes)
    assert (result.verdict, result.exit_code, result.checks) == ("incomparable", 3, [])
    assert any(line.startswith(named) for line in result.differs) and named in result.reason
    assert "harness baseline save --run new --baseline" in result.hint
    for text in ((tmp_path / "reports/new/gate.md").read_text(), (tmp_path / "reports/new/junit.xml").read_text()):
        assert "harness baseline save" in text


def test_a_variant_that_vanished_is_incomparable_and_a_new_one_is_reported(tmp_path):
    result = gated(tmp_path, {"adapter": right, "gguf_f16": right}, {"adapter": right, "gguf_q8_0": right})
    assert result.differs == ["variant gguf_f16 is not in the run"]
    assert result.notes == ["gguf_q8_0 is not in the baseline and was not gated"]
    result = gated(tmp_path, {"gguf_q8_0": right}, {"gguf_q8_0": right}, config(fidelity={"gguf_q8_0": 0.01}))
    assert result.notes == ["merged_16bit was not answered, so the fidelity of gguf_q8_0 was not checked"]


def test_no_check_is_no_pass():
    assert gate.overall([]) == "incomparable"


def test_a_missing_or_damaged_baseline_is_an_error_and_leaves_no_old_verdict(tmp_path):
    gated(tmp_path, right, right)
    new = storage.RunFolder("new", tmp_path)
    (tmp_path / "baseline.json").write_text("{")
    for path in (tmp_path / "baseline.json", tmp_path / "none.json"):
        with pytest.raises(ArtifactError, match="harness baseline save"):
            gate.run(new, config(), baseline_file=path)
    assert not new.gate_json.exists() and not new.junit_xml.exists() and not new.gate_md.exists()


# --------------------------------------------------------------------------------------------------------------- limits


def test_a_floor_is_not_rounded(tmp_path):
    share = 270 / 285  # 94.7%
    for floor, verdict in ((share, "pass"), (share + 1e-6, "regression"), (0.95, "regression")):
        result = gated(tmp_path, right_but(19), right_but(19), config(floors={"exact_match_normalized": floor}))
        assert checks(result, "floor")["floor/adapter/exact_match_normalized"].verdict == verdict
        assert result.verdict == verdict
    assert "94.74%, at least 95% wanted" in result.reason
    close = gated(tmp_path, right_but(19), right_but(19), config(floors={"exact_match_normalized": share + 1e-6}))
    assert "exact_match_normalized 94.7368%, at least 94.7369% wanted" in close.reason, "the limit is seen to be broken"


def test_a_format_may_lose_only_so_much_against_16_bit(tmp_path):
    answers = {"merged_16bit": right, "gguf_q4_k_m": right_but(4)}
    for limit, verdict in ((0.05, "regression"), (0.24, "inconclusive"), (0.3, "pass")):
        result = gated(tmp_path, answers, answers, config(fidelity={"gguf_q4_k_m": limit, "gguf_q8_0": 0.01}))
        found = checks(result, "fidelity")
        assert {check.variant for check in found.values()} == {"gguf_q4_k_m"}
        assert found["fidelity/gguf_q4_k_m/exact_match_normalized"].verdict == result.verdict == verdict
    better = gated(
        tmp_path,
        {"merged_16bit": wrong, "gguf_q8_0": right},
        {"merged_16bit": wrong, "gguf_q8_0": right},
        config(fidelity={"gguf_q8_0": 0.01}),
    )
    assert better.verdict == "pass"


@pytest.mark.parametrize(
    "cost, settings, verdict",
    [
        ({"size_bytes": 10}, {"size_ratio": {"adapter": 1.0}}, "pass"),
        ({"size_bytes": 10}, {"size_ratio": {"adapter": 0.99}}, "regression"),
        ({"size_bytes": 0}, {"size_ratio": {"adapter": 1.0}}, "inconclusive"),  # a base of 0
        ({"tokens_per_second": None}, {"speed_ratio": {"adapter": 1.0}}, "inconclusive"),
        ({"tokens_per_second": 0.0}, {"speed_ratio": {"adapter": 1.0}}, "inconclusive"),
        ({"tokens_per_second": 5.0}, {"speed_ratio": {"adapter": 1.0}}, "pass"),
        ({"tokens_per_second": 5.0}, {"speed_ratio": {"adapter": 1.1, "gguf_f16": 9.0}}, "regression"),
    ],
)
def test_costs_are_ratios_to_the_base(tmp_path, cost, settings, verdict):
    result = gated(tmp_path, right, right, config(**settings), cost=COST.model_copy(update=cost))
    assert result.verdict == verdict


@pytest.mark.parametrize("left, right_", [("gguf_q8_0", "merged_16bit"), ("merged_16bit", "gguf_q8_0")])
def test_a_format_with_other_log_probabilities_fails_before_its_scores_fall(tmp_path, left, right_):
    answers = {"merged_16bit": right, "gguf_q8_0": right}
    run = scored(tmp_path, "new", answers)
    path = tmp_path / "baseline.json"
    measured = {"left": left, "right": right_, "identical": 1.0, "token_agreement": 1.0, "n": 1, "mean_kl": 0.03}
    settings = config(divergence={"gguf_q8_0": 0.03, "gguf_f16": 0.0001})
    baseline.save(path, baseline.snapshot(run, settings), settings, confirm=lambda _: True)
    assert gate.run(run, settings, baseline_file=path).notes == [
        "the divergence of gguf_q8_0 was not measured (predict.fidelity_questions), and was not checked"
    ]
    comparison = storage.read_record(run.comparison_json, Comparison)
    storage.write_json(run.comparison_json, comparison.model_copy(update={"fidelity": [measured]}))
    assert gate.run(run, settings, baseline_file=path).verdict == "pass", "on the limit"
    result = gate.run(run, config(divergence={"gguf_q8_0": 0.029}), baseline_file=path)
    assert result.verdict == "regression"
    assert "mean divergence from merged_16bit 0.03 nats, at most 0.029 nats wanted" in result.reason


@pytest.mark.parametrize(
    "answer, code, verdict",
    [
        (right_but(30, {"text": "x", "finish_reason": "length"}), "runaway", "regression"),
        (right_but(60, {"text": "x", "finish_reason": "length"}), "runaway", "pass"),
        (right_but(60, FAILED), "unscored", "regression"),
        (untuned, "adapter_without_effect", "regression"),
    ],
)
def test_alarms_have_limits(tmp_path, answer, code, verdict):
    found = checks(gated(tmp_path, answer, answer), "alarm")
    assert found[f"alarm/adapter/{code}"].verdict == verdict


# ------------------------------------------------------------------------------------------------------------- the verbs


def invoke(*arguments):
    return CliRunner().invoke(cli.app, list(arguments))


def test_the_verbs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    few = ["--set", "gate.size_ratio={}", "--set", "compare.resamples=200"]
    for name, answer in (("good", right), ("poor", right_but(5))):
        scored(Path(), name, {"adapter": answer})
    assert invoke("gate", "--run", "good").exit_code == 2
    assert invoke("baseline", "save", "--run", "good", *few).exit_code == 0
    assert "run good" in invoke("baseline", "show").output
    assert invoke("gate", "--run", "good", *few).exit_code == 0
    failed = invoke("gate", "--run", "poor", *few)
    assert (
        failed.exit_code == 1
        and "gate: regression: baseline/adapter/" in failed.output
        and "::error" not in failed.output
    )
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert "\n::error title=quality gate" in invoke("gate", "--run", "poor", *few).output
    assert "exact_match_normalized: 100% -> 80%" in invoke("baseline", "diff", "--run", "poor", *few).output
    twin = invoke("baseline", "save", "poor", "--run", "poor", *few)
    assert twin.exit_code == 2 and "runs poor and poor are one training" in twin.output
    refused = invoke("baseline", "save", "--run", "poor", *few)
    assert refused.exit_code == 2 and "run good" in invoke("baseline", "show").output
    lowered = invoke("baseline", "save", "--run", "poor", "--force", *few)
    assert "exact_match_normalized was 1.000 in a baseline before: \u221220 points since" in lowered.output
    still = invoke("gate", "--run", "poor", *few)
    assert still.exit_code == 1 and "best/adapter/" in still.output and "--force --forget-best" in still.output
    assert invoke("baseline", "save", "--run", "poor", "--force", "--forget-best", *few).exit_code == 0
    assert invoke("gate", "--run", "poor", *few).exit_code == 0
    untrained = invoke("gate", "--run", "poor", *few, "--must-improve")
    assert untrained.exit_code == 0 and "must_improve" not in untrained.output, (
        "it is better than base, which says nothing"
    )
    other = invoke("gate", "--run", "poor", *few, "--baseline", "elsewhere.json")
    assert other.exit_code == 2


def test_a_report_shows_the_verdict_on_its_own_results_only(tmp_path):
    run = scored(tmp_path, "r", {"adapter": right})
    baseline.save(tmp_path / "b.json", baseline.snapshot(run, CONFIG), CONFIG, confirm=lambda _: True)
    gate.run(run, CONFIG, baseline_file=tmp_path / "b.json")
    assert "Gate: passed." in report.run(run, CONFIG).read_text()
    worse = scored(tmp_path, "r", {"adapter": right_but(3)})
    page = report.run(worse, CONFIG).read_text()
    assert "Gate: out of date." in page and "Gate: passed." not in page


def test_results_that_do_not_belong_together_are_not_combined(tmp_path):
    run = scored(tmp_path, "r", {"adapter": right})
    baseline.save(tmp_path / "b.json", baseline.snapshot(run, CONFIG), CONFIG, confirm=lambda _: True)
    readers = [lambda: report.run(run, CONFIG), lambda: gate.run(run, CONFIG, baseline_file=tmp_path / "b.json")]
    make(tmp_path, {"base": untuned, "adapter": right_but(3)}, name="r", asked=MANY)
    for read in readers:
        with pytest.raises(
            ArtifactError, match="scored from other answers than those beside it; run harness score and compare again"
        ):
            read()
    score.run(run, CONFIG)
    for read in readers:
        with pytest.raises(
            ArtifactError, match="does not match the present scores of adapter; run harness compare again"
        ):
            read()
    compare.run(run, CONFIG)
    assert "Gate" not in report.run(run, CONFIG).read_text()
    assert gate.run(run, CONFIG, baseline_file=tmp_path / "b.json").verdict == "regression"
    storage.write_json(
        run.split_json, storage.read_record(run.split_json, SplitManifest).model_copy(update={"split_id": "another"})
    )
    with pytest.raises(
        ArtifactError, match="is not of the present split; run harness predict, score and compare again"
    ):
        report.run(run, CONFIG)


def test_a_difference_of_two_that_are_not_comparable_is_refused(tmp_path):
    old = baseline.snapshot(scored(tmp_path, "old", {"adapter": right}), config())
    with pytest.raises(IncomparableError, match="prompts"):
        differences.difference(old, old.model_copy(update={"prompts_sha256": "0"}), config())


@pytest.mark.slow  # its times need a machine without other work
def test_the_gate_alone_ends_within_three_seconds(tmp_path):
    """CPU time, since the machine may be busy; all seven variants of 360 questions."""
    formats = ["adapter", "merged_16bit", "merged_4bit", "gguf_f16", "gguf_q8_0", "gguf_q4_k_m"]
    run = scored(tmp_path, "tiny", dict.fromkeys(formats, right_but(3)), asked=questions(n_groups=120, size=3))
    baseline.save(tmp_path / "reports/baseline.json", baseline.snapshot(run, CONFIG), CONFIG, confirm=lambda _: True)
    before = os.times()
    command = [sys.executable, "-m", "harness", "gate", "--set", "gate.size_ratio={}"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent.parent.parent)},
    )
    after = os.times()
    assert done.returncode == 0, done.stdout + done.stderr
    assert after.children_user + after.children_system - before.children_user - before.children_system < 3
