"""split, base model -> adapter/, history.jsonl, train.json: QLoRA through Unsloth and TRL, resumable.

Training has this process to itself: a model that answered before it is trained in one process can train wrongly on some CPUs
(bitsandbytes packs its 4-bit weights on the first forward without gradients).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import base, store
from harness.config import Config, Train
from harness.errors import HarnessError, ModelError, TrainingError
from harness.prompt import Example, Prompter, load_tokenizer, tokenizer_sha256
from harness.records import Question, SplitManifest, TrainManifest
from harness.store import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

SOURCES = ("prompt.py", "stages/train.py")


def run(run: RunFolder, config: Config, *, progress: Callable[[str], None] = lambda _: None, force: bool = False) -> TrainManifest:
    """Fine-tunes the base model on the training questions.

    Goes on from the last checkpoint if one of the same inputs is there. Unchanged inputs: does nothing.

    Raises:
        ArtifactError: no split; ModelError: the base cannot be used; DeviceError: no CUDA where the config needs it;
        TrainingError: the loss is no number (the last good checkpoint is kept); StorageError: nowhere to write.
    """
    base.quiet_libraries()
    split = store.read_record(run.split_json, SplitManifest)
    device = base.device_of(config.device)
    folder = base.resolve(config.model)
    weights = base.weights_sha256(folder)
    settings = {"train": config.train.model_dump(), "prompt": config.prompt.model_dump(), "device": device}
    fingerprint = store.sha256_json([split.split_id, weights, settings, store.source_sha256(*SOURCES)])
    if not force and run.train_json.exists():
        old = store.read_record(run.train_json, TrainManifest)
        if old.fingerprint == fingerprint and run.adapter.is_dir() and base.weights_sha256(run.adapter) == old.adapter_sha256:
            progress("nothing changed since the last training")
            os.utime(run.train_json)
            return old
    run.train_json.unlink(missing_ok=True)
    began = time.monotonic()
    return _Training(run, config, folder, device, progress).go(fingerprint, split, weights, began)


class _Training:
    """One training, from the rows to the manifest."""

    def __init__(self, run: RunFolder, config: Config, folder: Path, device: str, progress: Callable[[str], None]):
        self.run, self.config, self.settings, self.folder, self.device, self.progress = run, config, config.train, folder, device, progress

    def go(self, fingerprint: str, split: SplitManifest, weights: str, began: float) -> TrainManifest:
        settings = self.settings
        scratch = tempfile.mkdtemp(prefix="harness-unsloth-")
        os.environ["UNSLOTH_COMPILE_LOCATION"] = scratch
        try:
            model, tokenizer = load_model(self.folder, settings, self.device)
            model = add_lora(model, settings, engine=settings.engine)
            prompter = Prompter(tokenizer, self.config.prompt.template)
            rows = encode(store.read_records(self.run.train_jsonl, Question), prompter, settings)
            heldout = encode(sample(store.read_records(self.run.heldout_jsonl, Question), settings.eval_rows), prompter, settings)
            tokens = sum(len(r.input_ids) for r in rows)
            steps, epochs = plan(len(rows), settings)
            resume = self._checkpoint(fingerprint)
            trainable, total = parameters(model)
            labelled = sum(sum(label != -100 for label in r.labels) for r in rows) / max(tokens, 1)
            self.progress(
                f"{len(rows)} rows, {steps} steps of {settings.micro_batch_size} x {settings.gradient_accumulation_steps}: {epochs:.2f} epochs; "
                f"trainable {trainable:,} of {total:,} ({trainable / total:.2%}); {labelled:.1%} of the tokens carry loss; "
                f"{sum(r.cut for r in rows)} rows cut at {settings.max_length} tokens"
            )
            history, wandb = self._history(fingerprint, tokens, steps, resume)
            try:
                trainer = make_trainer(model, tokenizer, rows, heldout, settings, steps, self.run.checkpoints, self.device, history)
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
            except (HarnessError, KeyboardInterrupt):
                raise
            except RuntimeError as error:
                if "out of memory" in str(error).lower():
                    raise TrainingError(
                        "the device is out of memory", "lower train.micro_batch_size and raise train.gradient_accumulation_steps"
                    ) from error
                raise
            finally:
                logged = wandb.finish()
            self._save(model, tokenizer)
            manifest = TrainManifest(
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
                adapter_sha256=base.weights_sha256(self.run.adapter),
                trainable_parameters=trainable,
                trainable_share=trainable / total,
                steps=steps,
                epochs=epochs,
                rows=len(rows),
                rows_cut=sum(r.cut for r in rows),
                rows_without_labels=sum(all(label == -100 for label in r.labels) for r in rows),
                labelled_token_share=labelled,
                tokens=round(tokens * epochs),
                final_loss=history.last("loss", over=20),
                final_heldout_loss=history.last("heldout_loss"),
                wandb=logged,
                seconds=time.monotonic() - began,
                peak_memory_bytes=peak_memory(self.device),
                resumed_from=int(resume.name.rpartition("-")[2]) if resume else 0,
            )
            store.write_json(self.run.train_json, manifest)
            shutil.rmtree(self.run.checkpoints, ignore_errors=True)
            return manifest
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _checkpoint(self, fingerprint: str) -> Path | None:
        """The newest complete checkpoint of these inputs; those of other inputs are removed."""
        folder, stamp = self.run.checkpoints, self.run.checkpoints / "fingerprint"
        if not stamp.exists() or stamp.read_text() != fingerprint:
            shutil.rmtree(folder, ignore_errors=True)
            store.write_text(stamp, fingerprint)
            return None
        # trainer_state.json is the last file that the trainer writes into a checkpoint.
        found = [p for p in folder.glob("checkpoint-*") if (p / "trainer_state.json").exists()]
        newest = max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)
        if newest:
            self.progress(f"going on from {newest.name}")
        return newest

    def _history(self, fingerprint: str, tokens: int, steps: int, resume: Path | None) -> tuple[Any, Any]:
        from harness.history import HistoryCallback, WandbLog

        wandb = WandbLog(
            self.run.path,
            project=self.config.wandb.project,
            name=self.run.name,
            group=self.run.name,
            run_id=f"{self.run.name}-{fingerprint[:8]}",
            config=self.config.model_dump(mode="json"),
            enabled=self.config.wandb.enabled,
        )
        resume_step = int(resume.name.rpartition("-")[2]) if resume else 0
        history = HistoryCallback(
            self.run.history_jsonl, wandb, tokens_per_epoch=tokens, steps=steps, progress=self.progress, resume_step=resume_step
        )
        return history, wandb

    def _save(self, model: PreTrainedModel, tokenizer: Any) -> None:
        with store.atomic_path(self.run.adapter) as temporary:
            model.save_pretrained(temporary, safe_serialization=True)
            tokenizer.save_pretrained(temporary)
            (temporary / "README.md").unlink(missing_ok=True)
            # Where the base stood on this machine is nobody's business, and would not be found elsewhere.
            file = temporary / "adapter_config.json"
            file.write_text(
                json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": self.config.model.path}, indent=2, sort_keys=True)
            )


# -------------------------------------------------------------------------------------------------------------- rows


def encode(questions: list[Question], prompter: Prompter, settings: Train) -> list[Example]:
    """Training rows as token ids and labels."""
    return [prompter.example(q.question, q.answer, train_on=settings.train_on, max_length=settings.max_length) for q in questions]


def sample(questions: list[Question], n: int) -> list[Question]:
    """`n` of the questions, the same ones whatever the order of the file."""
    return sorted(questions, key=lambda q: store.sha256_bytes(q.id))[:n]


def plan(rows: int, settings: Train) -> tuple[int, float]:
    """(optimiser steps, epochs they cover)."""
    batch = settings.micro_batch_size * settings.gradient_accumulation_steps
    steps = settings.max_steps or max(1, round(settings.epochs * rows / batch))
    return steps, steps * batch / rows


# ------------------------------------------------------------------------------------------------------------- model


def load_model(folder: Path, settings: Train, device: str) -> tuple[Any, Any]:
    """(model, tokenizer) with the base loaded for training, in NF4 if the settings say so."""
    if settings.engine == "unsloth":
        # Without flash attention the padding-free layout runs attention row by row: see the docs on speed.
        os.environ.setdefault("UNSLOTH_DISABLE_AUTO_PADDING_FREE", "1")
        import unsloth  # noqa: F401  # before transformers, which it patches
    tokenizer = load_tokenizer(folder)
    longest = base.read_config(folder).get("max_position_embeddings", settings.max_length)
    if settings.max_length > longest:
        raise ModelError(
            f"takes {longest} tokens and train.max_length is {settings.max_length}",
            f"set train.max_length to {longest} or less",
            file=folder,
        )
    import torch

    dtype = torch.float32 if device == "cpu" else torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if settings.engine == "unsloth":
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(
            model_name=str(folder),
            max_seq_length=settings.max_length,
            load_in_4bit=settings.load_in_4bit,
            dtype=dtype,
            use_exact_model_name=True,
        )
        return model, tokenizer
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map=device, quantization_config=quantised if settings.load_in_4bit else None
    )
    return model, tokenizer


def add_lora(model: Any, settings: Train, *, engine: str) -> Any:
    """The model with LoRA layers on it, nothing else trainable, and gradients that reach them."""
    lora = settings.lora
    if engine == "unsloth":
        from unsloth import FastLanguageModel

        model = FastLanguageModel.get_peft_model(
            model, r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.target_modules, bias="none",
            use_gradient_checkpointing="unsloth" if settings.gradient_checkpointing else False, random_state=settings.seed,
        )  # fmt: skip
    else:
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
        from transformers import set_seed

        set_seed(settings.seed)
        if settings.load_in_4bit:
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=settings.gradient_checkpointing)
        model = get_peft_model(
            model,
            LoraConfig(
                r=lora.r,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=lora.target_modules,
                bias="none",
                task_type="CAUSAL_LM",
            ),
        )
    keep_gradients(model)
    return model


def keep_gradients(model: Any) -> None:
    """Stops bitsandbytes from packing 4-bit weights for AVX512-BF16 CPUs: packed on a forward without gradients, they have none later."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def parameters(model: Any) -> tuple[int, int]:
    """(trainable, total) parameters; 4-bit ones counted unpacked."""
    trainable, total = model.get_nb_trainable_parameters()
    return int(trainable), int(total)


