"""train and dev sides, base model -> adapter/, history.jsonl, train.json: QLoRA through Unsloth and TRL, resumable.

Training runs in a separate process: on CPUs with AVX512-BF16, bitsandbytes packs 4-bit weights on the first forward pass without gradients,
so a model that has answered in this process would not train correctly.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import storage
from harness.config import Config, Train
from harness.errors import ArtifactError
from harness.models import base_model
from harness.prompt import IGNORED, Example, Prompter, Shot, tokenizer_files_sha256, tokenizer_sha256
from harness.questions import few_shot
from harness.questions.asking import system_of
from harness.records import PromptForm, Question, SplitManifest, TrainManifest
from harness.records.training import PlanFacts, TrainedBase
from harness.storage import RunFolder
from harness.training import plan as planning
from harness.training.checkpoints import newest_readable, saving
from harness.training.distributed import Processes, broadcast, processes
from harness.training.model import add_lora, device_memory, load_model, parameters, peak_memory
from harness.training.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.training.history import HistoryCallback
    from harness.training.tracker import Tracker

log = logging.getLogger(__name__)

FINAL_LOSSES = 20
"""Logged losses averaged as the final loss: that of one batch says little."""


@dataclass(frozen=True)
class Task:
    """One training: where, what and on which device."""

    run: RunFolder
    config: Config
    folder: Path
    """Of the base model."""
    device: str
    processes: Processes

    @property
    def settings(self) -> Train:
        """The config's section."""
        return self.config.train

    def broadcast(self, value: Any) -> Any:
        """Broadcasts the value of the writing process."""
        return broadcast(value, self.processes, cpu=self.device == "cpu")


@dataclass(frozen=True)
class Inputs:
    """What a training reads, by hash."""

    split: SplitManifest
    folder: Path
    """Of the base model."""
    device: str
    weights_sha256: str
    fingerprint: str


@dataclass(frozen=True)
class Data:
    """Rows as token ids."""

    rows: list[Example]
    measured: list[Example]
    """Dev rows, whose loss is measured during training: never trained on."""
    prompt: PromptForm


def run(run: RunFolder, config: Config, *, force: bool = False) -> TrainManifest:
    """Fine-tunes the base model on the training questions.

    Resumes from the last checkpoint of the same inputs. Unchanged inputs: does nothing. Under torchrun each process takes its share of every
    step's rows, and the first one writes.

    Raises:
        ArtifactError: no split, or one without training rows; ModelError: the base cannot be used; ConfigError: the prompt settings do not fit its tokenizer;
        DeviceError: no CUDA where the config needs it; TrainingError: the loss is NaN (the last good checkpoint is kept);
        StorageError: nowhere to write.
    """
    base_model.quiet_libraries()
    inputs = _inputs(run, config)
    ranks = processes()
    task = Task(run, config, inputs.folder, inputs.device, ranks)
    old = None if force or not ranks.writes else _current(run, inputs)
    if task.broadcast(old is not None):
        log.info("nothing changed since the last training")
        if old is not None:
            shutil.rmtree(run.checkpoints, ignore_errors=True)  # left by a kill between the manifest and their removal
        return old or storage.read_record(run.train_json, TrainManifest)
    if ranks.writes:
        run.train_json.unlink(missing_ok=True)
    return _in_scratch(task, inputs, time.monotonic())


def _inputs(run: RunFolder, config: Config) -> Inputs:
    split = storage.read_record(run.split_json, SplitManifest)
    for file, sha256 in ((run.train_jsonl, split.train_sha256), (run.dev_jsonl, split.dev_sha256)):
        storage.check_written(file, sha256, "split")
    if not split.n_train:
        raise ArtifactError(
            "has no rows to train on: it was made of a test file alone",
            "name training questions with data.qa (and no data.trained_on), then run harness split again",
            file=run.split_json,
        )
    device, folder = base_model.device_of(config.device), base_model.resolve(config.model)
    base_model.check_targets(folder, config.train.lora.target_modules)
    weights, tokenizer = base_model.weights_sha256(folder), tokenizer_files_sha256(folder)
    settings = {
        "train": config.train.model_dump(exclude={"seeds"}),
        "prompt": config.prompt.model_dump(),
        "device": device,
    }
    code = storage.code_sha256("harness.stages.train")
    fingerprint = storage.sha256_json([split.split_id, weights, tokenizer, settings, code])
    return Inputs(split, folder, device, weights, fingerprint)


def current(run: RunFolder, config: Config) -> TrainManifest | None:
    """The manifest of a training that need not be done again, else None; without loading torch.

    Raises:
        ArtifactError, ModelError, DeviceError: as in `run`.
    """
    return _current(run, _inputs(run, config))


def _current(run: RunFolder, inputs: Inputs) -> TrainManifest | None:
    def is_whole(trained: TrainManifest) -> bool:
        return run.adapter.is_dir() and base_model.weights_sha256(run.adapter) == trained.adapter_sha256

    return storage.up_to_date(run.train_json, TrainManifest, inputs.fingerprint, is_whole)


