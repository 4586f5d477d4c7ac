"""A judge model in the gate, allowed only where its agreement with people was measured."""

from __future__ import annotations

from harness import storage
from harness.config import Gate
from harness.errors import ArtifactError, ConfigError
from harness.records import Comparison, GateCheck, GateVerdict, JudgeResult
from harness.report.headline import points
from harness.storage import RunFolder
from harness.variants import label as variant_label


def check(run: RunFolder, comparison: Comparison, gate: Gate) -> list[GateCheck]:
    """The judge's preference as a check: its left variant must not surely lose to its right one by more than the margin.

    Raises:
        ArtifactError: no judge has compared these answers; ConfigError: its Cohen's kappa with people is unknown or below `gate.judge_kappa`.
    """
    if not gate.judge:
        return []
    if not run.judge_json.exists():
        raise ArtifactError(
            "gate.judge is set, and no judge has compared this run's answers; this file is missing",
            f"run harness judge --model URL#NAME --run {run.name}, or leave gate.judge out",
            file=run.judge_json,
        )
    result = storage.read_record(run.judge_json, JudgeResult)
    if result.split_id != comparison.split_id:
        raise ArtifactError(
            "the judge compared answers to other questions",
            f"run harness judge --run {run.name} again",
            file=run.judge_json,
        )
    if result.kappa is None or result.kappa < gate.judge_kappa:
        agrees = "unknown" if result.kappa is None else f"{result.kappa:.2f} on {result.n_people:,} questions"
        raise ConfigError(
            f"gate.judge: the judge's agreement with people (Cohen's kappa) is {agrees}, and gate.judge_kappa asks for {gate.judge_kappa:g}",
            f"mark more answers (harness marks add --run {run.name}), use another judge, or leave gate.judge out",
        )
    return [_check(result, gate.margin)]


def _check(result: JudgeResult, margin: float) -> GateCheck:
    low, high = result.ci95 or (-1.0, 1.0)
    verdict: GateVerdict = "regression" if high < -margin else "pass" if low >= -margin else "inconclusive"
    left, right = (
        f"{variant_label(name)} in {count:,}"
        for name, count in ((result.left, result.for_left), (result.right, result.for_right))
    )
    return GateCheck(
        kind="judge",
        name=f"judge/{result.left}/{result.right}",
        variant=result.left,
        verdict=verdict,
        message=f"the judge prefers {left} and {right} of {result.n:,} questions (95% interval {points(low)} to {points(high)} points; kappa with people {result.kappa:.2f})",
        limit=margin,
        delta=result.delta,
        ci95=result.ci95,
        p=result.p,
        n=result.n,
    )
