"""TRL's SFTTrainer over rows that are token ids already, with the harness's own optimiser step."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from harness.config import Train
from harness.errors import TrainingError
from harness.prompt import IGNORED, Example
from harness.training.checkpoints import seal
from harness.training.distributed import Processes
from harness.training.flat_parameters import Flat
from harness.training.plan import Plan
from harness.training.rows import ByLength, collate
from harness.training.step import Stepper

if TYPE_CHECKING:
    from transformers import TrainingArguments

CHECKPOINTS_KEPT = 2
NAMES_SHOWN = 8
"""Rows named in an error about a step."""


@dataclass(frozen=True)
class Recipe:
    """How to train, apart from model and rows."""

    settings: Train
    plan: Plan
    steps: int
    """Optimiser steps."""
    checkpoints: Path
    """Folder for the checkpoints."""
    device: str
    """`cpu` or `cuda`."""
    processes: Processes = Processes()  # noqa: RUF009  # immutable


class StepTrainer(SFTTrainer):
    """An SFTTrainer whose batches are whole optimiser steps, cut into micro-batches by the plan. It renders, tokenises and truncates nothing.

    Args:
        recipe: how to train.
        lengths: tokens of each training row.
        pad_id: fills rows.
        options: see SFTTrainer.
    """

    def __init__(self, *, recipe: Recipe, lengths: Sequence[int], pad_id: int, **options: Any):
        # Before the base class, which calls the methods below.
        self.recipe, self.lengths, self.pad_id = recipe, lengths, pad_id
        self.stepper: Stepper | None = None
        self.flat: Flat | None = None
        super().__init__(**options)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimiser that the settings name; over a few large tensors where every tensor costs a kernel launch."""
        optimizer: Any = super().create_optimizer(model)
        trained: Any = self.model
        if self.flat is None and (self.recipe.device == "cuda" or self.recipe.processes.world > 1):
            self.flat = Flat(p for p in trained.parameters() if p.requires_grad)
            if getattr(optimizer, "optimizer_name", "") == "adam" and optimizer.args.optim_bits == 8:
                self.flat.fuse_small_updates(optimizer)
        return optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The order of the rows, independent of all other uses of random numbers."""
        settings = self.recipe.settings
        if settings.group_by_length:
            return ByLength(self.lengths, settings.batch_size, settings.seed)
        return super()._get_train_sampler(train_dataset)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's own loss: TRL's fused loss is a Triton kernel, which Unsloth replaces and a CPU cannot run."""
        inputs = {name: value for name, value in inputs.items() if name != "rows"} | {"use_cache": False}
        return Trainer.compute_loss(
            self, model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward pass of a whole step."""
        # `train()` walks all modules (7 ms at 8B): called only at the first step and after an evaluation.
        if self.stepper is None or not model.training:
            model.train()
        if self.stepper is None:
            self.stepper = self._make_stepper(model)
        return self.stepper.step(self._share, model, inputs["rows"], num_items_in_batch)

    def _make_stepper(self, model: Any) -> Stepper:
        return Stepper(
            model,
            self.recipe.plan,
            pad_id=self.pad_id,
            longest=max(self.lengths),
            device=self.args.device,
            flat=self.flat,
            rank=self.recipe.processes.rank,
            world=self.recipe.processes.world,
            backward=self.accelerator.backward,
        )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Logs the loss of the measured rows: the mean over all labelled tokens, as in a step.

        The stock trainer averages the means of batches, which changes with their size, and so with the plan.
        """
        model: Any = self.model
        model.eval()
        summed, count = 0.0, 0
        # A loader draws from the same generator as dropout.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for inputs in self.get_eval_dataloader():
                tensors = {name: value for name, value in self._prepare_inputs(inputs).items() if name != "rows"}
                part, labelled = self._summed(model, tensors)
                summed, count = summed + part, count + labelled
        metrics = {"eval_loss": summed / count} if count else {}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _summed(self, model: Any, inputs: dict[str, torch.Tensor]) -> tuple[float, int]:
        """(loss summed over the labelled tokens, their number); halves the rows where memory runs out."""
        labelled = int((inputs["labels"][:, 1:] != IGNORED).sum())
        if not labelled:
            return 0.0, 0
        with contextlib.suppress(torch.OutOfMemoryError), self.compute_loss_context_manager():
            items = torch.tensor(labelled, device=self.args.device)
            return float(self._share(model, inputs, items)) * labelled, labelled
        n = len(inputs["labels"])
        if n == 1:
            raise TrainingError(
                "the device is out of memory with a single row of the measured loss",
                "lower train.max_length, or set train.eval_rows=0",
            )
        halves = [
            self._summed(model, {name: tensor[part] for name, tensor in inputs.items()})
            for part in (slice(n // 2), slice(n // 2, n))
        ]
        return halves[0][0] + halves[1][0], labelled

    @property
    def plan(self) -> Plan:
        """The plan at the end of training."""
        return self.stepper.plan if self.stepper else self.recipe.plan

    def describe_last_rows(self) -> str:
        """The names of the rows of the last step, to be added to a message."""
        names = self.stepper.last if self.stepper else []
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        return ", rows " + ", ".join(names[:NAMES_SHOWN]) + more

    def _share(self, model: Any, inputs: dict[str, Any], items: Any) -> torch.Tensor:
        return self.compute_loss(model, inputs, num_items_in_batch=items)


class Seal(TrainerCallback):
    """Seals each checkpoint once its last file is written."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After the trainer's own files."""
        if state.is_world_process_zero:
            seal(self.folder / f"checkpoint-{state.global_step}")


def make_trainer(
    model: Any, tokenizer: Any, rows: list[Example], measured: list[Example], recipe: Recipe, callback: Any
) -> StepTrainer:
    """The trainer for these rows; `measured` are rows whose loss is logged during training, `callback` gets every log."""
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    by_length = sorted(measured, key=lambda e: len(e.input_ids))  # little padding
    trainer = StepTrainer(
        recipe=recipe,
        lengths=[len(e.input_ids) for e in rows],
        pad_id=pad_id,
        model=model,
        processing_class=tokenizer,
        args=_arguments(model, measured, recipe),
        data_collator=functools.partial(collate, pad_id),
        train_dataset=_dataset(rows),
        eval_dataset=_dataset(by_length) if measured else None,
        callbacks=[callback, Seal(recipe.checkpoints)],
    )
    if recipe.processes.world > 1:
        _give_every_process_whole_steps(trainer.accelerator)
    # TRL rounds the LoRA weights of a quantised model to bf16, in which small updates are lost. PEFT loads those of a checkpoint in f32, so
    # that a resumed training would differ from one that was never interrupted.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def _dataset(examples: Sequence[Example]) -> Dataset:
    columns = {
        "input_ids": [e.input_ids for e in examples],
        "labels": [e.labels for e in examples],
        "name": [e.name for e in examples],
    }
    return Dataset.from_dict(columns)


def _arguments(model: Any, measured: Sequence[Example], recipe: Recipe) -> TrainingArguments:
    settings, plan, device = recipe.settings, recipe.plan, recipe.device
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    mixed = device == "cuda"
    longest = max((len(e.input_ids) for e in measured), default=1)
    arguments: TrainingArguments = SFTConfig(
        output_dir=str(recipe.checkpoints),
        max_steps=recipe.steps,
        per_device_train_batch_size=settings.batch_size,
        # Padded, and within the plan's tokens.
        per_device_eval_batch_size=min(settings.batch_size, plan.rows, max(plan.tokens // longest, 1)),
        gradient_accumulation_steps=1,
        average_tokens_across_devices=False,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=settings.warmup_steps,
        optim="adamw_torch" if device == "cpu" and "8bit" in settings.optimizer else settings.optimizer,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        gradient_checkpointing=plan.checkpointing,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=mixed and dtype == torch.bfloat16,
        fp16=mixed and dtype == torch.float16,
        use_cpu=device == "cpu",
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        eval_strategy="steps" if measured else "no",
        eval_steps=settings.eval_every,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=CHECKPOINTS_KEPT,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_num_workers=0,
    )
    if arguments.n_gpu > 1:
        # One process trains on one GPU. If others are visible, the stock trainer would take more rows a step, and TRL refuses.
        arguments.__dict__["_n_gpu"] = 1
    if device == "cpu" and recipe.processes.world > 1:
        # Accelerate sets `cpu:0`, `cpu:1`, ..., which torch.load rejects when it reads a checkpoint's states.
        arguments.__dict__["_setup_devices"] = torch.device("cpu")
    return arguments


def _give_every_process_whole_steps(accelerator: Any) -> None:
    """Every process gets the rows of whole steps and takes its share there: the same rows as on one device, including the last batch of an epoch.

    Accelerate would distribute batches, pad the last one with rows of the first, and average gradients as if the shares were equal.
    """
    from accelerate.data_loader import prepare_data_loader

    def whole(loader: Any, **_: Any) -> Any:
        options = accelerator.dataloader_config
        return prepare_data_loader(
            loader,
            accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            rng_types=list(accelerator.rng_types or []),
            use_seedable_sampler=options.use_seedable_sampler,
            data_seed=options.data_seed,
        )

    accelerator.prepare_data_loader = whole
    # Without the wrapper that reduces gradients, which the step does itself.
    accelerator.prepare_model = functools.partial(accelerator.prepare_model, evaluation_mode=True)
