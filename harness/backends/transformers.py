"""Answers through Hugging Face transformers: the base, an adapter on it, and merged models, in 16 or 4 bits."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig

from harness.backends import Completion, Execution, Facts, Generation, Source
from harness.errors import ModelError

PARAMETERS_A_THREAD = 50_000_000


class TransformersBackend:
    """A model in this process, f32 on the CPU (its numbers do not depend on the batch) and bf16 on a GPU.

    Raises:
        ModelError: the model or adapter cannot be loaded.
    """

    def __init__(self, source: Source, generation: Generation, execution: Execution):
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_grad_enabled(False)
        self.device = execution.device
        self.pad_id = generation.pad_id
        self.stop_ids = set(generation.stop_ids)
        self.model: Any = _load(source, self.device)
        if self.device == "cpu":
            # A small model waits for its threads longer than they work for it.
            cores = os.cpu_count() or 1
            torch.set_num_threads(execution.threads or min(cores, 1 + self.model.num_parameters() // PARAMETERS_A_THREAD))
        # Written whole, so that a model's own generation_config (Llama's samples at 0.6) decides nothing.
        self.model.generation_config = GenerationConfig(
            do_sample=False, num_beams=1, max_new_tokens=generation.max_new_tokens, repetition_penalty=generation.repeat_penalty,
            eos_token_id=list(generation.stop_ids), pad_token_id=generation.pad_id, use_cache=True,
        )  # fmt: skip
        context = getattr(self.model.config, "max_position_embeddings", 2048)
        version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        if getattr(self.model.config, "quantization_config", None) is not None:
            import bitsandbytes

            version += f", bitsandbytes {bitsandbytes.__version__}"
        dtype = str(
            next(p.dtype for p in self.model.parameters() if p.dtype in (torch.float32, torch.bfloat16, torch.float16))
        ).removeprefix("torch.")
        self.facts = Facts(version, context, {"device": self.device, "dtype": dtype, "threads": torch.get_num_threads()})

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        """Answers one batch; out of memory on a GPU, in halves."""
        began = time.monotonic()
        try:
            generated = self._generate(prompts)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if len(prompts) == 1:
                return [Completion([], "error", time.monotonic() - began, error="out of device memory")]
            half = len(prompts) // 2
            return self.answer(prompts[:half]) + self.answer(prompts[half:])
        seconds = (time.monotonic() - began) / len(prompts)
        return [self._completion(ids, seconds) for ids in generated]

    def logprobs(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[Any]:
        """Next-token log-probabilities along given continuations.

        Returns:
            For each pair an f32 tensor of shape (len(continuation), vocabulary): row i is the distribution before continuation[i].
        """
        found = []
        for prompt, continuation in zip(prompts, continuations, strict=True):
            ids = torch.tensor([[*prompt, *continuation]], device=self.device)
            logits = self.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
            found.append(torch.log_softmax(logits, dim=-1).cpu())
        return found

    def close(self) -> None:
        """Frees the model."""
        del self.model
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _generate(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        width = max(map(len, prompts))
        # Padded by hand, on the left: generation goes on from the last column, which must be a prompt's end in every row.
        ids = torch.tensor([[self.pad_id] * (width - len(p)) + list(p) for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        return self.model.generate(input_ids=ids, attention_mask=mask)[:, width:].tolist()

    def _completion(self, ids: list[int], seconds: float) -> Completion:
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), None)
        return Completion(ids if end is None else ids[:end], "length" if end is None else "stop", seconds)


def _load(source: Source, device: str) -> Any:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    options: dict[str, Any] = {
        "dtype": dtype,
        "device_map": device,
        "revision": source.revision,
        "trust_remote_code": source.trust_remote_code,
    }
    if source.load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(source.path, output_loading_info=True, **options)
        model, loaded = found
        # transformers fills what is missing with random numbers, and only warns.
        if lacking := sorted(loaded["missing_keys"]):
            raise ValueError(f"it lacks {len(lacking)} tensors, {lacking[0]!r} among them")
        if source.adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, source.adapter, is_trainable=False)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"cannot be loaded: {error}", "check that the folder holds a whole causal language model", file=source.path
        ) from error
    modules: list[Any] = list(model.modules())
    for module in modules:
        # One numeric path on every CPU: no packing for AVX512-BF16, and NF4 computed in the dtype asked for here, not the one it was saved with.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = dtype
    return model.eval()
