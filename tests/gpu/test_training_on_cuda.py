"""Training on a CUDA device: every plan takes the same steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import store
from harness.config import PROJECT, Config
from harness.records import HistoryPoint, TrainManifest
from harness.store import RunFolder
from tests import small_run

pytestmark = pytest.mark.gpu

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

EMBEDDED = PROJECT / "data" / "tiny-llama3"
STEPS = 24
PLANS = {
    "two by four": {"micro_batch_size": 2, "packing": False},
    "at once": {"packing": False},
    "computed again": {"packing": False, "gradient_checkpointing": True},
    "packed": {"packing": True},
    "graphs": {"cuda_graphs": True},
}


def trained(root: Path, name: str, **settings: object) -> tuple[list[HistoryPoint], TrainManifest]:
    """A training of the embedded model in a process of its own: Unsloth patches what it finds."""
    run = small_run.split(root, name=name, asked=small_run.questions())
    rows = json.loads((PROJECT / "data" / "constitution_qa.json").read_text(encoding="utf-8"))[:200]
    pairs = [(row["question"], row["answer"]) for row in rows]
    store.write_jsonl(run.train_jsonl, [q.model_copy(update={"id": f"t{q.id}"}) for q in small_run.questions(pairs)])
    train = {"max_steps": STEPS, "batch_size": 8, "max_length": 256, "learning_rate": 1e-3, "eval_every": 12, "save_every": 8, **settings}
    config = Config.model_validate({"device": "cuda", "model": {"path": str(EMBEDDED)}, "train": train, "wandb": {"enabled": False}})
    (root / "config.json").write_text(config.model_dump_json())
    done = subprocess.run(
        [sys.executable, str(PROJECT / "tests" / "train_once.py"), str(root), run.name],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "cannot be captured" not in done.stdout
    return store.read_records(run.history_jsonl, HistoryPoint), store.read_record(RunFolder(name, root).train_json, TrainManifest)


def test_every_plan_takes_the_same_steps(tmp_path: Path) -> None:
    found = {name: trained(tmp_path, name.replace(" ", "_"), **settings) for name, settings in PLANS.items()}
    reference = [p.loss for p in found["two by four"][0] if p.loss is not None]
    for name, (points, manifest) in found.items():
        losses = [p.loss for p in points if p.loss is not None]
        assert len(losses) == STEPS
        # The first step has the same weights, and differs by rounding alone; later ones gather it.
        assert losses[0] == pytest.approx(reference[0], rel=2e-3), name
        assert losses == pytest.approx(reference, rel=5e-2), name
        assert manifest.plan["packed"] == (name in ("packed", "graphs")) and manifest.plan["graphs"] == (name == "graphs"), name
