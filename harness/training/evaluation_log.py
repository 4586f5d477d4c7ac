"""The evaluation in a tracker: its tables, its numbers and the report's page, as a run of the training's group.

It is logged when it is compared, not when it is reported: a comparison is made once and rendered many times, and the report stays a pure function of
files. The page itself follows once it is rendered.
"""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness import storage
from harness.config import Config
from harness.errors import HarnessError
from harness.records import Comparison, Prediction, Question, Score
from harness.report import headline
from harness.storage import RunFolder
from harness.training.tracker import Start, Table, Tracker, chosen


def log_evaluation(run: RunFolder, config: Config, comparison: Comparison) -> str | None:
    """Logs a comparison into the group of the run's training, once; returns what was done, in a line, or None if tracking is off.

    The tracker's run is named by a hash of the comparison and of its answers, so that one comparison is never logged as two runs. A comparison that
    was logged offline is logged again, under the same name, once there is a key.
    """
    kind, run_id = chosen(config), _run_id(run, comparison)
    mode = kind.mode()
    if mode == "disabled":
        return None
    if find_spec(kind.package) is None:
        return f"{kind.label}: not installed, the evaluation was not logged"
    logged = run.path / config.tracking / "evaluation.json"
    if _logged_before(logged, run_id, mode):
        return f"{kind.label}: this evaluation is logged already ({mode} run {run_id})"
    tracker = _begin(kind, run, config, comparison)
    tracker.log_tables(
        {
            "eval/variants": variants_table(comparison),
            "eval/pairs": pairs_table(comparison),
            "eval/questions": questions_table(run, comparison),
        }
    )
    tracker.summarize(summary(comparison))
    facts = tracker.finish()
    if failure := tracker.problem():
        return f"{failure}, the evaluation was not logged"
    with suppress(HarnessError):  # unwritten, it is logged again the next time
        storage.write_json(logged, facts)
    return f"{kind.label}: evaluation logged, {facts['url'] or f'{mode} run {run_id}'}"


def log_page(run: RunFolder, config: Config, comparison: Comparison) -> str | None:
    """Adds the report's page to the run of a logged evaluation, as an artifact, once for each page; returns what was done, in a line, or None.

    None: tracking is off, this evaluation was not logged, its page is there already, or the tracker keeps no files.
    """
    kind, run_id = chosen(config), _run_id(run, comparison)
    folder = run.path / config.tracking
    mode, page = kind.mode(), run.report_html
    keeps_files = kind._log_file is not Tracker._log_file
    if (
        mode == "disabled"
        or not keeps_files
        or not page.is_file()
        or not _logged_before(folder / "evaluation.json", run_id, mode)
    ):
        return None
    sha256 = storage.sha256_file(page)
    if _logged_before(folder / "page.json", sha256, mode):
        return None
    tracker = _begin(kind, run, config, comparison)
    tracker.log_file(page, "report.html")
    tracker.finish()
    if failure := tracker.problem():
        return f"{failure}, the report's page was not logged"
    with suppress(HarnessError):
        storage.write_json(folder / "page.json", tracker.facts | {"run_id": sha256})
    return f"{kind.label}: the report's page is an artifact of {mode} run {run_id}"


def _begin(kind: type[Tracker], run: RunFolder, config: Config, comparison: Comparison) -> Tracker:
    return kind(
        Start(
            run.path,
            project=config.wandb.project,
            name=f"{run.name} evaluation",
            group=run.name,
            run_id=_run_id(run, comparison),
            job_type="eval",
            config={"split_id": comparison.split_id, "questions": comparison.n, "groups": comparison.n_groups},
        )
    )


def _run_id(run: RunFolder, comparison: Comparison) -> str:
    return f"{run.name}-eval-{_identity(run, comparison)[:8]}"


def summary(comparison: Comparison) -> dict[str, Any]:
    """`<variant>/<metric>` and `<variant>/<cost>` of every variant, the verdict's first sentence and the number of alarms."""
    values: dict[str, Any] = {"verdict": headline.headline(comparison).text, "alarms": len(comparison.alarms)}
    for variant, result in comparison.variants.items():
        measured = {metric: value.value for metric, value in result.metrics.items()}
        cost = {
            name: getattr(result.cost, name)
            for name in ("size_bytes", "tokens_per_second", "peak_memory_bytes", "seconds")
        }
        values |= {f"{variant}/{name}": value for name, value in (measured | cost).items() if value is not None}
    return values


def variants_table(comparison: Comparison) -> Table:
    """A row for each variant and metric: mean, 95% interval, scored and unscored questions, signature."""
    rows = [
        [variant, metric, value.value, *(value.ci95 or (None, None)), value.n, value.n_unscored, value.signature]
        for variant, result in comparison.variants.items()
        for metric, value in result.metrics.items()
    ]
    return ["variant", "metric", "mean", "ci95_low", "ci95_high", "n", "n_unscored", "signature"], rows


def pairs_table(comparison: Comparison) -> Table:
    """A row for each tested pair and metric: left minus right."""
    rows = [
        [
            p.left,
            p.right,
            p.metric,
            p.delta,
            *(p.ci95 or (None, None)),
            p.p,
            p.p_adjusted,
            p.verdict,
            p.n,
            p.wins,
            p.losses,
            p.ties,
        ]
        for p in comparison.pairs
    ]
    return [
        "left",
        "right",
        "metric",
        "delta",
        "ci95_low",
        "ci95_high",
        "p",
        "p_adjusted",
        "verdict",
        "n",
        "wins",
        "losses",
        "ties",
    ], rows


def questions_table(run: RunFolder, comparison: Comparison) -> Table:
    """A row for each held-out question: its reference, and each variant's answer with its score on the primary metric."""
    metric = headline.primary_metric(comparison) or ""
    columns: list[Any] = ["id", "question", "reference", "kind", "part", "nearest_train"]
    questions = storage.read_records(run.heldout_jsonl, Question)
    rows: list[list[Any]] = [[q.id, q.question, q.answer, q.kind, q.part, q.nearest_train] for q in questions]
    for variant in headline.variant_order(comparison):
        texts = {p.id: p.text for p in storage.iter_records(run.prediction(variant)[0], Prediction)}
        scores = {s.id: s.scores.get(metric) for s in storage.iter_records(run.score(variant)[0], Score)}
        columns += [variant, f"{variant} {metric}"]
        for row, question in zip(rows, questions, strict=True):
            row += [texts.get(question.id), scores.get(question.id)]
    return columns, rows


def _identity(run: RunFolder, comparison: Comparison) -> str:
    """Hash of the numbers and the answers behind them, without time and place."""
    files = [
        run.heldout_jsonl,
        *(file for v in sorted(comparison.variants) for file in (run.prediction(v)[0], run.score(v)[0])),
    ]
    return storage.sha256_json(
        [
            comparison.model_dump(mode="json", exclude={"provenance", "checksum"}),
            [storage.sha256_file(file) for file in files],
        ]
    )


def _logged_before(file: Path, run_id: str, mode: str) -> bool:
    try:
        facts = storage.read_json(file)
    except HarnessError:
        return False
    return isinstance(facts, dict) and (facts.get("run_id"), facts.get("mode")) == (run_id, mode)
