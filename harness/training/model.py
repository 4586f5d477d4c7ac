"""The model to train: the base in NF4 or 16 bits, with LoRA layers on it."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

from harness.config import Train
from harness.errors import ModelError
from harness.models import base_model, devices
from harness.prompt import load_tokenizer
from harness.training.distributed import Processes


def load_model(folder: Path, settings: Train, device: str, processes: Processes = Processes()) -> tuple[Any, Any]:  # noqa: B008  # immutable
    """(model, tokenizer) with the base loaded for training, in NF4 if the settings say so.

    Raises:
        ModelError: the base takes fewer tokens than `train.max_length`.
    """
    if settings.engine == "unsloth":
        # Without flash attention the padding-free layout of Unsloth runs attention row by row: see `harness.training.packing`.
        os.environ.setdefault("UNSLOTH_DISABLE_AUTO_PADDING_FREE", "1")
        if device == "cuda" and settings.packing is not False:
            # Compiled blocks would be compiled again for every step's lengths.
            os.environ["UNSLOTH_BLOCK_COMPILE"] = "0"
        import unsloth  # noqa: F401  # before transformers, which it patches
    tokenizer = load_tokenizer(folder)
    longest = base_model.read_config(folder).get("max_position_embeddings", settings.max_length)
    if settings.max_length > longest:
        raise ModelError(
            f"takes {longest} tokens and train.max_length is {settings.max_length}",
            f"set train.max_length to {longest} or less",
            file=folder,
        )
    dtype = devices.compute_dtype(device)
    if device == "cuda":
        import torch

        torch.cuda.set_device(processes.local_rank)
    place = {"": processes.local_rank} if device == "cuda" else device
    if settings.engine == "unsloth":
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(
            model_name=str(folder),
            max_seq_length=settings.max_length,
            load_in_4bit=settings.load_in_4bit,
            dtype=dtype,
            use_exact_model_name=True,
            **({"device_map": place} if device == "cuda" else {}),
        )
        return model, tokenizer
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map=place, quantization_config=quantised if settings.load_in_4bit else None
    )
    return model, tokenizer


def add_lora(model: Any, settings: Train, *, engine: str, checkpointing: bool = False) -> Any:
    """The model with LoRA layers on it, nothing else trainable, and gradients that reach them."""
    lora = settings.lora
    if engine == "unsloth":
        from unsloth import FastLanguageModel

        model = FastLanguageModel.get_peft_model(
            model,
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            bias="none",
            use_gradient_checkpointing="unsloth" if checkpointing else False,
            random_state=settings.seed,
        )
    else:
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
        from transformers import set_seed

        set_seed(settings.seed)
        if settings.load_in_4bit:
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
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
    """Stops bitsandbytes from packing 4-bit weights for AVX512-BF16 CPUs: once packed in a forward pass without gradients, they have none later."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def parameters(model: Any) -> tuple[int, int]:
    """(trainable, total) parameters; 4-bit ones counted unpacked."""
    trainable, total = model.get_nb_trainable_parameters()
    return int(trainable), int(total)


def device_memory() -> int:
    """Bytes of the current CUDA device that this process holds or could still get."""
    import torch

    free, _ = torch.cuda.mem_get_info()
    return int(free + torch.cuda.memory_reserved())


def peak_memory(device: str) -> int:
    """Bytes: peak memory reserved on a GPU, caches and graphs included; peak resident memory of this process on the CPU."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
