"""Shared by the tests of injected faults: the models and files they use, and how a fault is injected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import storage
from harness.errors import HarnessError
from harness.prediction import jobs
from harness.prompt import Prompter, load_tokenizer
from harness.records import Comparison, Prediction, Question, SplitManifest
from harness.stages import compare, predict, score
from tests.helpers import scored_run, small_run
from tests.helpers.models import CORPUS

LIMIT = 80
"""Tokens: more than any sentence that the model knows by heart."""


@dataclass
class Bench:
    """What the checks work on."""

    root: Path
    patch: pytest.MonkeyPatch
    model: Path
    f16: Path
    """The model as GGUF."""
    zero: Path
    """An adapter that does nothing."""
    adapter: Path

    def folder(self) -> Path:
        """A new, empty folder."""
        path = self.root / str(len(list(self.root.iterdir())))
        path.mkdir()
        return path

    def prompts(self) -> list[list[int]]:
        """Beginnings of the model's sentences, of 10 to 16 tokens: enough for the model to complete them."""
        prompter = Prompter(load_tokenizer(self.model), "{question}")
        return [prompter.ids(sentence)[: 10 + i] for i, sentence in enumerate(CORPUS)]


Step = Callable[[Bench], object]


def caught(*plants: tuple[Step, str]) -> Callable[[Step], Callable[..., None]]:
    """Makes a test of a check, which must pass without a fault and fail with each (function that injects the fault, regular expression of the failure)."""

    def test_of(check: Step) -> Callable[..., None]:
        def test(files: dict[str, Path], tmp_path: Path) -> None:
            for plant, said in ((lambda _: None, None), *plants):
                with pytest.MonkeyPatch.context() as patch, torch.enable_grad():
                    bench = Bench(tmp_path, patch, **files)
                    plant(bench)
                    if said is None:
                        check(bench)
                        continue
                    with pytest.raises((AssertionError, HarnessError, ZeroDivisionError), match=said):
                        check(bench)

        return test

    return test_of


def compared(bench: Bench, answers: dict[str, list[Any]], **changes: Any) -> Comparison:
    """The comparison of these answers (texts, or fields of predictions), the same number from every variant."""
    asked = scored_run.questions(n_groups=len(answers["base"]), size=1)
    by_id = {name: {q.id: answer for q, answer in zip(asked, rows, strict=True)} for name, rows in answers.items()}
    given: dict[str, Callable[[Question], Any]] = {
        name: lambda q, rows=rows: rows[q.id] for name, rows in by_id.items()
    }
    run = scored_run.make(bench.folder(), given, asked=asked, **changes)
    score.run(run, scored_run.CONFIG)
    return compare.run(run, scored_run.CONFIG)


def alarms(comparison: Comparison) -> list[str]:
    return [alarm.code for alarm in comparison.alarms]


def job(bench: Bench, model: Path, root: Path, variant: str = "base", **sections: Any) -> jobs.Job:
    """The job of a variant in a run folder below `root`."""
    run = small_run.split(root)
    split = storage.read_record(run.split_json, SplitManifest)
    return next(jobs.jobs(run, small_run.config(model, **sections), split.split_id, small_run.questions(), [variant]))


def answered(made: jobs.Job) -> list[dict[str, Any]]:
    """What a job answers in this process, but for the time it took."""
    with torch.no_grad():
        predict.answer(made)
    return [p.model_dump(exclude={"seconds"}) for p in storage.iter_records(made.lines, Prediction)]
