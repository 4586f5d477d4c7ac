"""TRL's SFTTrainer over rows that are token ids already, with the harness's own step."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

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


def make_trainer(
    model: Any,
    tokenizer: Any,
    rows: list[Example],
    dev: list[Example],
    settings: Train,
    plan: Plan,
    steps: int,
    checkpoints: Path,
    device: str,
    callback: Any,
    told: Callable[[str], None] = lambda _: None,
    processes: Processes = Processes(),  # noqa: B008  # immutable
) -> Any:
    """An SFTTrainer that renders, tokenises and truncates nothing; each of its batches is one optimiser step, cut by `plan`."""
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    class StepTrainer(SFTTrainer):
        """Whole steps from the loader, micro-batches from the plan."""

        stepper: Stepper | None = None
        flat: Flat | None = None

        def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
            """The optimiser that the settings name, over few large tensors where there is a kernel to start for each."""
            optimizer: Any = super().create_optimizer(model)
            trained: Any = self.model
            if self.flat is None and (device == "cuda" or processes.world > 1):
                self.flat = Flat(p for p in trained.parameters() if p.requires_grad)
                if getattr(optimizer, "optimizer_name", "") == "adam" and optimizer.args.optim_bits == 8:
                    self.flat.fuse_small_updates(optimizer)
            return optimizer

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            """The order of the rows, the same whatever else draws random numbers."""
            if settings.group_by_length:
                return ByLength([len(e.input_ids) for e in rows], settings.batch_size, settings.seed)
            return super()._get_train_sampler(train_dataset)

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """The model's own loss: TRL's fused one is a Triton kernel, which Unsloth replaces and a CPU cannot run."""
            inputs = {name: value for name, value in inputs.items() if name != "rows"} | {"use_cache": False}
            return Trainer.compute_loss(
                self, model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )

        def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
            """Forward and backward of a whole step."""
            # Goes through all modules, 7 ms for 8B: first, and behind an evaluation.
            if self.stepper is None or not model.training:
                model.train()
            if self.stepper is None:
                longest = max(len(e.input_ids) for e in rows)
                self.stepper = Stepper(
                    model,
                    plan,
                    pad_id=pad_id,
                    longest=longest,
                    device=self.args.device,
                    told=told,
                    flat=self.flat,
                    rank=processes.rank,
                    world=processes.world,
                    backward=self.accelerator.backward,
                )
            return self.stepper.step(self._share, model, inputs["rows"], num_items_in_batch)

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            """Logs the dev loss: the mean over all labelled tokens, as in a step.

            The stock trainer takes the mean of the batches' means, which changes with their size, and so with the plan.
            """
            model: Any = self.model
            model.eval()
            summed, count = 0.0, 0
            # A loader draws from the generator that dropout draws from.
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                for inputs in self.get_eval_dataloader():
                    parts = self._summed(
                        model, {name: value for name, value in self._prepare_inputs(inputs).items() if name != "rows"}
                    )
                    summed, count = summed + parts[0], count + parts[1]
            metrics = {"eval_loss": summed / count} if count else {}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        def _summed(self, model: Any, inputs: dict[str, torch.Tensor]) -> tuple[float, int]:
            """(loss summed over the labelled tokens, their number); takes rows by halves where memory runs out."""
            labelled = int((inputs["labels"][:, 1:] != IGNORED).sum())
            if not labelled:
                return 0.0, 0
            with contextlib.suppress(torch.OutOfMemoryError), self.compute_loss_context_manager():
                return float(
                    self._share(model, inputs, torch.tensor(labelled, device=self.args.device))
                ) * labelled, labelled
            n = len(inputs["labels"])
            if n == 1:
                raise TrainingError(
                    "the device is out of memory with a single held-out row",
                    "lower train.max_length, or set train.eval_rows=0",
                )
            halves = [
                self._summed(model, {name: tensor[part] for name, tensor in inputs.items()})
                for part in (slice(n // 2), slice(n // 2, n))
            ]
            return halves[0][0] + halves[1][0], labelled

        @property
        def plan(self) -> Plan:
            """The plan as it was in the end."""
            return self.stepper.plan if self.stepper else plan

        def describe_last_rows(self) -> str:
            """Names the rows of the last step, behind a comma."""
            names = self.stepper.last if self.stepper else []
            return ", rows " + ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

        def _share(self, model: Any, inputs: dict[str, Any], items: Any) -> torch.Tensor:
            return self.compute_loss(model, inputs, num_items_in_batch=items)

    class Seal(TrainerCallback):
        """Seals each checkpoint once its last file is written."""

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                seal(checkpoints / f"checkpoint-{state.global_step}")

    def dataset(examples: list[Example]) -> Dataset:
        columns = {
            "input_ids": [e.input_ids for e in examples],
            "labels": [e.labels for e in examples],
            "name": [e.name for e in examples],
        }
        return Dataset.from_dict(columns)

    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    mixed = device == "cuda"
    # Padded, within the plan's tokens too.
    dev_rows = min(
        settings.batch_size, plan.rows, max(plan.tokens // max((len(e.input_ids) for e in dev), default=1), 1)
    )
    arguments: TrainingArguments = SFTConfig(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=dev_rows,
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
        eval_strategy="steps" if dev else "no",
        eval_steps=settings.eval_every,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=2,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_num_workers=0,
    )
    if arguments.n_gpu > 1:
        # One process trains on one GPU. With others in sight the stock trainer would take more rows a step, and TRL refuses.
        arguments.__dict__["_n_gpu"] = 1
    if device == "cpu" and processes.world > 1:
        # Accelerate numbers it, and torch.load, which brings a checkpoint's states to the trainer's device, knows no numbered CPU.
        arguments.__dict__["_setup_devices"] = torch.device("cpu")
    trainer = StepTrainer(
        model=model,
        processing_class=tokenizer,
        args=arguments,
        data_collator=functools.partial(collate, pad_id),
        train_dataset=dataset(rows),
        eval_dataset=dataset(sorted(dev, key=lambda e: len(e.input_ids))) if dev else None,  # little padding
        callbacks=[callback, Seal()],
    )
    if processes.world > 1:
        _whole_batches(trainer.accelerator)
    # TRL rounds the LoRA weights of a quantised model to bf16, in which small updates are lost; and as PEFT loads a checkpoint's in f32, a
    # resumed training would not be the one that was interrupted.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def _whole_batches(accelerator: Any) -> None:
    """Every process gets the whole step and takes its share of the rows there: the same rows as on one device, to the last batch of an epoch.

    Accelerate would deal out batches, fill the last one with rows of the first, and average gradients as if the shares were equal.
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
