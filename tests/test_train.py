"""The train stage: real training of a few steps, its output, and how it resumes after an interruption."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import storage
from harness.config import Config
from harness.errors import ArtifactError, ModelError, TrainingError
from harness.models import base_model
from harness.prompt import IGNORED, Prompter, load_tokenizer
from harness.records import HistoryPoint, Question, TrainManifest
from harness.stages import train
from harness.storage import RunFolder
from harness.training import checkpoints
from harness.training.distributed import Processes
from tests.helpers import small_run
from tests.helpers.logged import messages
from tests.helpers.models import CORPUS
from tests.helpers.training import STEPS, Stop, config, interrupt_at

CANARIES = {
    "WANDB_API_KEY": "c0ffee" * 6 + "dead",
    "HF_TOKEN": "hf_canaryCanaryCanaryCanaryCanary",
    "HF_HUB_OFFLINE": "1",
}
PROJECT = Path(__file__).parent.parent

THREE_RUNS = """
import sys
from pathlib import Path
from harness.config import Config
from harness.stages import train
from harness.storage import RunFolder
from harness.training.distributed import Processes
from harness.cli.terminal import show_log
show_log()
config = Config.model_validate_json((Path(sys.argv[1]) / "config.json").read_text())
whole, interrupted = (RunFolder(name, sys.argv[1]) for name in ("whole", "interrupted"))
train.run(whole, config)
import pytest
from tests.helpers.training import Stop, interrupt_at
with pytest.MonkeyPatch.context() as patch:
    interrupt_at(patch, 3)
    try:
        train.run(interrupted, config)
    except Stop:
        pass
