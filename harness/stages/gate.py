"""Gate: has this run become worse than the committed baseline?

Reads `reports/<run>/comparison.json`, `scores/`, the baseline and, for the examples, `predictions/` and `split/heldout.jsonl`; writes `gate.md`,
`junit.xml` and, last, `gate.json` beside the comparison. It is never cached: deciding takes a second, and a stale pass would be worse.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from harness import storage
from harness.config import Config, Gate
from harness.gating import baseline, judged, likeness, limits
from harness.gating.differences import against_base, against_baseline
from harness.records import (
    Baseline,
    Comparison,
    GateCheck,
    GateExample,
    GateResult,
    GateVerdict,
    Prediction,
)
from harness.report import gate_outputs
from harness.report.headline import variant_order
from harness.storage import RunFolder
from harness.variants import MERGED, UNTUNED

log = logging.getLogger(__name__)

EXAMPLES = 5
EXIT_CODES: dict[GateVerdict, int] = {
    "pass": 0,
    "improvement": 0,
    "inconclusive": 0,
    "regression": 1,
    "incomparable": 3,
}
STRICT_EXIT_CODE = 4


def run(
    run: RunFolder,
    config: Config,
    *,
    baseline_file: Path = baseline.DEFAULT,
    strict: bool = False,
    must_improve: bool = False,
    selection: str = "",
) -> GateResult:
    """Decides, and writes the decision in all its forms.

    Args:
        baseline_file: what to compare with.
        strict: inconclusive fails too; as `gate.strict` of the config.
        must_improve: every gated variant must be surely better than the run's base; as `gate.must_improve`.
        selection: the options that chose the run and its config, for the commands that the result names.

    Raises:
        ArtifactError: the baseline, the scores or the comparison are missing or damaged; ConfigError: a gated metric was not scored.
    """
    began = time.monotonic()
    for path in (run.gate_json, run.gate_md, run.junit_xml):
        path.unlink(missing_ok=True)
    old, new = baseline.read(baseline_file), baseline.snapshot(run, config)
    strict = strict or config.gate.strict
    comparison = storage.read_record(run.comparison_json, Comparison)
    order = variant_order(comparison)
    gated = config.gate.variants or sorted(
        old.variants, key=lambda variant: order.index(variant) if variant in order else len(order)
    )
    log.info(
        f"gate: {len(gated)} variants, {len(config.gate.metrics)} metrics, against run {old.run} of {old.saved} in {baseline_file}"
    )
    unlike = list(likeness.differs(old, new, gated, config.gate.metrics))
    must_improve = must_improve or config.gate.must_improve
    by_judge = judged.check(run, comparison, config.gate)
    checks = [] if unlike else by_judge + _checks(old, new, gated, comparison, config, must_improve=must_improve)
    verdict: GateVerdict = "incomparable" if unlike else overall(checks)
    result = GateResult(
        run=run.name,
        comparison_sha256=storage.results_sha256(comparison),
        verdict=verdict,
        reason=_reason(verdict, checks, unlike),
        hint=_hint(verdict, checks, selection or f"--run {run.name}", baseline_file),
        exit_code=STRICT_EXIT_CODE if strict and verdict == "inconclusive" else EXIT_CODES[verdict],
        strict=strict,
        baseline=baseline_file.as_posix(),
        baseline_run=old.run,
        baseline_commit=old.provenance.get("git", {}).get("commit"),
        checks=checks,
        differs=unlike,
        changes=likeness.changes(old, new),
        examples=_examples(run, old, new, checks),
        notes=_notes(new, gated, config.gate, comparison),
        seconds=round(time.monotonic() - began, 2),
    )
    _write(run, result)
    return result


def _write(run: RunFolder, result: GateResult) -> None:
    storage.write_text(run.gate_md, gate_outputs.markdown(result))
    storage.write_text(run.junit_xml, gate_outputs.junit(result))
    storage.write_json(run.gate_json, result)


def _checks(
    old: Baseline, new: Baseline, gated: list[str], comparison: Comparison, config: Config, *, must_improve: bool
) -> list[GateCheck]:
    improved = against_base(new, gated, comparison.primary, config) if must_improve else []
    return [*against_baseline(old, new, gated, config), *limits.checks(comparison, gated, config.gate), *improved]


def overall(checks: list[GateCheck]) -> GateVerdict:
    """The worst verdict of all checks; improvement only if nothing is worse than a pass. No check at all does not pass."""
    verdicts: list[GateVerdict] = [check.verdict for check in checks] or ["incomparable"]
    return min(verdicts, key=gate_outputs.WORST_FIRST.index)


# --------------------------------------------------------------------------------------------------------- in words


def _reason(verdict: GateVerdict, checks: list[GateCheck], unlike: list[str]) -> str:
    if verdict == "incomparable":
        return f"This run cannot be compared with the baseline: {'; '.join(unlike) or 'there is nothing to check'}."
    relevant = [check for check in checks if check.verdict == verdict]
    if verdict == "pass":
        return f"All {len(checks)} checks passed."
    # The largest loss first; among gains the largest gain.
    worst = (max if verdict == "improvement" else min)(
        relevant, key=lambda check: (check.kind == "kind", -1.0 if check.n == 0 else check.delta or 0.0)
    )
    rest = f"; {len(relevant) - 1} more" if len(relevant) > 1 else ""
    what = {
        "regression": "worse than allowed",
        "inconclusive": "whether it lost more than the margin is not decided",
        "improvement": "better than the baseline",
    }[verdict]
    return f"{worst.name}: {what}: {worst.message}{rest}."


def _notes(new: Baseline, gated: list[str], gate: Gate, comparison: Comparison) -> list[str]:
    """Checks that the user may expect and that could not be made."""
    notes = [
        f"{variant} is not in the baseline and was not gated"
        for variant in new.variants
        if variant not in (*gated, *UNTUNED)
    ]
    unheld = [variant for variant in gate.fidelity if variant in new.variants]
    if unheld and MERGED not in new.variants:
        notes.append(f"{MERGED} was not answered, so the fidelity of {', '.join(unheld)} was not checked")
    unmeasured = [
        variant
        for variant in gate.divergence
        if variant in new.variants and limits.divergence(comparison, variant) is None
    ]
    if unmeasured:
        notes.append(
            f"the divergence of {', '.join(unmeasured)} was not measured (predict.fidelity_questions), and was not checked"
        )
    return notes


def _hint(verdict: GateVerdict, checks: list[GateCheck], selection: str, path: Path) -> str:
    file = "" if path == baseline.DEFAULT else f" --baseline {path.as_posix()}"
    command = f"harness baseline save {selection}{file}"
    if verdict == "incomparable":
        return f"if the change is meant, renew the baseline: {command}"
    if verdict == "regression" and {check.kind for check in checks if check.verdict == "regression"} == {"best"}:
        return f"if what was lost since is meant, forget the best means: {command} --force --forget-best"
    return f"to hold it, raise the baseline: {command}" if verdict == "improvement" else ""


def _examples(run: RunFolder, old: Baseline, new: Baseline, checks: list[GateCheck]) -> list[GateExample]:
    """The questions with the largest losses on the check with the largest loss; none if nothing regressed or is inconclusive."""
    fell = [
        check
        for check in checks
        if check.verdict in ("regression", "inconclusive")
        and check.kind in ("baseline", "best", "kind", "fidelity")
        and (check.delta or 0) < 0
    ]
    if not fell:
        return []
    worst = min(fell, key=lambda check: (check.verdict != "regression", check.kind == "kind", check.delta))
    variant, metric = worst.variant, worst.metric or ""
    before = baseline.column(new, MERGED, metric) if worst.kind == "fidelity" else baseline.column(old, variant, metric)
    after = baseline.column(new, variant, metric)
    _, questions = storage.read_split(run)
    losses = sorted(
        (change, i)
        for i, change in enumerate((after - before).tolist())
        if change < 0 and worst.question_kind in (None, questions[i].kind)
    )[:EXAMPLES]
    wanted = {questions[i].id for _, i in losses}
    texts = {p.id: p.text for p in storage.iter_records(run.prediction(variant)[0], Prediction) if p.id in wanted}
    return [
        GateExample(
            id=questions[i].id,
            variant=variant,
            metric=metric,
            before=float(before[i]),
            after=float(after[i]),
            question=questions[i].question,
            expected=questions[i].answer,
            answer=texts.get(questions[i].id, ""),
        )
        for _, i in losses
    ]
