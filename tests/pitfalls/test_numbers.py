"""Faults of metrics, statistics, scores, the gate and the disk."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from harness import cli, storage
from harness.analysis import alarms as alarms_module
from harness.analysis import resampling, statistics
from harness.analysis.resampling import Totals
from harness.gating import limits, noninferiority
from harness.metrics import base as metrics_base
from harness.metrics import match, normalize, rouge, text
from harness.records import Question, ScoreManifest
from harness.stages import gate, score
from harness.storage import RunFolder, atomic
from tests.helpers import golden_metrics, scored_run
from tests.pitfalls.faults import Bench, Step, caught, compared


def normalise_as_squad_does(bench: Bench) -> None:
    def normalised(answer: str) -> str:
        kept = "".join(c for c in answer.lower() if c.isalnum() or c.isspace())
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())

    bench.patch.setattr(normalize, "tokens", lambda answer, style: tuple(normalised(answer).split()))


@caught((normalise_as_squad_does, "is taken for"))
def test_normalisation_eats_law(bench: Bench) -> None:
    for left, right in golden_metrics.LEGAL["must_differ"]:
        for metric in (match.ExactMatchNormalized("legal"), match.TokenF1("legal")):
            assert metric.score_pair(left, right) < 1, f"{left!r} is taken for {right!r}"


def f1_of_sets(bench: Bench) -> None:
    bench.patch.setattr(match, "multiset_f1", lambda left, right: metrics_base.multiset_f1(set(left), set(right)))


@caught((f1_of_sets, "1.0 is not 0.5"))
def test_set_f1(bench: Bench) -> None:
    cases = [
        ("right right right", "right", 0.5),
        ("right", "right right right", 0.5),
        ("president of india", "prime minister of india", 4 / 7),
    ]
    for prediction, reference, expected in cases:
        found = match.TokenF1().score_one(prediction, [reference])
        assert found == pytest.approx(expected), f"{found} is not {expected}"


def stem_by_default(bench: Bench) -> None:
    bench.patch.setattr(rouge.Rouge.__init__, "__defaults__", (True,))


def tokenise_ascii_only(bench: Bench) -> None:
    bench.patch.setattr(rouge, "words", lambda answer: text.ASCII_WORD.findall(answer.lower()))


def sign_without_the_stemmer(bench: Bench) -> None:
    bench.patch.setattr(rouge.Rouge, "signature", property(lambda self: f"{self.name}|v:{self.version}"))


@caught(
    (stem_by_default, "stemmed: 0.769"),
    (tokenise_ascii_only, "other than rouge_score's or the hand-made figure"),
    (sign_without_the_stemmer, "one signature for two metrics"),
)
def test_rouge_variants(bench: Bench) -> None:
    reference, prediction, _, _, unstemmed = next(
        case for case in golden_metrics.ROUGE if case[1].startswith("Presidents")
    )
    try:
        found = rouge.Rouge1().score_one(prediction, [reference])
        assert found == pytest.approx(unstemmed), f"stemmed: {found}"
        for reference, prediction, kind, stemmer, expected in golden_metrics.ROUGE:
            found = golden_metrics.ROUGE_CLASSES[kind](stemmer=stemmer).score_one(prediction, [reference])
            assert found == pytest.approx(expected, abs=1e-12), (
                f"{kind} {found}, other than rouge_score's or the hand-made figure"
            )
    finally:
        rouge._scores.cache_clear()
    signatures = {rouge.Rouge1(stemmer).signature for stemmer in (False, True)}
    assert len(signatures) == 2, "one signature for two metrics"
    fields = rouge.Rouge1().signature
    assert "stem:none" in fields and "tok:unicode-words" in fields and "lib:rouge_score-" in fields


# ---------------------------------------------------------------------------------------------------------- statistics


def divide_by_sqrt_b(bench: Bench) -> None:
    def narrow(totals: Totals, *, resamples: int, seed: int) -> Any:
        return totals.mean + (
            resampling.bootstrap_means(totals, resamples=resamples, seed=seed) - totals.mean
        ) / np.sqrt(resamples)

    bench.patch.setattr(statistics, "bootstrap_means", narrow)


def draw_half_as_many(bench: Bench) -> None:
    def half(totals: Totals, *, resamples: int, seed: int) -> Any:
        n_groups = len(totals.sums)
        drawn = np.random.default_rng(seed).integers(0, n_groups, (resamples, n_groups // 2))
        return totals.sums[drawn].sum(axis=1) / totals.counts[drawn].sum(axis=1)

    bench.patch.setattr(statistics, "bootstrap_means", half)


def count_wins_as_ties(bench: Bench) -> None:
    paired = statistics.paired_differences

    def tied(*arguments: Any, **options: Any) -> Any:
        return [replace(d, wins=0, ties=d.wins + d.ties) for d in paired(*arguments, **options)]

    bench.patch.setattr(statistics, "paired_differences", tied)


@caught(
    (divide_by_sqrt_b, r"coverage 0\.[0-8].*; standard error of 1000 resamples"),
    (draw_half_as_many, r"coverage (0\.9[89]|1\.0).*; standard error of 1000 resamples"),
    (count_wins_as_ties, r"wins, losses, ties: \(0, 3, 47\)"),
)
def test_bootstrap(bench: Bench) -> None:
    rng = np.random.default_rng(0)
    hits, datasets = 0, 400
    for seed in range(datasets):
        values, groups = rng.random(120), np.repeat(np.arange(40), 3)
        ci95 = statistics.mean_intervals(values, groups, resamples=200, seed=seed)[0].ci95
        hits += ci95 is not None and ci95[0] <= 0.5 <= ci95[1]
    totals = Totals.of(rng.random(240), np.repeat(np.arange(60), 4))
    expected = resampling.cluster_se(totals)[0] * np.sqrt(59 / 60)
    for resamples in (1000, 4000):
        found = statistics.bootstrap_means(totals, resamples=resamples, seed=0)[:, 0].std(ddof=1)
        said = (
            f"coverage {hits / datasets:.3f}; standard error of {resamples} resamples {found}, closed form {expected}"
        )
        assert found == pytest.approx(expected, rel=4 / np.sqrt(2 * resamples) + 0.02), said
    assert 0.92 <= hits / datasets <= 0.98, f"coverage {hits / datasets:.3f}"
    left, right = np.repeat([1.0, 0.0, 1.0], [10, 3, 37]), np.repeat([0.0, 1.0, 1.0], [10, 3, 37])
    d = statistics.paired_differences(left, right, np.arange(50), resamples=100, seed=0)[0]
    assert (d.wins, d.losses, d.ties) == (10, 3, 37), f"wins, losses, ties: {(d.wins, d.losses, d.ties)}"


def count_only_what_exceeds(bench: Bench) -> None:
    def strictly(totals: Totals, *, flips: int, seed: int) -> Any:
        return np.full(totals.sums.shape[1], 1 / (1 + flips))

    bench.patch.setattr(statistics, "sign_flip_p", strictly)


def judge_by_the_sign(bench: Bench) -> None:
    bench.patch.setattr(statistics, "verdict", lambda delta, *_, **__: "better" if delta >= 0 else "worse")


@caught(
    (count_only_what_exceeds, "identical answers have p = 0.00"), (judge_by_the_sign, "identical answers are better")
)
def test_a_against_a(bench: Bench) -> None:
    answers = [q.answer if q.row % 3 else "nothing" for q in scored_run.questions(n_groups=30, size=1)]
    for pair in compared(bench, {"base": answers, "adapter": answers}).pairs:
        assert pair.p == 1 or not pair.n, f"identical answers have p = {pair.p}"
        assert pair.verdict == "identical" or not pair.n, f"identical answers are {pair.verdict}"


@caught(
    (lambda b: b.patch.setattr(statistics, "RARE", 0), "0 of 408 lies in .0.0, 0.0."),
    (lambda b: b.patch.setattr(statistics, "wilson", lambda rate, n, **_: (rate, rate)), "0 of 408 lies in .0.0, 0.0."),
)
def test_interval_of_width_0(bench: Bench) -> None:
    for value in (0.0, 1.0):
        ci95 = statistics.mean_intervals(np.full(408, value), np.repeat(np.arange(102), 4), resamples=200, seed=0)[
            0
        ].ci95
        assert ci95 is not None and ci95[1] - ci95[0] > 0.005, f"{value:.0f} of 408 lies in {ci95}"


# ---------------------------------------------------------------------------------------------------- gate, storage, score


def judged(change: Callable[[Callable[..., str], Any], str]) -> Step:
    """Replaces the gate's decision function by `change`, called with the original and (delta, ci95, p, margin)."""

    def plant(bench: Bench) -> None:
        judge = noninferiority.judge
        bench.patch.setattr(noninferiority, "judge", lambda *case, **_: change(judge, case))

    return plant


