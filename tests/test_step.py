"""However a step is cut up, it is the same step: plans, layouts, micro-batches, processes."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import storage
from harness.config import Train
from harness.errors import DeviceError, TrainingError
from harness.prompt import IGNORED
from harness.records import HistoryPoint
from harness.storage import RunFolder
from harness.training import launch, packing
from harness.training import plan as planning
from harness.training.plan import GIB, Plan, Shape
from harness.training.rows import ByLength, Rows, packed
from harness.training.step import Stepper
from tests.helpers import small_run
from tests.helpers.logged import messages

PROJECT = Path(__file__).parent.parent
LLAMA3_8B = Shape(hidden=4096, layers=32, intermediate=14336, key_value=1024, vocabulary=128256, tied=False)
LENGTHS = [60, 95, 104, 120, 177, 436] * 20
CPU = torch.device("cpu")


# -------------------------------------------------------------------------------------------------------------- plans


def plan_of(memory: float, **settings: Any) -> Plan:
    return planning.make(
        LLAMA3_8B, Train(**settings), LENGTHS, 8, memory_bytes=int(memory * GIB), packing=True, graphs=True
    )


def test_the_shape_counts_the_parameters_of_llama_3_8b() -> None:
    """8,030,261,248 parameters and 41,943,040 of LoRA at r=16; norms (2 x 32 + 1) x 4096 are not counted."""
    assert LLAMA3_8B.projections + LLAMA3_8B.embeddings == 8_030_261_248 - 65 * 4096
    assert LLAMA3_8B.lora(Train().lora) == 41_943_040


def test_a_large_device_takes_a_step_at_once_and_as_a_graph() -> None:
    plan = plan_of(139)
    assert (plan.rows, plan.packed, plan.graphs, plan.checkpointing) == (8, True, True, False)
    assert plan.tokens == 8 * 436
    assert len(planning.cut(LENGTHS[:8], plan)) == 1


def test_less_memory_means_smaller_micro_batches_and_then_checkpointing() -> None:
    plans = [plan_of(memory) for memory in (139, 20, 12, 9, 7.5)]
    assert [p.tokens for p in plans] == sorted((p.tokens for p in plans), reverse=True) or any(
        p.checkpointing for p in plans
    )
    assert plans[-1].checkpointing and not plans[-1].graphs
    assert all(p.peak_bytes <= memory * GIB for p, memory in zip(plans, (139, 20, 12, 9, 7.5), strict=True))


def test_the_users_word_wins() -> None:
    assert plan_of(139, gradient_checkpointing=True).checkpointing
    assert plan_of(139, micro_batch_size=2).rows == 2
    assert not plan_of(139, packing=False).packed and not plan_of(139, packing=False).graphs
    assert not plan_of(139, cuda_graphs=False).graphs
    assert plan_of(139, memory_limit_gib=12).peak_bytes <= 12 * GIB


@settings(deadline=None)
@given(st.integers(1, 200_000))
def test_padding_adds_an_eighth_at_most_and_leaves_few_sizes(tokens: int) -> None:
    size = planning.padded_size(tokens)
    assert tokens <= size <= max(tokens * 9 / 8 + 1, tokens + planning.BUCKET) and planning.padded_size(size) == size
    assert len({planning.padded_size(n) for n in range(tokens, 2 * tokens)}) <= 17


def test_what_modules_hold_by_themselves_is_found() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    table, listed = torch.ones(3), torch.zeros(4)
    model[1].table, model[0].tables = table, [None, listed]
    assert {id(t) for t in packing.held(model)} == {id(table), id(listed)}


def test_too_little_memory_says_what_would_fit() -> None:
    with pytest.raises(
        DeviceError,
        match=r"training needs about \d+\.\d GiB of device memory and 3\.6 are available; .*load_in_4bit=true",
    ):
        plan_of(4, load_in_4bit=False)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=64), st.integers(1, 16), st.integers(1, 2000), st.booleans())
def test_a_cut_keeps_every_row_once_in_order_within_the_limits(
    lengths: list[int], rows: int, tokens: int, together: bool
) -> None:
    groups = planning.cut(lengths, Plan(rows, tokens, packed=together))
    assert [i for group in groups for i in group] == list(range(len(lengths)))
    for group in groups:
        used = [lengths[i] for i in group]
        assert len(group) <= rows
        assert len(group) == 1 or (sum(used) if together else max(used) * len(used)) <= tokens


# ------------------------------------------------------------------------------------------------------------- layouts


def rows_of(lengths: list[int], *, vocabulary: int = 300, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(1, vocabulary, n) for n in lengths]
    labels = [np.where(np.arange(n) < n // 2, IGNORED, row) for n, row in zip(lengths, ids, strict=True)]
    return Rows(ids, labels, [f"q{i}" for i in range(len(lengths))])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 50), st.integers(0, 3))
def test_packed_rows_are_the_same_tokens(lengths: list[int], filling: int, spare: int) -> None:
    rows = rows_of(lengths)
    size = sum(lengths) + filling
    batch = packed(rows, 0, size, len(lengths) + spare)
    ends = batch["cu_seqlens"].tolist()
    assert ends[0] == 0 and ends[-1] == size and ends[-2] == sum(lengths) and ends == sorted(ends)
    for i, (begin, end) in enumerate(itertools.pairwise(ends[: len(lengths) + 1])):
        assert batch["input_ids"][0, begin:end].tolist() == rows.ids[i].tolist()
        assert batch["position_ids"][0, begin:end].tolist() == list(range(end - begin))
        assert batch["labels"][0, begin + 1 : end].tolist() == rows.labels[i][1:].tolist()
        assert batch["labels"][0, begin] == IGNORED, "a row predicts the first token of the next"
    assert (batch["labels"][0, sum(lengths) :] == IGNORED).all()


@settings(deadline=None)  # the first call imports
@given(
    st.lists(st.integers(1, 600), min_size=1, max_size=200), st.integers(1, 8), st.integers(0, 2**31), st.integers(0, 5)
)
def test_the_order_by_length_has_every_row_once_and_follows_from_seed_and_epoch(
    lengths: list[int], size: int, seed: int, epoch: int
) -> None:
    order = ByLength(lengths, size, seed)
    order.set_epoch(epoch)
    first = list(order)
    torch.rand(3)
    assert sorted(first) == list(range(len(lengths))) and len(order) == len(lengths) and list(order) == first


def test_the_order_by_length_changes_with_the_epoch_and_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 600, 400).tolist()
    order, orders = ByLength(lengths, 8, 0), []
    for epoch in (0, 1):
        order.set_epoch(epoch)
        orders.append(list(order))
    assert orders[0] != orders[1]
    for found in orders:
        padded_to = sum(8 * max(lengths[i] for i in found[at : at + 8]) for at in range(0, 400, 8))
        assert padded_to < 1.1 * sum(lengths)


# --------------------------------------------------------------------------------------------------------------- steps


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(True)
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


def share(model: Any, inputs: dict[str, Any], items: Any) -> torch.Tensor:
    return model(**inputs, use_cache=False, num_items_in_batch=items).loss


def gradients(model: Any, plan: Plan, rows: Rows, **options: Any) -> tuple[float, torch.Tensor]:
    """(loss, all gradients) of one step under a plan."""
    torch.set_grad_enabled(True)
    model.zero_grad()
    items = torch.tensor(sum(int((label[1:] != IGNORED).sum()) for label in rows.labels))
    stepper = Stepper(model, plan, pad_id=0, longest=max(rows.lengths), device=CPU, **options)
    loss = stepper.step(share, model, rows, items)
    return float(loss), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    "plan",
    [Plan(2, 10_000), Plan(1, 10_000), Plan(8, 60), Plan(8, 10_000, packed=True), Plan(3, 10_000, packed=True)],
    ids=["2 rows at once", "1 row at once", "few tokens at once", "packed", "packed in three"],
)
def test_a_step_is_the_same_however_it_is_cut(model: Any, plan: Plan) -> None:
    rows = rows_of([12, 30, 7, 25, 9, 31, 18, 22])
    loss, expected = gradients(model, Plan(8, 10_000), rows)
    got, found = gradients(model, plan, rows)
    assert got == pytest.approx(loss, rel=1e-5)
    assert torch.linalg.norm(found - expected) / torch.linalg.norm(expected) < 1e-4


@pytest.mark.parametrize("packed", [False, True])
def test_a_scaled_loss_scales_the_gradients_and_not_the_loss(model: Any, packed: bool) -> None:
    """fp16: accelerate scales the loss before its backward pass, and divides the gradients before the optimiser's step."""
    rows, plan = rows_of([12, 30, 7, 25]), Plan(2, 10_000, packed=packed)
    loss, expected = gradients(model, plan, rows)
    scaled, found = gradients(model, plan, rows, backward=lambda loss: (1024 * loss).backward())
    assert scaled == pytest.approx(loss, rel=1e-6) and torch.allclose(found / 1024, expected, rtol=1e-4, atol=1e-7)


