"""Weights & Biases: the training's curves and the evaluation, as runs of one group. W&B failing never fails a stage.

The evaluation is logged when it is compared, not when it is reported: a comparison is made once and rendered many times, and the report stays a
pure function of files. Imports wandb only when a run starts, and torch never.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
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

MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
"""What W&B takes as WANDB_MODE; the last two are its former names of offline and online."""
Table = tuple[list[Any], list[Any]]
"""Names of the columns, and rows."""


class WandbLog:
    """A W&B run that never raises: offline by default, online with a key, as WANDB_MODE says if it is set.

    Args:
        folder: where the run's files go.
        name: of the run; project: of the project; run_id: stable, so that a resumed training continues the same run.
        config: shown beside the curves; must hold no secret.
        job_type: distinguishes the runs of a group.
        enabled: false logs nothing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        project: str,
        name: str,
        group: str,
        run_id: str,
        config: dict[str, Any],
        job_type: str = "train",
        enabled: bool = True,
    ):
        mode: Any = wandb_mode(enabled=enabled)
        self.facts: dict[str, Any] = {"mode": mode, "run_id": run_id, "url": None, "error": None}
        self._run: Any = None
        if mode == "disabled":
            return
        os.environ.setdefault("WANDB_SILENT", "true")
        # Tables are kept here until they are sent: in the run's folder, not in the user's.
        os.environ.setdefault("WANDB_DATA_DIR", str((folder / "wandb").resolve()))

        def start() -> None:
            import wandb

            folder.mkdir(parents=True, exist_ok=True)
            settings = wandb.Settings(
                console="off",
                disable_git=True,
                save_code=False,
                init_timeout=30,
                host="",
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            )
            self._run = wandb.init(
                dir=folder,
                project=project,
                name=name,
                group=group,
                job_type=job_type,
                id=run_id,
                resume="allow",
                mode=mode,
                config=config,
                settings=settings,
            )
            self.facts["url"] = self._run.url if mode == "online" else None

        self._try(start)

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        """Logs one row."""
        self._send(lambda run: run.log(values, step=step))

    def summarize(self, values: dict[str, Any]) -> None:
        """Sets values of the summary, which W&B shows as the run's result."""
        self._send(lambda run: run.summary.update(values))

    def log_tables(self, tables: dict[str, Table]) -> None:
        """Logs tables under their names."""

        def put(run: Any) -> None:
            import wandb

            run.log({name: wandb.Table(columns=columns, data=rows) for name, (columns, rows) in tables.items()})

        self._send(put)

    def finish(self) -> dict[str, Any]:
        """Ends the run; returns what happened (`mode`, `run_id`, `url`, `error`)."""
        self._send(lambda run: run.finish())
        return self.facts

    def _send(self, action: Callable[[Any], Any]) -> None:
        if self._run is not None:
            self._try(lambda: action(self._run))

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # W&B must not stop a stage; its message might hold a key
            self._run = None
            self.facts["error"] = type(error).__name__


def wandb_mode(*, enabled: bool = True) -> str:
    """`disabled`, `offline` or `online`; or WANDB_MODE if it is set, even to a mode that W&B does not know."""
    return (
        (os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline"))
        if enabled
        else "disabled"
    )


def problem(facts: Mapping[str, Any]) -> str | None:
    """What went wrong with a run, in a line, from what `WandbLog.finish` returned; None if nothing did."""
    if not facts["error"]:
        return None
    if facts["mode"] not in MODES:
        return f"W&B: WANDB_MODE is {facts['mode']!r}; set it to online, offline or disabled"
    return f"W&B: failed ({facts['error']})"


# --------------------------------------------------------------------------------------------------------- evaluation


def log_evaluation(run: RunFolder, config: Config, comparison: Comparison) -> str | None:
    """Logs a comparison into the group of the run's training, once; returns what was done, in a line, or None if W&B is off.

    The W&B run is named by a hash of the comparison and of its answers, so that the same comparison is never two runs. One that was logged offline
    is logged again, under the same name, when there is a key.
    """
    mode, run_id = wandb_mode(enabled=config.wandb.enabled), f"{run.name}-eval-{_identity(run, comparison)[:8]}"
    if mode == "disabled":
        return None
    if find_spec("wandb") is None:
        return "W&B: not installed, the evaluation was not logged"
    logged = run.path / "wandb" / "evaluation.json"
    if _logged_before(logged, run_id, mode):
        return f"W&B: this evaluation is logged already ({mode} run {run_id})"
    wandb = WandbLog(
        run.path,
        project=config.wandb.project,
        name=f"{run.name} evaluation",
        group=run.name,
        run_id=run_id,
        job_type="eval",
        config={"split_id": comparison.split_id, "questions": comparison.n, "groups": comparison.n_groups},
    )
    wandb.log_tables(
        {
            "eval/variants": variants_table(comparison),
            "eval/pairs": pairs_table(comparison),
            "eval/questions": questions_table(run, comparison),
        }
    )
    wandb.summarize(summary(comparison))
    facts = wandb.finish()
    if failure := problem(facts):
        return f"{failure}, the evaluation was not logged"
    with suppress(HarnessError):  # unwritten, it is logged again the next time
        storage.write_json(logged, facts)
    return f"W&B: evaluation logged, {facts['url'] or f'{mode} run {run_id}'}"


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
    """Of the numbers and the answers behind them; not of when and where they were made."""
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