def divide_by_the_base(bench: Bench) -> None:
    bench.patch.setattr(
        limits, "ratio", lambda variant, base, cost: getattr(variant.cost, cost) / getattr(base.cost, cost)
    )


def round_to_the_floor(bench: Bench) -> None:
    limit = limits.check
    bench.patch.setattr(
        limits,
        "check",
        lambda kind, v, what, value, floor, **o: limit(kind, v, what, value and round(value, 2), floor, **o),
    )


@caught(
    (divide_by_the_base, "division by zero"),
    (round_to_the_floor, "94.6% of 95% wanted: pass"),
    (
        judged(lambda judge, case: "regression" if case[0] is not None and abs(case[0]) > case[3] else judge(*case)),
        "improved: regression",
    ),
    (judged(lambda judge, case: "pass" if case[0] is None else judge(*case)), "all errors: pass"),
    (
        judged(lambda judge, case: "regression" if case[0] is not None and case[0] <= -case[3] else judge(*case)),
        "on the margin: regression",
    ),
    (
        lambda b: b.patch.setattr(gate, "overall", lambda checks: min((c.verdict for c in checks), default="pass")),
        "empty: pass",
    ),
)
def test_gate_arithmetic(bench: Bench) -> None:
    zeros, ones, groups = np.zeros(300), np.ones(300), np.arange(300)
    loss = np.where(np.arange(300) < 6, 0.0, 1.0)
    table = {
        "base of 0": (zeros, zeros, 0.02, "pass"),
        "improved": (zeros, ones, 0.02, "improvement"),
        "lost": (ones, zeros, 0.02, "regression"),
        "all errors": (ones, np.full(300, np.nan), 0.02, "regression"),
    }
    for case, (before, after, margin, expected) in table.items():
        column = noninferiority.Column(before, after, margin)
        verdict = noninferiority.outcomes([column], groups, resamples=200, seed=0)[0].verdict
        assert verdict == expected, f"{case}: {verdict}"
    on_the_margin = noninferiority.judge(float(loss.mean()) - 1, (-0.02, -0.02), 0.001, 0.02)
    assert on_the_margin == "pass", f"on the margin: {on_the_margin}"
    assert gate.overall([]) == "incomparable", f"empty: {gate.overall([])}"
    floor = limits.check("floor", "adapter", "exact_match", 0.946, 0.95, at_least=True, unknown="regression").verdict
    assert floor == "regression", f"94.6% of 95% wanted: {floor}"
    cost: Any = SimpleNamespace(cost=scored_run.COST)
    empty: Any = SimpleNamespace(cost=scored_run.COST.model_copy(update={"size_bytes": 0}))
    assert limits.ratio(cost, empty, "size_bytes") is None