def test_out_of_memory_halves_and_takes_the_same_step_again(model: Any) -> None:
    rows = rows_of([12, 30, 7, 25])
    loss, expected = gradients(model, Plan(4, 10_000), rows)

    def tight(model: Any, inputs: dict[str, Any], items: Any) -> torch.Tensor:
        # The allocator's own error, after a first micro-batch has left gradients behind.
        if inputs["input_ids"].shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return share(model, inputs, items)

    model.zero_grad()
    items = torch.tensor(sum(int((label[1:] != IGNORED).sum()) for label in rows.labels))
    stepper = Stepper(model, Plan(4, 10_000), pad_id=0, longest=30, device=CPU)
    with messages() as logged:
        assert float(stepper.step(tight, model, rows, items)) == pytest.approx(loss, rel=1e-5)
    assert torch.allclose(torch.cat([p.grad.flatten() for p in model.parameters()]), expected, atol=1e-6)
    assert stepper.plan.rows == 1 and len(logged) == 2 and "repeating the step" in logged[0]
    stepper.plan = replace(stepper.plan, rows=1)
    with pytest.raises(TrainingError, match="a single row"):
        stepper.step(lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")), model, rows, items)


# ----------------------------------------------------------------------------------------------------------- processes


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tiny_model: Path, tmp_path: Path) -> None:
    """torchrun with gloo: the same rows in every step, to the second epoch, so the same curve up to summation order, and one adapter written once."""
    curves = []
    for processes in (1, 2):
        run = small_run.split(tmp_path, name=f"n{processes}")
        train = {
            "engine": "peft",
            "max_steps": 4,
            "eval_every": 2,
            "batch_size": 3,
            "group_by_length": True,
            "warmup_steps": 0,
            "load_in_4bit": False,
            "max_length": 256,
        }
        settings = small_run.config(tiny_model, train=train)
        (tmp_path / "config.json").write_text(settings.model_dump_json())
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if processes == 2 else []
        command = [
            sys.executable,
            *launcher,
            str(PROJECT / "tests" / "helpers" / "train_once.py"),
            str(tmp_path),
            run.name,
        ]
        environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("7 rows, 4 steps of 3") == 1
        curves.append(
            [(p.step, p.epoch, p.loss, p.dev_loss) for p in storage.read_records(run.history_jsonl, HistoryPoint)]
        )
        assert json.loads(run.train_json.read_text())["plan"]["devices"] == processes
    for one, two in zip(*curves, strict=True):
        assert [-1 if x is None else x for x in one] == pytest.approx([-1 if x is None else x for x in two], rel=1e-4)
    left, right = (RunFolder(f"n{n}", tmp_path).adapter / "adapter_model.safetensors" for n in (1, 2))
    from safetensors.torch import load_file

    first, second = load_file(left), load_file(right)
    assert all(torch.allclose(first[name], second[name], atol=2e-4) for name in first)


def test_several_processes_end_as_one_does(tmp_path: Path) -> None:
    """One line and exit code 2, although torchrun prints a traceback and every process an error."""
    command = [sys.executable, "-m", "harness.training.launch", "2", "train", "--run", "two"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(PROJECT)}
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: no run 'two'; there are none yet; harness split --run two starts one\n", done.stderr)
    planned = subprocess.run(
        ["make", "-n", "train", "GPUS=2", "RUN=two"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    assert "harness run --until train --gpus 2 --run 'two'" in planned


@pytest.mark.parametrize("arguments", [["two", "train"], ["0", "train"], [""], []])
def test_no_number_of_processes_is_refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["launch", *arguments])
    with pytest.raises(SystemExit) as ended:
        launch.main()
    assert (
        ended.value.code == 2
        and capsys.readouterr().err
        == f"error: {(arguments or [''])[0]!r} is not a number of processes; give 1 or more\n"
    )