def make_trainer(
    model: Any,
    tokenizer: Any,
    rows: list[Example],
    heldout: list[Example],
    settings: Train,
    steps: int,
    checkpoints: Path,
    device: str,
    callback: Any,
) -> Any:
    """TRL's SFTTrainer over rows that are token ids already: it renders, tokenises and truncates nothing."""
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback, Trainer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    class PlainTrainer(SFTTrainer):
        """With the model's own loss: TRL's fused one is a Triton kernel, which Unsloth replaces and a CPU cannot run."""

        compute_loss = Trainer.compute_loss

    def dataset(examples: list[Example]) -> Dataset:
        return Dataset.from_dict({"input_ids": [e.input_ids for e in examples], "labels": [e.labels for e in examples]})

    bf16 = device == "cuda" and next(p.dtype for p in model.parameters() if p.is_floating_point()).itemsize == 2
    arguments: TrainingArguments = SFTConfig(
        output_dir=str(checkpoints), max_steps=steps, per_device_train_batch_size=settings.micro_batch_size, per_device_eval_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps, learning_rate=settings.learning_rate, lr_scheduler_type=settings.scheduler,
        warmup_steps=settings.warmup_steps, optim="adamw_torch" if device == "cpu" and "8bit" in settings.optimizer else settings.optimizer,
        weight_decay=settings.weight_decay, max_grad_norm=settings.max_grad_norm, gradient_checkpointing=settings.gradient_checkpointing,
        seed=settings.seed, data_seed=settings.seed, bf16=bf16, fp16=False, use_cpu=device == "cpu",
        logging_steps=settings.log_every, logging_nan_inf_filter=False, report_to="none", disable_tqdm=True,
        eval_strategy="steps" if heldout else "no", eval_steps=settings.eval_every, save_strategy="steps", save_steps=settings.save_every, save_total_limit=2,
        train_sampling_strategy="group_by_length" if settings.group_by_length else "random",
        max_length=None, packing=False, dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False, dataloader_num_workers=0,
    )  # fmt: skip
    kind = PlainTrainer if device == "cpu" and settings.engine == "peft" else SFTTrainer
    trainer = kind(
        model=model,
        processing_class=tokenizer,
        args=arguments,
        train_dataset=dataset(rows),
        eval_dataset=dataset(heldout) if heldout else None,
        callbacks=[callback],
    )
    # TRL rounds the LoRA weights of a quantised model to bf16, in which small updates are lost; and as PEFT loads a checkpoint's in f32, a
    # resumed training would not be the one that was interrupted.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def peak_memory(device: str) -> int:
    """Bytes: peak allocated device memory on a GPU, peak resident memory of this process on the CPU."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
