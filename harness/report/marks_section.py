"""The report's section on people's marks."""

from __future__ import annotations

from typing import Any

from harness.records import JudgeResult, MarksResult
from harness.registry import metric_label
from harness.report.headline import p_value, percent, points
from harness.report.sections import NONE
from harness.variants import label as variant_label


def human(result: MarksResult) -> dict[str, Any]:
    """Variant, share marked right, interval, n."""
    rows = [
        [
            variant_label(v),
            percent(m.value),
            f"{percent(m.ci95[0])} to {percent(m.ci95[1])}" if m.ci95 else NONE,
            f"{m.n:,}",
        ]
        for v, m in result.human.items()
    ]
    return _table(["Variant", "Marked right", "95% interval", "Answers marked"], rows, 1)


def pairs(result: MarksResult) -> dict[str, Any]:
    """Variant against variant, by the marks."""
    rows = [
        [
            f"{variant_label(p.left)} against {variant_label(p.right)}",
            NONE if p.delta is None else points(p.delta),
            f"{points(p.ci95[0])} to {points(p.ci95[1])}" if p.ci95 else NONE,
            f"{p.n:,}",
            p.verdict,
        ]
        for p in result.pairs
    ]
    return _table(["Pair", "Points", "95% interval", "Questions", "Verdict"], rows, 1)


def votes(result: MarksResult) -> dict[str, Any]:
    """Blind votes, pair by pair."""
    rows = [
        [
            variant_label(v.left),
            f"{v.for_left:,}",
            variant_label(v.right),
            f"{v.for_right:,}",
            f"{v.neither:,}",
            p_value(v.p),
        ]
        for v in result.preferences
    ]
    return _table(["One", "prefer it", "The other", "prefer that", "Neither", "p"], rows, 3)


def agreements(result: MarksResult) -> dict[str, Any]:
    """How far each metric agrees with people, the best first."""
    ranked = sorted(result.agreements, key=lambda a: -(a.kappa if a.kappa is not None else -2.0))
    rows = [
        [
            metric_label(a.metric),
            NONE if a.kappa is None else f"{a.kappa:.2f}",
            f"{a.ci95[0]:.2f} to {a.ci95[1]:.2f}" if a.ci95 else NONE,
            percent(a.agreement),
            f"{a.n:,}",
        ]
        for a in ranked
    ]
    return _table(["Metric", "Cohen's kappa", "95% interval", "Same verdict", "Answers"], rows, 1)


def judge(result: JudgeResult) -> str:
    """A judge model's preference and its agreement with people; not shown without people's verdicts on the same answers."""
    who = result.signature.partition("model:")[2].partition("|")[0]
    if result.kappa is None:
        return (
            f"The judge {who} has compared {variant_label(result.left)} with {variant_label(result.right)}. What it says is not shown: nobody has yet"
            " marked or voted on enough of the same answers to measure it."
        )
    span = f" (95% interval {result.kappa_ci95[0]:.2f} to {result.kappa_ci95[1]:.2f})" if result.kappa_ci95 else ""
    difference = f" ({points(result.ci95[0])} to {points(result.ci95[1])} points)" if result.ci95 else ""
    return (
        f"The judge {who}, asked in both orders, prefers {variant_label(result.left)} on {result.for_left:,} of {result.n:,} questions and"
        f" {variant_label(result.right)} on {result.for_right:,}{difference}; on {result.swayed:,} it preferred whichever stood in the same place."
        f" With people it agrees at Cohen's kappa {result.kappa:.2f}{span} on {result.n_people:,} questions: read it as that, and no more."
    )


def _table(columns: list[str], rows: list[list[str]], numeric_from: int) -> dict[str, Any]:
    return {"columns": columns, "numeric": [at >= numeric_from for at in range(len(columns))], "rows": rows}
