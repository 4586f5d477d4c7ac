"""Several processes share a variant's questions: the answers are those of one, and an interruption loses only what was in flight."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness import storage
from harness.backends import Completion, Execution
from harness.backends.replay import ReplayBackend
from harness.errors import ArtifactError
from harness.prediction.journal import Journal
from harness.prediction.runners import WorkerPool
from harness.records import Prediction, Question, SplitManifest
from harness.stages import predict
from harness.storage import RunFolder
from tests.helpers import small_run
from tests.helpers.answering import job, partial, register


@pytest.fixture(autouse=True)
def gradients_as_before() -> Iterator[None]:
    before = torch.is_grad_enabled()
    yield
    torch.set_grad_enabled(before)


def lines(run: RunFolder) -> list[dict[str, object]]:
    return [p.model_dump(exclude={"seconds"}) for p in storage.iter_records(run.prediction("base")[0], Prediction)]


def test_two_processes_answer_as_one(tiny_model: Path, tmp_path: Path) -> None:
    found, manifests = [], []
    for processes in (1, 2):
        run = small_run.split(tmp_path / str(processes))
        config = small_run.config(
            tiny_model, predict={"variants": ["base"], "processes": processes, "max_batch": 3, "fidelity_questions": 4}
        )
        manifests.append(predict.run(run, config)["base"])
        found.append(lines(run))
        assert not run.prediction("base")[0].with_suffix(".partial").exists()
    one, two = manifests
    assert found[0] == found[1] and len(found[0]) == len(small_run.QUESTIONS)
    assert one.key == two.key and one.logprobs_sha256 == two.logprobs_sha256 and one.noise == two.noise
    assert [m.execution["processes"] for m in manifests] == [1, 2]
    # The wall time, which is not the sum of the processes' times.
    assert two.cost.tokens_per_second == pytest.approx(two.cost.generated_tokens / two.cost.seconds)


class Slow(ReplayBackend):
    """Tells who answered."""

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        time.sleep(0.1)
        return [replace(c, error=str(os.getpid())) for c in super().answer(prompts)]


class Mortal(ReplayBackend):
    """Is killed by the prompt that ends in 7."""

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        if any(p[-1] == 7 for p in prompts):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(prompts)


PROMPTS = [[1, 2, 3, 4, i] for i in range(8, 20)]


def test_batches_go_to_whoever_is_free_and_wall_time_is_counted(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    forked: None,
) -> None:
    register(monkeypatch, Slow)
    made = replace(job(tmp_path, tiny_model, PROMPTS), processes=3)
    team = WorkerPool(made)
    try:
        found = dict(team.answer_batches([PROMPTS[i : i + 2] for i in range(0, 12, 2)]))
    finally:
        team.close()
    who = [completions[0].error for _, completions in sorted(found.items())]
    assert sorted(found) == list(range(6)) and len(set(who)) == 3
    assert all(not worker.process.is_alive() for worker in team.workers)
    manifest = predict._in_own_process(made)
    # Answers are recorded with 0.25 s each, 3 s in all; four batches of three in three processes took 0.2 s.
    assert 0.1 < manifest.cost.seconds < 1.5


def test_a_killed_process_ends_the_others_and_the_journal_is_resumed(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    forked: None,
) -> None:
    register(monkeypatch, Mortal)
    prompts = [*PROMPTS, [1, 2, 7]]
    made = replace(job(tmp_path, tiny_model, prompts), processes=2)
    with pytest.raises(ArtifactError, match=r"answered with v was killed by signal 9; run the same command again"):
        predict._in_own_process(made)
    kept = len(partial(made).read_text().splitlines()) - 1
    # The shortest prompt comes last: what came before it is on disk, but for the batch in flight beside it.
    assert kept >= 9 and not made.lines.exists()
    register(monkeypatch, ReplayBackend)
    manifest = predict.answer(replace(made, processes=1))
    assert manifest.n == len(prompts) and not partial(made).exists()


def test_an_interrupted_run_resumes_in_its_own_batches(tiny_model: Path, tmp_path: Path) -> None:
    run = small_run.split(tmp_path)
    split, asked = storage.read_record(run.split_json, SplitManifest), storage.read_records(run.heldout_jsonl, Question)
    made = next(predict.jobs(run, small_run.config(tiny_model), split.split_id, asked, ["base"]))
    # As on a GPU, where the batch size depends on the free memory.
    automatic = replace(made, execution=replace(made.execution, batch_tokens=0, max_batch=0))
    whole = predict.answer(automatic)
    assert (whole.execution["batch_tokens"], whole.execution["max_batch"]) == (16384, 64)
    with Journal(partial(made), whole.key).begin(Execution("cuda", 8000, 3)):
        pass
    found = predict.answer(automatic)
    assert (found.execution["batch_tokens"], found.execution["max_batch"]) == (8000, 3)


def test_a_long_tmpdir_starts_the_workers_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    code = "from harness.prediction import runners; runners.start_fork_server(); import tempfile; print(tempfile.gettempdir())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(folder)), done.stderr
    assert not list(folder.iterdir())
