"""Fine-tuning, and the formats that are written afterwards."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from harness import variants
from harness.config.base import Count, CountOrAuto, Section, Seed
from harness.config.loading import IsPath, one_of

NOT_EXPORTABLE = {"lm_head", "embed_tokens", "embed_in", "wte", "norm"}
"""Modules whose adapters no exported format can hold: output and input weights, which may be tied, and norms, which are not matrices."""
OPTIMIZERS = (
    "adafactor adagrad adalomo adamw_8bit adamw_anyprecision adamw_bnb_8bit adamw_torch adamw_torch_4bit adamw_torch_8bit adamw_torch_fused "
    "adamw_torch_npu_fused adamw_torch_xla ademamix ademamix_8bit apollo_adamw apollo_adamw_layerwise galore_adafactor "
    "galore_adafactor_layerwise galore_adamw galore_adamw_8bit galore_adamw_8bit_layerwise galore_adamw_layerwise grokadamw lion_32bit "
    "lion_8bit lomo paged_adamw_32bit paged_adamw_8bit paged_ademamix_32bit paged_ademamix_8bit paged_lion_32bit paged_lion_8bit rmsprop "
    "rmsprop_bnb rmsprop_bnb_32bit rmsprop_bnb_8bit schedule_free_adamw schedule_free_radam schedule_free_sgd sgd stable_adamw"
).split()
"""transformers' `OptimizerNames` (5.17); some need an additional package."""
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Lora(Section):
    """The adapter."""

    r: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[int, Field(ge=1)] = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: list[str] = PROJECTIONS
    """Linear layers, by the last part of their names."""

    @field_validator("target_modules")
    @classmethod
    def _exportable(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("needs at least one module")
        refused = [name for name in value if name.rpartition(".")[2] in NOT_EXPORTABLE or "norm" in name]
        if refused:
            raise ValueError(f"{refused[0]!r} cannot be exported after training; leave it out")
        return value


class Train(Section):
    """Fine-tuning."""

    engine: Literal["unsloth", "peft"] = "unsloth"
    load_in_4bit: bool = True
    """NF4 with double quantisation (QLoRA); false trains on the 16-bit base."""
    lora: Lora = Lora()
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    max_steps: Count | None = None
    """Optimiser steps; wins over `epochs`, and the epochs it covers are printed."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    batch_size: Count = 8
    """Rows of an optimiser step, over all devices. How a device takes its share is planned from its memory, and does not change the step."""
    micro_batch_size: Count | None = None
    """Rows at once on a device, at most."""
    optimizer: Annotated[str, AfterValidator(one_of("optimizer", OPTIMIZERS))] = "adamw_8bit"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    max_length: Annotated[int, Field(ge=8)] = 2048
    """Tokens of a training row; a longer one loses the end of its answer, never its question."""
    train_on: Literal["answer", "all"] = "answer"
    """Which tokens carry loss: the answer and its end token, or the prompt as well."""
    gradient_checkpointing: bool | None = None
    """Computes activations again in the backward pass instead of keeping them; none: on a GPU, if memory asks for it."""
    packing: bool | None = None
    """Rows end to end without padding, attention within each row; none: on a GPU that can."""
    cuda_graphs: bool | None = None
    """Replays packed steps as CUDA graphs; none: where activations are kept."""
    memory_limit_gib: Annotated[float, Field(gt=0)] | None = None
    """Device memory to plan with; none: what is free."""
    group_by_length: bool = False
    """Rows of similar length share a batch: less padding, but a data order that is not fully random."""
    seed: Seed = 3407
    seeds: list[Seed] = []
    """Several: the recipe is trained with each, the first in this run, and compared as one variant with the mean over them (`harness run --seeds N`)."""
    log_every: Count = 1
    eval_every: Count = 50
    """Steps between measurements of the loss on dev."""
    eval_rows: Annotated[int, Field(ge=0)] = 64
    """Dev rows whose loss is measured; 0: none."""
    save_every: Count = 100
    """Steps between checkpoints."""

    @model_validator(mode="before")
    @classmethod
    def _first_seed(cls, values: Any) -> Any:
        seeds = values.get("seeds") if isinstance(values, dict) else None
        return values | {"seed": seeds[0]} if isinstance(seeds, list) and seeds and "seed" not in values else values

    @model_validator(mode="after")
    def _seeds_fit(self) -> Train:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: names a seed twice")
        if self.seeds and self.seed != self.seeds[0]:
            raise ValueError(f"seed {self.seed} is not the first of seeds, {self.seeds[0]}; leave one of the two out")
        return self


class Export(Section):
    """The formats to write; the adapter is always there."""

    formats: list[str] = Field(
        default_factory=lambda: [name for name in variants.defaults() if variants.is_exported(name)]
    )
    llama_cpp: Annotated[str | None, IsPath()] = None
    """A llama.cpp checkout, for architectures that the built-in converter does not write."""
    importance_rows: CountOrAuto = 128
    """Training rows that the importance matrix of small GGUF types (q3_k_m, q2_k, iq4_xs, q4_k_m) is measured on, at most; 0: none."""

    @field_validator("formats")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        known = variants.exported()
        unknown = [f for f in value if f not in known]
        if unknown:
            raise ValueError(f"unknown format {unknown[0]!r}; known: {', '.join(known)}")
        return value
