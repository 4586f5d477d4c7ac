"""The Python door: results as tables, and models of your own program judged like any other.

import harness as qh

run = qh.load("tiny")                                                # a finished run
run.scores().groupby(["variant", "metric"])["score"].mean()
qh.evaluate({"mine": (model, tokenizer)}, "test.jsonl")              # a loaded model
qh.evaluate({"mine": lambda texts: [...]}, "test.jsonl")             # any function list[str] -> list[str]
qh.evaluate({"mine": "adapter:lora/", "server": "http://host/v1#m"}, "test.jsonl")
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import storage
from harness.errors import ArtifactError
from harness.records import Comparison
from harness.report import tables
from harness.storage import RunFolder

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run. Tables are documented, column by column, in `harness.report.tables`."""

    folder: RunFolder

    def questions(self) -> pd.DataFrame:
        """One row a held-out question."""
        return tables.questions(self.folder)

    def answers(self) -> pd.DataFrame:
        """One row a variant and question."""
        return tables.answers(self.folder)

    def scores(self) -> pd.DataFrame:
        """One row a variant, question and metric."""
        return tables.scores(self.folder)

    def pairs(self) -> pd.DataFrame:
        """One row a compared pair and metric."""
        return tables.pairs(self.folder)

    def history(self) -> pd.DataFrame:
        """One row a logged step of the training; empty without one."""
        return tables.history(self.folder)

    def report(self) -> Path:
        """The path of report.html."""
        return self.folder.report_html

    def _repr_html_(self) -> str:
        from harness.report import headline, leaderboard

        comparison = storage.read_record(self.folder.comparison_json, Comparison)
        board = leaderboard.leaderboard(comparison)
        shown = [i for i, column in enumerate(board["columns"]) if column["metric"]][:4]
        head = "".join(f"<th>{escape(board['columns'][i]['label'])}</th>" for i in shown)
        rows = "".join(
            f"<tr><th>{escape(row['label'])}</th>{''.join('<td>' + escape(row['cells'][i]['text']) + '</td>' for i in shown)}</tr>"
            for row in board["rows"]
        )
        alarms = "".join(f"<li>{escape(alarm.message)}</li>" for alarm in comparison.alarms)
        verdict = escape(headline.headline(comparison).text)
        return f"<p><b>{verdict}</b></p><table><tr><th></th>{head}</tr>{rows}</table><ul>{alarms}</ul>"


@contextmanager
def _printed() -> Iterator[None]:
    """Prints what the harness logs meanwhile."""
    logger, handler = logging.getLogger("harness"), logging.StreamHandler(sys.stdout)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a handler of the calling program would print each line again
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def load(run: str, root: Path | str = ".") -> Run:
    """A run by its name, below `root`; ArtifactError if it was not compared."""
    folder = RunFolder(run, root)
    if not folder.comparison_json.exists():
        raise ArtifactError(
            "is missing", "run harness compare, or harness evaluate, first", file=folder.comparison_json
        )
    return Run(folder)


def evaluate(
    models: Mapping[str, str | Callable[[list[str]], list[str]] | tuple[Any, Any]],
    test: str | Path,
    *,
    trained_on: str | Path | None = None,
    base: str | None = None,
    config: str = "evaluate",
    settings: list[str] | None = None,
    run: str = "evaluate",
    root: Path | str = ".",
    load_in_4bit: bool | None = None,
    few_shot: int | None = None,
    verbose: bool = True,
) -> Run:
    """Judges models on a test file and returns the finished run.

    Args:
        models: name -> WHERE as `harness evaluate` takes it, a function from prompts to answers, or (model, tokenizer), loaded. Functions and loaded
            models are asked again each time: a change in them cannot be detected.
        test: questions with reference answers.
        trained_on: what the models were trained on.
        few_shot: asks the base once more, with so many of those questions in front of each question.
        config: a config's name or file, as `--config`; `settings` as `--set`.
        run: of the run folder below `root`.
        verbose: prints what is being done; otherwise it goes to the logger `harness` alone.
    Raises:
        HarnessError: what cannot be used, in one line with the fix.
    """
    from harness.config import load as load_config
    from harness.stages import evaluate as stage

    named = [f"{name}={where}" for name, where in models.items() if isinstance(where, str)]
    objects = {name: found for name, found in models.items() if not isinstance(found, str)}
    plan = stage.configure(
        load_config(config, settings),
        str(test),
        named,
        trained_on=str(trained_on) if trained_on else None,
        base=base,
        load_in_4bit=load_in_4bit,
        few_shot=few_shot,
        objects=objects,
    )
    folder = RunFolder(run, root)
    with _printed() if verbose else nullcontext():
        for note in plan.notes:
            log.info(note)
        stage.run(folder, plan, objects=objects)
    return Run(folder)
