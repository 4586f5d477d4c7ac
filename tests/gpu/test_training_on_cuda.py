"""Training on a CUDA device: every plan takes the same steps, in fp16 too and on two GPUs, and a killed training resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

import pytest
import torch

from harness import storage
from harness.config import PROJECT, Config
from harness.records import HistoryPoint, TrainManifest
from harness.storage import RunFolder
from harness.training.checkpoints import SEAL
from tests.helpers import small_run
from tests.helpers.flat_updates import compare

pytestmark = pytest.mark.gpu

EMBEDDED = PROJECT / "data" / "tiny-llama3"
STEPS = 24
PLANS = {
    "two by four": {"micro_batch_size": 2, "packing": False},
    "at once": {"packing": False},
    "computed again": {"packing": False, "gradient_checkpointing": True},
    "packed": {"cuda_graphs": False},
    "graphs": {},
}


def begun(root: Path, **settings: object) -> tuple[RunFolder, list[str]]:
    """A run folder with its questions, and the command that trains the embedded model in a separate process: Unsloth patches the modules that are loaded."""
    run = small_run.split(root, asked=small_run.questions())
    rows = json.loads((PROJECT / "data" / "constitution_qa.json").read_text(encoding="utf-8"))[:200]
    pairs = [(row["question"], row["answer"]) for row in rows]
    storage.write_jsonl(run.train_jsonl, [q.model_copy(update={"id": f"t{q.id}"}) for q in small_run.questions(pairs)])
    train = {
        "max_steps": STEPS,
        "batch_size": 8,
        "max_length": 256,
        "learning_rate": 1e-3,
        "eval_every": 12,
        "save_every": 8,
        **settings,
    }
    config = Config.model_validate(
        {"device": "cuda", "model": {"path": str(EMBEDDED)}, "train": train, "wandb": {"enabled": False}}
    )
    (root / "config.json").write_text(config.model_dump_json())
    return run, [sys.executable, str(PROJECT / "tests" / "helpers" / "train_once.py"), str(root), run.name]


def trained(run: RunFolder, command: list[str]) -> tuple[list[float], TrainManifest]:
    """The losses of a whole training."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    assert "cannot be captured" not in done.stdout
    losses = [p.loss for p in storage.read_records(run.history_jsonl, HistoryPoint) if p.loss is not None]
    return losses, storage.read_record(run.train_json, TrainManifest)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}


def test_every_plan_takes_the_same_steps(tmp_path: Path) -> None:
    with ThreadPoolExecutor(len(PLANS)) as pool:
        trainings = {
            name: pool.submit(trained, *begun(tmp_path / name, **settings)) for name, settings in PLANS.items()
        }
    found = {name: training.result() for name, training in trainings.items()}
    reference = found["two by four"][0]
    for name, (losses, manifest) in found.items():
        assert len(losses) == STEPS
        # The first step has the same weights and differs by rounding only; in later ones it accumulates.
        assert losses[0] == pytest.approx(reference[0], rel=2e-3), name
        assert losses == pytest.approx(reference, rel=5e-2), name
        assert manifest.plan["packed"] == (name in ("packed", "graphs")) and manifest.plan["graphs"] == (
            name == "graphs"
        ), name
    # The first graph must outlive longer steps, for which the rotary tables of this short model are recomputed.
    assert found["graphs"][0] == pytest.approx(found["packed"][0], rel=5e-3)


def test_plain_peft_takes_the_same_steps_whatever_gpus_are_in_sight(tmp_path: Path) -> None:
    settings = {"max_steps": 6, "eval_rows": 0, "packing": False}
    with ThreadPoolExecutor(2) as pool:
        peft = pool.submit(trained, *begun(tmp_path / "peft", engine="peft", **settings))
        unsloth = pool.submit(trained, *begun(tmp_path / "unsloth", **settings))
    losses, expected = peft.result()[0], unsloth.result()[0]
    assert losses[0] == pytest.approx(expected[0], rel=2e-3) and losses == pytest.approx(expected, rel=5e-2)


def test_fused_parameters_take_the_same_steps() -> None:
    compare("cuda")


def test_fp16_takes_the_same_steps(tmp_path: Path) -> None:
    """fp16 is for cards without bf16 units. That the loss is scaled is tested in tests/test_step.py: these losses would not show it."""
    settings = {"max_steps": 60, "eval_rows": 0}
    with ThreadPoolExecutor(3) as pool:
        bf16 = pool.submit(trained, *begun(tmp_path / "bf16", **settings))
        run, command = begun(tmp_path / "fp16", **settings)
        graphs = pool.submit(trained, run, [*command, "float16"])
        other, command = begun(tmp_path / "eager", **settings, cuda_graphs=False)
        eager = pool.submit(trained, other, [*command, "float16"])
    expected, (losses, manifest) = bf16.result()[0], graphs.result()
    assert manifest.plan["graphs"] and losses[0] == pytest.approx(expected[0], rel=2e-3)
    assert losses == pytest.approx(eager.result()[0], rel=5e-2)
    assert fmean(losses[-20:]) == pytest.approx(fmean(expected[-20:]), rel=0.1)


def test_two_gpus_take_the_steps_of_one(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(trained, *begun(tmp_path / "one"))
        run, (python, *script) = begun(tmp_path / "two")
        two = pool.submit(
            trained, run, [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *script]
        )
    losses, manifest = two.result()
    assert manifest.plan["devices"] == 2 and losses[0] == pytest.approx(one.result()[0][0], rel=2e-3)
    assert losses == pytest.approx(one.result()[0], rel=5e-2)


def test_a_killed_training_resumes_on_the_same_curve(tmp_path: Path) -> None:
    settings = {"max_steps": 120, "save_every": 20, "eval_rows": 0}
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(trained, *begun(tmp_path / "whole", **settings))
        run, command = begun(tmp_path / "killed", **settings)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
        # Found by its file name: the module that reads it takes seconds to import, and the training might have ended by then.
        while process.poll() is None and not (run.checkpoints / "checkpoint-40" / SEAL).exists():
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        losses, manifest = trained(run, command)
    assert 40 <= manifest.resumed_from < 120
    # Rounding differs between trainings on a GPU: losses right after the checkpoint are near, later ones at the same level.
    uninterrupted, near = whole.result()[0], manifest.resumed_from + 10
    assert losses[:near] == pytest.approx(uninterrupted[:near], rel=5e-2)
    assert fmean(losses[-20:]) == pytest.approx(fmean(uninterrupted[-20:]), rel=5e-2)