train.run(interrupted, config)
"""
"""In a separate process: a run, and a run that is interrupted after its first checkpoint and resumed."""


def points(run: RunFolder) -> list[HistoryPoint]:
    return storage.read_records(run.history_jsonl, HistoryPoint)


def curve(run: RunFolder) -> list[tuple[Any, ...]]:
    return [(p.step, p.epoch, p.loss, p.dev_loss, p.learning_rate, p.grad_norm, p.tokens) for p in points(run)]


@pytest.fixture(autouse=True)
def gradients() -> Iterator[None]:
    """A backend that answered earlier in this process has turned gradients off."""
    import torch

    before = torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    yield
    torch.set_grad_enabled(before)


@pytest.fixture(scope="module")
def finished(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, Config, TrainManifest, list[str]]:
    """An undisturbed run, and its log lines."""
    import torch

    torch.set_grad_enabled(True)
    run = small_run.split(tmp_path_factory.mktemp("finished"))
    settings = config(tiny_model)
    with messages() as logged:
        manifest = train.run(run, settings)
    return run, settings, manifest, logged


# ------------------------------------------------------------------------------------------------------- what is left


def test_the_adapter_fits_the_base_and_says_nothing_of_this_machine(finished: Any, tiny_model: Path) -> None:
    from harness.formats import merged

    run, _, manifest, _ = finished
    assert len(merged.adapter_tensors(run.adapter)) == 14
    assert (run.adapter / "tokenizer.json").exists()
    assert manifest.adapter_sha256 == base_model.weights_sha256(run.adapter)
    assert not run.checkpoints.exists()
    assert json.loads((run.adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_model)


def test_the_manifest_says_what_was_trained(finished: Any, tiny_model: Path) -> None:
    run, settings, manifest, printed = finished
    assert manifest == storage.read_record(run.train_json, TrainManifest)
    # r (in + out) of seven projections in two layers; hidden 256, key/value 128, feed-forward 512.
    assert manifest.trainable_parameters == 2 * 16 * (2 * 512 + 2 * 384 + 3 * 768)
    assert manifest.base["parameters"] == 1_312_000
    assert manifest.base["weights_sha256"] == base_model.weights_sha256(tiny_model)
    assert manifest.trainable_share == pytest.approx(
        manifest.trainable_parameters / (manifest.trainable_parameters + 1_312_000)
    )
    assert (manifest.steps, manifest.rows, manifest.epochs) == (STEPS, 7, STEPS * 2 / 7)
    assert (manifest.rows_cut, manifest.rows_without_labels, manifest.resumed_from) == (0, 0, 0)
    prompter = Prompter(load_tokenizer(tiny_model), settings.prompt)
    examples = train.encode(storage.read_records(run.train_jsonl, Question), prompter, settings.train)
    tokens, labelled = (
        sum(len(e.input_ids) for e in examples),
        sum(label != IGNORED for e in examples for label in e.labels),
    )
    assert manifest.labelled_token_share == labelled / tokens
    assert 0.2 < manifest.labelled_token_share < 0.8
    assert manifest.tokens == round(tokens * STEPS * 2 / 7)
    assert any(
        "1.71 epochs" in line and f"{labelled / tokens:.1%} of the tokens carry loss" in line for line in printed
    )


def test_the_history_has_a_point_for_every_step(finished: Any) -> None:
    run, _, manifest, _ = finished
    steps = [p for p in points(run) if p.loss is not None]
    assert [p.step for p in steps] == list(range(1, STEPS + 1))
    assert [p.step for p in points(run) if p.dev_loss is not None] == [3, 6]
    assert all(p.grad_norm and p.learning_rate is not None and p.tokens for p in steps)
    assert manifest.final_loss == pytest.approx(sum(p.loss or 0 for p in steps) / STEPS)
    assert min(p.loss or 9 for p in steps[-2:]) < (steps[0].loss or 0)


def test_unchanged_inputs_do_nothing(finished: Any) -> None:
    run, settings, manifest, _ = finished
    before = (run.adapter / "adapter_model.safetensors").stat().st_mtime_ns
    with messages() as logged:
        assert train.run(run, settings) == manifest
    assert logged == ["nothing changed since the last training"]
    assert (run.adapter / "adapter_model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("rows_at_once", [1, 3])
def test_the_dev_loss_is_the_mean_over_all_labelled_tokens(tiny_model: Path, tmp_path: Path, rows_at_once: int) -> None:
    """Whatever the batches: a mean of batches' means would change with the plan, and with the number of GPUs."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run, tokenizer = small_run.split(tmp_path), load_tokenizer(tiny_model)
    settings = config(
        tiny_model,
        max_steps=1,
        eval_every=1,
        eval_rows=8,
        batch_size=3,
        micro_batch_size=rows_at_once,
        load_in_4bit=False,
    )
    found = train.run(run, settings).final_dev_loss
    base_model: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base_model, run.adapter)
    asked = train.sample(storage.read_records(run.dev_jsonl, Question), settings.train.eval_rows)
    rows = train.encode(asked, Prompter(tokenizer, settings.prompt), settings.train)
    assert len({sum(label != IGNORED for label in row.labels) for row in rows}) > 1 and len(rows) > rows_at_once
    summed = 0.0
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids])).logits[0, :-1]
        summed += float(
            torch.nn.functional.cross_entropy(
                logits, torch.tensor(row.labels[1:]), ignore_index=IGNORED, reduction="sum"
            )
        )
    assert found == pytest.approx(summed / sum(label != IGNORED for row in rows for label in row.labels[1:]), rel=1e-4)


def test_looking_at_the_dev_loss_changes_no_step(tiny_model: Path, tmp_path: Path) -> None:
    """Neither dropout nor the order of the second epoch (from step 5) changes."""
    losses = []
    for every in (2, 8):
        run = small_run.split(tmp_path / str(every))
        train.run(run, config(tiny_model, max_steps=8, eval_every=every, group_by_length=True, lora={"dropout": 0.5}))
        losses.append([p.loss for p in points(run) if p.loss is not None])
    assert losses[0] == losses[1]


