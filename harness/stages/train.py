"""train and dev sides, base model -> adapter/, history.jsonl, train.json: QLoRA through Unsloth and TRL, resumable.

Training has this process to itself: a model that answered before it is trained in one process can train wrongly on some CPUs
(bitsandbytes packs its 4-bit weights on the first forward without gradients).
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import storage
from harness.config import Config, Train
from harness.errors import ArtifactError
from harness.models import base_model
from harness.prompt import IGNORED, Example, Prompter, tokenizer_sha256
from harness.questions.asking import asked
from harness.records import Question, SplitManifest, TrainManifest
from harness.storage import RunFolder
from harness.training import plan as planning
from harness.training.checkpoints import is_readable, remove_torn_states, saving
from harness.training.distributed import Processes, broadcast, processes
from harness.training.model import add_lora, device_memory, load_model, parameters, peak_memory
from harness.training.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SOURCES = ("prompt.py", "training", "stages/train.py")


def run(
    run: RunFolder, config: Config, *, progress: Callable[[str], None] = lambda _: None, force: bool = False
) -> TrainManifest:
    """Fine-tunes the base model on the training questions.

    Goes on from the last checkpoint if one of the same inputs is there. Unchanged inputs: does nothing. Under torchrun each process takes its
    share of every step's rows, and the first of them writes.

    Raises:
        ArtifactError: no split, or one without training rows; ModelError: the base cannot be used; DeviceError: no CUDA where the config needs it;
        TrainingError: the loss is no number (the last good checkpoint is kept); StorageError: nowhere to write.
    """
    base_model.quiet_libraries()
    split = storage.read_record(run.split_json, SplitManifest)
    for file, sha256 in ((run.train_jsonl, split.train_sha256), (run.dev_jsonl, split.dev_sha256)):
        storage.check_written(file, sha256, "split")
    if not split.n_train:
        raise ArtifactError(
            "has no rows to train on: it was made of a test file alone",
            "name training questions with data.qa (and no data.trained_on), then run harness split again",
            file=run.split_json,
        )
    device = base_model.device_of(config.device)
    folder = base_model.resolve(config.model)
    weights = base_model.weights_sha256(folder)
    settings = {"train": config.train.model_dump(), "prompt": config.prompt.model_dump(), "device": device}
    fingerprint = storage.sha256_json([split.split_id, weights, settings, storage.source_sha256(*SOURCES)])
    among = processes()
    old = None if force or not among.writes else _finished(run, fingerprint)
    if broadcast(old is not None, among, cpu=device == "cpu"):
        progress("nothing changed since the last training")
        if old is not None:
            os.utime(run.train_json)
            shutil.rmtree(run.checkpoints, ignore_errors=True)  # a kill came between the manifest and their end
        return old or storage.read_record(run.train_json, TrainManifest)
    if among.writes:
        run.train_json.unlink(missing_ok=True)
    began = time.monotonic()
    return _Training(run, config, folder, device, progress if among.writes else lambda _: None, among).go(
        fingerprint, split, weights, began
    )


def _finished(run: RunFolder, fingerprint: str) -> TrainManifest | None:
    """The manifest of an earlier training on exactly these inputs, if its adapter is whole."""
    if not run.train_json.exists() or not run.adapter.is_dir():
        return None
    old = storage.read_record(run.train_json, TrainManifest)
    return (
        old if old.fingerprint == fingerprint and base_model.weights_sha256(run.adapter) == old.adapter_sha256 else None
    )


class _Training:
    """One training, from the rows to the manifest."""

    def __init__(
        self,
        run: RunFolder,
        config: Config,
        folder: Path,
        device: str,
        progress: Callable[[str], None],
        among: Processes,
    ):
        self.run, self.config, self.settings, self.folder, self.device, self.progress = (
            run,
            config,
            config.train,
            folder,
            device,
            progress,
        )
        self.among = among

    def go(self, fingerprint: str, split: SplitManifest, weights: str, began: float) -> TrainManifest:
        # Named so that whoever locks the folder next removes what a kill left.
        self.run.path.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(prefix=".unsloth.", suffix=".tmp", dir=self.run.path)
        os.environ["UNSLOTH_COMPILE_LOCATION"] = scratch
        try:
            manifest = self._train(fingerprint, split, weights, began)
            if self.among.writes:
                storage.write_json(self.run.train_json, manifest)
                shutil.rmtree(self.run.checkpoints, ignore_errors=True)
            broadcast(None, self.among, cpu=self.device == "cpu")
            return manifest
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _train(self, fingerprint: str, split: SplitManifest, weights: str, began: float) -> TrainManifest:
        settings = self.settings
        model, tokenizer = load_model(self.folder, settings, self.device, self.among)
        prompter = Prompter(tokenizer, self.config.prompt.template)
        rows = encode(storage.read_records(self.run.train_jsonl, Question), prompter, settings)
        dev = encode(sample(storage.read_records(self.run.dev_jsonl, Question), settings.eval_rows), prompter, settings)
        if settings.eval_rows and not dev:
            self.progress("no dev rows: no loss is measured on questions that are not trained on (set data.dev)")
        plan = self._plan(model, [len(row.input_ids) for row in rows])
        model = add_lora(model, settings, engine=settings.engine, checkpointing=plan.checkpointing)
        tokens = sum(len(r.input_ids) for r in rows)
        steps, epochs = schedule(len(rows), settings)
        resume = broadcast(
            self._checkpoint(fingerprint) if self.among.writes else None, self.among, cpu=self.device == "cpu"
        )
        trainable, total = parameters(model)
        labelled = sum(sum(label != IGNORED for label in r.labels) for r in rows) / max(tokens, 1)
        self.progress(
            f"{len(rows)} rows, {steps} steps of {settings.batch_size}: {epochs:.2f} epochs; "
            f"trainable {trainable:,} of {total:,} ({trainable / total:.2%}); {labelled:.1%} of the tokens carry loss; "
            f"{sum(r.cut for r in rows)} rows cut at {settings.max_length} tokens"
        )
        if self.device != "cpu" or self.among.world > 1:
            self.progress(f"on {self.among.world} {self.device} device{'s' * (self.among.world > 1)}: {plan}")
        from harness.training import trainer as training

        history, wandb = self._history(fingerprint, tokens, steps, resume)
        try:
            trainer = training.make_trainer(
                model,
                tokenizer,
                rows,
                dev,
                settings,
                plan,
                steps,
                self.run.checkpoints,
                self.device,
                history,
                self.progress,
                self.among,
            )
            history.describe_last_rows = trainer.describe_last_rows
            with saving(self.run.checkpoints):
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        finally:
            logged = wandb.finish()
        if self.among.writes:
            self._save(model, tokenizer)
        broadcast(None, self.among, cpu=self.device == "cpu")
        return TrainManifest(
            fingerprint=fingerprint,
            split_id=split.split_id,
            engine=settings.engine,
            device=self.device,
            base={
                "path": self.config.model.path,
                "weights_sha256": weights,
                "tokenizer_sha256": tokenizer_sha256(tokenizer),
                "parameters": total - trainable,
            },
            adapter_sha256=base_model.weights_sha256(self.run.adapter),
            trainable_parameters=trainable,
            trainable_share=trainable / total,
            steps=steps,
            epochs=epochs,
            rows=len(rows),
            rows_cut=sum(r.cut for r in rows),
            rows_without_labels=sum(all(label == IGNORED for label in r.labels) for r in rows),
            labelled_token_share=labelled,
            tokens=round(tokens * epochs),
            final_loss=history.last("loss", over=20),
            final_dev_loss=history.last("dev_loss"),
            history_sha256=storage.sha256_file(self.run.history_jsonl) if self.among.writes else "",
            wandb=logged,
            seconds=time.monotonic() - began,
            peak_memory_bytes=peak_memory(self.device),
            resumed_from=int(resume.name.rpartition("-")[2]) if resume else 0,
            plan={**dataclasses.asdict(trainer.plan), "devices": self.among.world},
        )

    def _plan(self, model: Any, lengths: list[int]) -> Plan:
        share = -(-self.settings.batch_size // self.among.world)
        if self.device == "cpu":
            plan = planning.make(None, self.settings, lengths, share, memory_bytes=None, packing=False, graphs=False)
        else:
            from harness.training import packing

            shape = planning.Shape.of(base_model.read_config(self.folder))
            packs = packing.is_supported(model)
            plan = planning.make(
                shape, self.settings, lengths, share, memory_bytes=device_memory(), packing=packs, graphs=packs
            )
        return broadcast(plan, self.among, cpu=self.device == "cpu")

    def _checkpoint(self, fingerprint: str) -> Path | None:
        """The newest complete checkpoint of these inputs; those of other inputs are removed."""
        folder, stamp = self.run.checkpoints, self.run.checkpoints / "fingerprint"
        if not stamp.exists() or stamp.read_text() != fingerprint:
            shutil.rmtree(folder, ignore_errors=True)
            storage.write_text(stamp, fingerprint)
            return None
        for newest in sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True):
            if is_readable(newest):
                remove_torn_states(newest)
                self.progress(f"going on from {newest.name}")
                return newest
            self.progress(f"passing over {newest.name}, which is damaged")
            shutil.rmtree(newest)
        return None

    def _history(self, fingerprint: str, tokens: int, steps: int, resume: Path | None) -> tuple[Any, Any]:
        from harness.training.history import HistoryCallback
        from harness.training.wandb_log import WandbLog

        wandb = WandbLog(
            self.run.path,
            project=self.config.wandb.project,
            name=self.run.name,
            group=self.run.name,
            run_id=f"{self.run.name}-{fingerprint[:8]}",
            config=self.config.model_dump(mode="json"),
            enabled=self.config.wandb.enabled and self.among.writes,
        )
        resume_step = int(resume.name.rpartition("-")[2]) if resume else 0
        history = HistoryCallback(
            self.run.history_jsonl if self.among.writes else Path(os.devnull),
            wandb,
            tokens_per_epoch=tokens,
            steps=steps,
            progress=self.progress,
            resume_step=resume_step,
        )
        return history, wandb

    def _save(self, model: PreTrainedModel, tokenizer: Any) -> None:
        with storage.atomic_path(self.run.adapter) as temporary:
            model.save_pretrained(temporary, safe_serialization=True)
            tokenizer.save_pretrained(temporary)
            (temporary / "README.md").unlink(missing_ok=True)
            file = temporary / "adapter_config.json"
            values = json.loads(file.read_text())
            # Where the base stood on this machine is nobody's business, and would not be found elsewhere.
            values["base_model_name_or_path"] = self.config.model.path
            # PEFT writes a set, in another order each time.
            values["target_modules"] = sorted(values["target_modules"])
            file.write_text(json.dumps(values, indent=2, sort_keys=True))


# -------------------------------------------------------------------------------------------------------------- rows


def encode(questions: list[Question], prompter: Prompter, settings: Train) -> list[Example]:
    """Training rows as token ids and labels."""
    return [
        prompter.example(asked(q), q.answer, train_on=settings.train_on, max_length=settings.max_length, name=q.id)
        for q in questions
    ]


def sample(questions: list[Question], n: int) -> list[Question]:
    """`n` of the questions, the same ones whatever the order of the file."""
    return sorted(questions, key=lambda q: storage.sha256_bytes(q.id))[:n]


def schedule(rows: int, settings: Train) -> tuple[int, float]:
    """(optimiser steps, epochs they cover)."""
    steps = settings.max_steps or max(1, round(settings.epochs * rows / settings.batch_size))
    return steps, steps * settings.batch_size / rows