def _in_scratch(task: Task, inputs: Inputs, began: float) -> TrainManifest:
    """Trains with Unsloth's compiled code in a scratch folder, and writes the manifest last."""
    # Named so that the next process to lock the run folder removes what a kill left.
    task.run.path.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix=".unsloth.", suffix=".tmp", dir=task.run.path)
    os.environ["UNSLOTH_COMPILE_LOCATION"] = scratch
    try:
        manifest = _fine_tune(task, inputs, began)
        if task.processes.writes:
            storage.write_json(task.run.train_json, manifest)
            shutil.rmtree(task.run.checkpoints, ignore_errors=True)
        task.broadcast(None)
        return manifest
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fine_tune(task: Task, inputs: Inputs, began: float) -> TrainManifest:
    settings = task.settings
    model, tokenizer = load_model(task.folder, settings, task.device, task.processes)
    data = _data(task, Prompter(tokenizer, task.config.prompt))
    plan = _plan(task, model, [len(row.input_ids) for row in data.rows])
    model = add_lora(model, settings, engine=settings.engine, checkpointing=plan.checkpointing)
    resume = task.broadcast(_checkpoint(task, inputs.fingerprint) if task.processes.writes else None)
    _announce(task, data, parameters(model), plan)
    from harness.training.trainer import Recipe

    steps, _ = schedule(len(data.rows), settings)
    history, tracker = _history(task, inputs.fingerprint, data, steps, resume)
    recipe = Recipe(settings, plan, steps, task.run.checkpoints, task.device, task.processes)
    try:
        plan = _fit(task, model, tokenizer, data, recipe, history, resume)
    finally:
        logged = tracker.finish()
        if failure := tracker.problem():
            log.info(f"{failure}; the curves are in {task.run.history_jsonl.name} all the same")
    if task.processes.writes:
        _save(task, model, tokenizer)
    task.broadcast(None)
    base: TrainedBase = {
        "path": task.config.model.path,
        "weights_sha256": inputs.weights_sha256,
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
    }
    outcome = {"wandb": logged, "seconds": time.monotonic() - began, "resumed_from": _step(resume)}
    return _manifest(task, inputs, data, plan, parameters(model), base, history, outcome)


def _fit(
    task: Task,
    model: Any,
    tokenizer: Any,
    data: Data,
    recipe: Any,
    history: HistoryCallback,
    resume: Path | None,
) -> Plan:
    """Trains; returns the plan at the end."""
    from harness.training import trainer as training

    trainer = training.make_trainer(model, tokenizer, data.rows, data.measured, recipe, history)
    history.describe_last_rows = trainer.describe_last_rows
    with saving(task.run.checkpoints):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer.plan


def _manifest(
    task: Task,
    inputs: Inputs,
    data: Data,
    plan: Plan,
    counts: tuple[int, int],
    base: TrainedBase,
    history: HistoryCallback,
    outcome: dict[str, Any],
) -> TrainManifest:
    rows, settings = data.rows, task.settings
    trainable, total = counts
    steps, epochs = schedule(len(rows), settings)
    return TrainManifest(
        fingerprint=inputs.fingerprint,
        split_id=inputs.split.split_id,
        engine=settings.engine,
        device=task.device,
        base={**base, "parameters": total - trainable},
        adapter_sha256=base_model.weights_sha256(task.run.adapter),
        trainable_parameters=trainable,
        trainable_share=trainable / total,
        steps=steps,
        epochs=epochs,
        rows=len(rows),
        prompt=data.prompt,
        rows_cut=sum(r.cut for r in rows),
        rows_without_labels=sum(all(label == IGNORED for label in r.labels) for r in rows),
        labelled_token_share=labelled_share(rows),
        tokens=round(sum(len(r.input_ids) for r in rows) * epochs),
        final_loss=history.last("loss", over=FINAL_LOSSES),
        final_dev_loss=history.last("dev_loss"),
        history_sha256=storage.sha256_file(task.run.history_jsonl) if task.processes.writes else "",
        peak_memory_bytes=peak_memory(task.device),
        plan=PlanFacts(**dataclasses.asdict(plan), devices=task.processes.world),
        **outcome,
    )


def _announce(task: Task, data: Data, counts: tuple[int, int], plan: Plan) -> None:
    """Logs the size of the training and its first prompt."""
    rows, settings, world = data.rows, task.settings, task.processes.world
    trainable, total = counts
    steps, epochs = schedule(len(rows), settings)
    log.info(
        f"{len(rows)} rows, {steps} steps of {settings.batch_size}: {epochs:.2f} epochs; "
        f"trainable {trainable:,} of {total:,} ({trainable / total:.2%}); {labelled_share(rows):.1%} of the tokens carry loss; "
        f"{sum(r.cut for r in rows)} rows cut at {settings.max_length} tokens"
    )
    log.info(
        f"first prompt ({data.prompt.format}, {data.prompt.first_tokens} tokens):\n{data.prompt.opening}{data.prompt.first}"
    )
    if task.device != "cpu" or world > 1:
        log.info(f"on {world} {task.device} device{'s' * (world > 1)}: {plan}")