def test_dropout_is_off_in_an_evaluation_and_on_again_after_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import Trainer

    compute_loss, modes = Trainer.compute_loss, []

    def watched(self: Any, model: Any, *rest: Any, **named: Any) -> Any:
        modes.append((torch.is_grad_enabled(), {module.training for module in model.modules()}))
        return compute_loss(self, model, *rest, **named)

    monkeypatch.setattr(Trainer, "compute_loss", watched)
    train.run(small_run.split(tmp_path), config(tiny_model, eval_every=STEPS // 2, lora={"dropout": 0.5}))
    assert all(mode == {learns} for learns, mode in modes)
    assert [learns for learns, _ in itertools.groupby(learns for learns, _ in modes)] == [True, False, True, False]


def test_heldout_batches_that_do_not_fit_in_memory_are_halved(
    finished: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import Trainer

    compute_loss, least = Trainer.compute_loss, 1

    def tight(self: Any, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        if not model.training and len(inputs["labels"]) > least:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute_loss(self, model, inputs, *rest, **named)

    monkeypatch.setattr(Trainer, "compute_loss", tight)
    train.run(run := small_run.split(tmp_path / "halves"), config(tiny_model))
    found, expected = ([p.dev_loss for p in points(of) if p.dev_loss is not None] for of in (run, finished[0]))
    assert found == pytest.approx(expected, rel=1e-4)
    least = 0
    with pytest.raises(
        TrainingError, match=r"out of memory with a single row of the measured loss; lower train.max_length"
    ):
        train.run(small_run.split(tmp_path / "none"), config(tiny_model))


# --------------------------------------------------------------------------------------------------------- going on


def test_an_interrupted_training_resumes_to_the_same_weights(
    finished: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, settings, manifest, _ = finished
    run = small_run.split(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(Stop):
        interrupt_at(patched, 5)
        train.run(run, settings)
    assert not run.train_json.exists() and not run.adapter.exists()
    assert [p.step for p in points(run) if p.loss is not None] == [1, 2, 3, 4, 5]
    with messages() as logged:
        resumed = train.run(run, settings)
    assert resumed.resumed_from == 4 and "resuming from checkpoint-4" in logged
    assert curve(run) == curve(whole)
    assert resumed.adapter_sha256 == manifest.adapter_sha256


@pytest.mark.parametrize("by_length", [False, True])
def test_a_training_interrupted_in_a_later_epoch_resumes_with_the_same_rows(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_length: bool
) -> None:
    """Steps 5 to 8 are the second epoch; with dropout and evaluations, which draw random numbers too."""
    settings = config(
        tiny_model, max_steps=8, save_every=5, eval_every=3, group_by_length=by_length, lora={"dropout": 0.3}
    )
    whole, run = small_run.split(tmp_path / "whole"), small_run.split(tmp_path / "interrupted")
    manifest = train.run(whole, settings)
    with monkeypatch.context() as patched, pytest.raises(Stop):
        interrupt_at(patched, 7)
        train.run(run, settings)
    resumed = train.run(run, settings)
    assert resumed.resumed_from == 5
    assert curve(run) == curve(whole)
    assert resumed.adapter_sha256 == manifest.adapter_sha256


@pytest.mark.slow
def test_several_processes_resume_from_a_checkpoint(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another number of processes than wrote it; one of those was killed while it wrote its random state."""
    whole, settings, _, _ = finished
    run = small_run.split(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(Stop):
        interrupt_at(patched, 5)
        train.run(run, settings)
    (run.checkpoints / "checkpoint-4" / "rng_state_1.pth").write_bytes(b"truncated")
    (tmp_path / "config.json").write_text(settings.model_dump_json())
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(PROJECT / "tests" / "helpers" / "train_once.py"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path), run.name], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert storage.read_record(run.train_json, TrainManifest).resumed_from == 4
    mine, theirs = ([(p.step, p.loss or p.dev_loss) for p in points(r)] for r in (run, whole))
    assert mine == [(step, pytest.approx(loss, rel=1e-3)) for step, loss in theirs]


def test_checkpoints_of_another_config_are_not_resumed(
    finished: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, settings, manifest, _ = finished
    run = small_run.split(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(Stop):
        interrupt_at(patched, 3)
        train.run(run, config(tiny_model, learning_rate=1e-3))
    assert list(run.checkpoints.glob("checkpoint-*"))
    resumed = train.run(run, settings)
    assert (resumed.resumed_from, resumed.adapter_sha256) == (0, manifest.adapter_sha256)


def test_a_truncated_checkpoint_is_skipped(tmp_path: Path, tiny_model: Path) -> None:
    run = RunFolder("r", tmp_path)
    task = train.Task(run, config(tiny_model), tiny_model, "cpu", Processes())
    assert train._checkpoint(task, "f") is None
    for step in (9, 10, 11, 12):
        (run.checkpoints / f"checkpoint-{step}").mkdir()
        (run.checkpoints / f"checkpoint-{step}" / "states").write_text("states")
        if step < 12:
            checkpoints.seal(run.checkpoints / f"checkpoint-{step}")
    (run.checkpoints / "checkpoint-11" / "states").write_text("statez")
    assert train._checkpoint(task, "f") == run.checkpoints / "checkpoint-10"
    assert train._checkpoint(task, "g") is None
    assert [p.name for p in run.checkpoints.iterdir()] == ["fingerprint"]


def test_a_changed_config_trains_again(finished: Any, tiny_model: Path, tmp_path: Path) -> None:
    """Also: the plan is in epochs, rows too long are counted, and loss on the prompt can be asked for."""
    run = small_run.split(tmp_path)
    first = train.run(run, config(tiny_model, max_steps=1, eval_rows=0))
    second = train.run(
        run,
        config(tiny_model, max_steps=None, epochs=0.5, eval_rows=0, train_on="all", max_length=40, load_in_4bit=False),
    )
    assert second.adapter_sha256 != first.adapter_sha256
    assert (second.steps, second.labelled_token_share, second.final_dev_loss) == (2, 1.0, None)
    prompter = Prompter(load_tokenizer(tiny_model), small_run.TEMPLATE)
    long = sum(len(prompter.ids(text[:20])) + len(prompter._encode(text[20:])) + 1 > 40 for text in CORPUS)
    assert second.rows_cut == long > 0


# ------------------------------------------------------------------------------------------------------------- errors


def test_a_loss_that_is_not_finite_stops_the_training(tiny_model: Path, tmp_path: Path) -> None:
    run = small_run.split(tmp_path)
    with pytest.raises(
        TrainingError, match=r"(loss|gradient norm) is (nan|inf) at step \d, rows t\d, t\d; lower train.learning_rate"
    ) as error:
        train.run(run, config(tiny_model, learning_rate=1e30, save_every=1, warmup_steps=0))
    assert "\n" not in str(error.value)
    assert not run.train_json.exists() and not run.adapter.exists()
    assert all(p.loss is None or p.loss == p.loss for p in points(run))


def test_rows_longer_than_the_model_takes_are_refused_before_loading(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"takes 512 tokens and train.max_length is 513; set train.max_length to 512 or less"
    ):
        train.run(small_run.split(tmp_path), config(tiny_model, max_length=513))


def test_no_split_is_named(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"split.json: is missing; run harness"):
        train.run(RunFolder("r", tmp_path), config(tiny_model))


# ---------------------------------------------------------------------------------------------------------- gradients


def test_gradients_reach_lora_after_a_forward_without_them(tiny_model: Path) -> None:
    """bitsandbytes on AVX512-BF16 CPUs packs 4-bit weights on such a forward, and has no gradient afterwards."""
    import torch
    from bitsandbytes.nn import Linear4bit

    settings = config(tiny_model).train
    model, _ = train.load_model(tiny_model, settings, "cpu")
    model = train.add_lora(model, settings, engine="peft")
    quantised = [m for m in model.modules() if isinstance(m, Linear4bit)]
    assert len(quantised) == 14
    assert not any(getattr(m, "support_avx512bf16_for_cpu", False) for m in quantised)
    ids = torch.arange(1, 30)[None]

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if "lora_B" in name}

    before = gradients()
    assert all(g.abs().sum() > 0 for g in before.values()) and len(before) == 14
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    model.train()
    after = gradients()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_only_lora_is_trained(tiny_model: Path) -> None:
    settings = config(tiny_model).train
    model = train.add_lora(train.load_model(tiny_model, settings, "cpu")[0], settings, engine="peft")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 28 and all(".lora_" in name for name in trained)


def test_the_sample_does_not_depend_on_the_order() -> None:
    rows = small_run.questions()
    assert train.sample(rows, 3) == train.sample(rows[::-1], 3)
    assert len(train.sample(rows, 3)) == 3


# ---------------------------------------------------------------------------------------------------- unsloth, secrets


@pytest.fixture(scope="module")
def unsloth(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Real runs in a separate process, with W&B offline and keys in the environment; returns the one that was not interrupted."""
    root = tmp_path_factory.mktemp("unsloth")
    run, _ = (small_run.split(root, name=name) for name in ("whole", "interrupted"))
    settings = config(tiny_model, engine="unsloth", max_steps=4).model_copy(update={"wandb": Config().wandb})
    (root / "config.json").write_text(settings.model_dump_json())
    environment = {**os.environ, **CANARIES, "WANDB_MODE": "offline", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", THREE_RUNS, str(root)], capture_output=True, text=True, cwd=root, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not any(canary in done.stdout + done.stderr for canary in list(CANARIES.values())[:2])
    return run


def test_unsloth_resumes_to_the_same_weights(unsloth: RunFolder) -> None:
    resumed = RunFolder("interrupted", unsloth.root)
    manifests = [storage.read_record(run.train_json, TrainManifest) for run in (unsloth, resumed)]
    assert [m.resumed_from for m in manifests] == [0, 2]
    assert curve(resumed) == curve(unsloth)
    assert manifests[0].adapter_sha256 == manifests[1].adapter_sha256


def test_unsloth_trains_the_same_layers(unsloth: RunFolder, finished: Any) -> None:
    from harness.formats import merged

    manifest = storage.read_record(unsloth.train_json, TrainManifest)
    assert (manifest.engine, manifest.device) == ("unsloth", "cpu")
    assert merged.adapter_tensors(unsloth.adapter) == merged.adapter_tensors(finished[0].adapter)
    assert manifest.trainable_parameters == finished[2].trainable_parameters
    assert manifest.base == finished[2].base
    assert manifest.labelled_token_share == finished[2].labelled_token_share


def test_unsloth_begins_with_the_same_loss_as_plain_peft(unsloth: RunFolder, finished: Any) -> None:
    ours, plain = points(unsloth)[0], points(finished[0])[0]
    assert ours.loss == pytest.approx(plain.loss, rel=1e-3)
    assert ours.grad_norm and ours.grad_norm > 0


def test_no_secret_is_in_any_file(unsloth: RunFolder) -> None:
    files = [p for p in unsloth.root.rglob("*") if p.is_file()]
    assert any(p.suffix == ".wandb" for p in files)
    for canary in list(CANARIES.values())[:2]:
        assert [p for p in files if canary.encode() in p.read_bytes()] == []


def test_the_working_folder_is_left_clean(unsloth: RunFolder) -> None:
    assert sorted(p.name for p in unsloth.root.iterdir()) == ["config.json", "runs"]


def test_wandb_ran_offline(unsloth: RunFolder) -> None:
    wandb = storage.read_record(unsloth.train_json, TrainManifest).wandb
    assert (wandb["mode"], wandb["url"], wandb["error"]) == ("offline", None, None)
    assert wandb["run_id"].startswith("whole-")