@caught(
    (
        lambda b: b.patch.setattr(atomic, "storage_errors", lambda path: suppress(OSError)),
        "exit code 0|jsonl: is missing",
    )
)
def test_save_failure(bench: Bench) -> None:
    folder = bench.folder()
    rows = [
        {"question": f"What is {word} about?", "answer": word[::-1]}
        for word in "speech trade property elections worship taxation citizenship emergency language courts services tribunals".split()
    ]
    (folder / "qa.json").write_text(json.dumps(rows))
    replaced = os.replace

    def read_only(source: Any, target: Any) -> None:
        if "split" in str(target):
            raise OSError(errno.EROFS, "Read-only file system", str(target))
        replaced(source, target)

    with pytest.MonkeyPatch.context() as disk:
        disk.chdir(folder)
        disk.setattr(os, "replace", read_only)
        result = CliRunner().invoke(cli.app, ["split", "--qa", "qa.json"])
    assert result.exit_code == 2, f"exit code {result.exit_code}"
    assert "read-only file system" in result.stderr.lower() and "runs/tiny/split" in result.stderr
    assert not RunFolder("tiny", folder).split_json.exists()


def take_failures_for_answers(bench: Bench) -> None:
    matched = score._matched

    def all_answered(path: Path, questions: list[Question]) -> Any:
        return [(q, p.model_copy(update={"finish_reason": "stop"})) for q, p in matched(path, questions)]

    bench.patch.setattr(score, "_matched", all_answered)


def fill_gaps_with_0(bench: Bench) -> None:
    intervals = statistics.mean_intervals
    bench.patch.setattr(statistics, "mean_intervals", lambda values, *a, **o: intervals(np.nan_to_num(values), *a, **o))


@caught((take_failures_for_answers, "1 failed of 36: mean 0.97"), (fill_gaps_with_0, "1 failed of 36: mean 0.97"))
def test_failures_scored_0(bench: Bench) -> None:
    failed = {"finish_reason": "error", "error": "out of memory"}
    for n_failed, expected in ((1, (1.0, 35, 1)), (36, (None, 0, 36))):
        run = scored_run.make(bench.folder(), {"base": lambda q, n=n_failed: failed if q.row <= n else q.answer})
        score.run(run, scored_run.CONFIG)
        found = storage.read_record(run.score("base")[1], ScoreManifest).metrics["exact_match"]
        assert (found.value, found.n, found.n_unscored) == expected, f"{n_failed} failed of 36: mean {found.value}"


@caught((lambda b: b.patch.setattr(alarms_module, "commonest", lambda answers: ("", 0.0)), "no alarm is raised"))
def test_constant_answers(bench: Bench) -> None:
    asked = scored_run.questions(n_groups=30, size=1)
    compared_run = compared(
        bench, {"base": [q.answer for q in asked], "adapter": ["Parliament"] * 25 + [q.answer for q in asked[25:]]}
    )
    assert [(alarm.code, alarm.variant) for alarm in compared_run.alarms] == [("constant_answers", "adapter")], (
        "no alarm is raised"
    )