def _plan(task: Task, model: Any, lengths: list[int]) -> Plan:
    share = -(-task.settings.batch_size // task.processes.world)
    if task.device == "cpu":
        plan = planning.make(None, task.settings, lengths, share, memory_bytes=None, packing=False, graphs=False)
    else:
        from harness.training import packing

        shape = planning.Shape.of(base_model.read_config(task.folder))
        packs = packing.is_supported(model)
        memory = device_memory()
        plan = planning.make(shape, task.settings, lengths, share, memory_bytes=memory, packing=packs, graphs=packs)
    return task.broadcast(plan)


def _checkpoint(task: Task, fingerprint: str) -> Path | None:
    """The newest complete checkpoint of these inputs; those of other inputs are removed."""
    folder, stamp = task.run.checkpoints, task.run.checkpoints / "fingerprint"
    if not stamp.exists() or stamp.read_text() != fingerprint:
        shutil.rmtree(folder, ignore_errors=True)
        storage.write_text(stamp, fingerprint)
        return None
    return newest_readable(folder)


def _step(checkpoint: Path | None) -> int:
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def _history(
    task: Task, fingerprint: str, data: Data, steps: int, resume: Path | None
) -> tuple[HistoryCallback, Tracker]:
    from harness.training.history import HistoryCallback
    from harness.training.tracker import Start, Tracker, chosen

    run, config, writes = task.run, task.config, task.processes.writes
    kind = chosen(config) if writes else Tracker
    tracker = kind(
        Start(
            run.path,
            project=config.wandb.project,
            name=run.name,
            group=run.name,
            run_id=f"{run.name}-{fingerprint[:8]}",
            config=config.model_dump(mode="json"),
        )
    )
    history = HistoryCallback(
        run.history_jsonl if writes else Path(os.devnull),
        tracker,
        tokens_per_epoch=sum(len(r.input_ids) for r in data.rows),
        steps=steps,
        resume_step=_step(resume),
    )
    return history, tracker


def _save(task: Task, model: PreTrainedModel, tokenizer: Any) -> None:
    with storage.atomic_path(task.run.adapter) as temporary:
        model.save_pretrained(temporary, safe_serialization=True)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").unlink(missing_ok=True)
        file = temporary / "adapter_config.json"
        values = json.loads(file.read_text())
        # The base's path on this machine is private, and would not be found elsewhere.
        values["base_model_name_or_path"] = task.config.model.path
        # PEFT writes a set, whose order differs each time.
        values["target_modules"] = sorted(values["target_modules"])
        file.write_text(json.dumps(values, indent=2, sort_keys=True))


# -------------------------------------------------------------------------------------------------------------- rows


def _data(task: Task, prompter: Prompter) -> Data:
    """The training and dev sides as token ids."""
    settings, k = task.settings, task.config.prompt.few_shot
    train = storage.read_records(task.run.train_jsonl, Question)
    measured = sample(storage.read_records(task.run.dev_jsonl, Question), settings.eval_rows)
    if settings.eval_rows and not measured:
        log.info("no dev rows: no loss is measured on questions that are not trained on (set data.dev)")
    shots = few_shot.nearest(train, train, k)
    return Data(
        encode(train, prompter, settings, shots),
        encode(measured, prompter, settings, few_shot.nearest(measured, train, k)),
        prompter.form(train[0].question, shots[0], system_of(train[0])),
    )


def encode(
    questions: list[Question], prompter: Prompter, settings: Train, shots: Sequence[Sequence[Shot]] | None = None
) -> list[Example]:
    """Training rows as token ids and labels; `shots` are each row's few-shot examples."""
    return [
        prompter.example(
            q.question,
            q.answer,
            train_on=settings.train_on,
            max_length=settings.max_length,
            name=q.id,
            shots=shots[i] if shots else (),
            system=system_of(q),
        )
        for i, q in enumerate(questions)
    ]


def labelled_share(rows: Sequence[Example]) -> float:
    """The share of the rows' tokens that carry loss."""
    labelled = sum(label != IGNORED for row in rows for label in row.labels)
    return labelled / max(sum(len(row.input_ids) for row in rows), 1)


def sample(questions: list[Question], n: int) -> list[Question]:
    """`n` of the questions, the same ones whatever the order of the file."""
    return sorted(questions, key=lambda q: storage.sha256_bytes(q.id))[:n]


def schedule(rows: int, settings: Train) -> tuple[int, float]:
    """(optimiser steps, epochs they cover)."""
    steps = settings.max_steps or max(1, round(settings.epochs * rows / settings.batch_size))
    return steps, steps * settings.batch_size / rows
