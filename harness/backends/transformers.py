"""Answers through Hugging Face transformers: the base, an adapter on it, and merged models, in 16 or 4 bits."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig

from harness.backends import BATCH_TOKENS, Completion, Execution, Facts, Generation, Source, threads_on_cpu
from harness.backends.decoding import decoder, kernels
from harness.backends.decoding.decoder import Decoder, Generated
from harness.backends.pieces import Piece
from harness.errors import ModelError
from harness.models.devices import compute_dtype


class TransformersBackend:
    """A model in this process, f32 on the CPU (its numbers do not depend on the batch), and bf16 (fp16 on old cards) on a GPU.

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
        self.largest = 2**31
        """Maximum questions per batch after running out of memory."""
        self.model: Any = _load(source, self.device)
        if self.device == "cpu":
            torch.set_num_threads(execution.threads or threads_on_cpu(self.model.num_parameters()))
        # Set every field, so that a model's own generation_config (Llama's samples at 0.6) has no effect.
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=generation.max_new_tokens,
            repetition_penalty=generation.repeat_penalty,
            eos_token_id=list(generation.stop_ids),
            pad_token_id=generation.pad_id,
            use_cache=True,
        )
        context = getattr(self.model.config, "max_position_embeddings", 2048)
        version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        if getattr(self.model.config, "quantization_config", None) is not None:
            import bitsandbytes

            version += f", bitsandbytes {bitsandbytes.__version__}"
        facts: dict[str, Any] = {
            "device": self.device,
            "dtype": str(_dtype(self.model)).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }
        if self.device == "cuda":
            facts["dequantised"] = _dequantised(self.model, generation.max_new_tokens)
            kernels.fuse_norms(self.model)
        self.decoder, problem = _decoder(self.model, generation, graphs=self.device == "cuda")
        how = "static cache, CUDA graphs" if self.device == "cuda" else "static cache"
        facts["decoding"] = how if self.decoder else f"model.generate: {problem}"
        room = _room(self.model, generation.max_new_tokens, 1 if self.decoder else 2) if self.device == "cuda" else 0
        self.facts = Facts(version, context, facts, room)

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        """Answers one batch; after running out of GPU memory, this and all later batches are halved."""
        if len(prompts) > self.largest:
            parts = [prompts[i : i + self.largest] for i in range(0, len(prompts), self.largest)]
            return [completion for part in parts for completion in self.answer(part)]
        began = time.monotonic()
        if (generated := self._within_memory(prompts)) is not None:
            seconds = (time.monotonic() - began) / len(prompts)
            return [self._completion(ids, logprobs, seconds) for ids, logprobs in generated]
        if len(prompts) == 1:
            return [Completion([], "error", time.monotonic() - began, error="out of device memory")]
        self.largest = self.facts.execution["largest_batch"] = -(-len(prompts) // 2)
        return self.answer(prompts)

    def stream(self, prompt: Sequence[int]) -> Iterator[Piece]:
        """Streams one answer; see `harness.backends.pieces`."""
        steps = self.decoder.stream(prompt) if self.decoder and self.decoder.fits(len(prompt)) else self._steps(prompt)
        try:
            for token, logprob in steps:
                if token in self.stop_ids:
                    yield Piece(end="stop")
                    return
                yield Piece(token, logprob)
            yield Piece(end="length")
        except torch.OutOfMemoryError:
            yield Piece(end="error", error="out of device memory")

    def _steps(self, prompt: Sequence[int]) -> Iterator[tuple[int, float]]:
        """Streams tokens with their log-probabilities, for a model without a decoder."""
        ids, cache = torch.tensor([list(prompt)], device=self.device), None
        for _ in range(self.model.generation_config.max_new_tokens):
            output = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache, (chosen, chances) = output.past_key_values, decoder.choose(output.logits[:, -1])
            yield int(chosen), float(chances)
            ids = chosen[:, None]

    def logprobs(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Next-token log-probabilities along given continuations.

        Returns:
            For each pair a float32 array of shape (len(continuation), vocabulary): row i is the distribution before continuation[i].
        """
        found = []
        for prompt, continuation in zip(prompts, continuations, strict=True):
            ids = torch.tensor([[*prompt, *continuation]], device=self.device)
            logits = self.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
            found.append(torch.log_softmax(logits, dim=-1).cpu().numpy())
        return found

    def close(self) -> None:
        """Frees the model."""
        if self.decoder:
            self.decoder.release()
        self.decoder = None
        del self.model
        if self.device == "cuda":
            # A model placed by accelerate points to itself.
            gc.collect()
            torch.cuda.empty_cache()

    def _within_memory(self, prompts: Sequence[Sequence[int]]) -> list[Generated] | None:
        """The answers; None if memory does not hold the batch."""
        try:
            generated = self._generate(prompts)
            if self.decoder and self.decoder.graph_problem:
                self.facts.execution["graphs"] = f"given up: {self.decoder.graph_problem}"
            return generated
        except torch.OutOfMemoryError:
            pass
        # Only now is the traceback gone, which kept tensors alive.
        if self.decoder:
            self.decoder.release()
        torch.cuda.empty_cache()
        return None

    def _generate(self, prompts: Sequence[Sequence[int]]) -> list[Generated]:
        width = max(map(len, prompts))
        if self.decoder and self.decoder.fits(width):
            return self.decoder.generate(prompts)
        # Pad on the left: generation continues from the last column, which must be the end of every prompt.
        ids = torch.tensor([[self.pad_id] * (width - len(p)) + list(p) for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        recorder = _Recorder()
        made = self.model.generate(
            input_ids=ids, attention_mask=mask, logits_processor=transformers.LogitsProcessorList([recorder])
        )
        return list(zip(made[:, width:].tolist(), torch.stack(recorder.logprobs, 1).tolist(), strict=True))

    def _completion(self, ids: list[int], logprobs: list[float], seconds: float) -> Completion:
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), None)
        reason = "length" if end is None else "stop"
        return Completion(ids[:end], reason, seconds, logprobs=logprobs[: len(ids) if end is None else end])


class _Recorder(transformers.LogitsProcessor):
    """Keeps the log-probability of every step's most probable token, which greedy decoding chooses."""

    def __init__(self) -> None:
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.logprobs.append(decoder.choose(scores)[1])
        return scores


def _decoder(model: Any, generation: Generation, *, graphs: bool) -> tuple[Decoder | None, str]:
    """A decoder for the model, or the reason why it has none."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    problem = decoder.unsupported(inner)
    if not problem:
        made = Decoder(inner, generation.stop_ids, generation.pad_id, generation.max_new_tokens, graphs=graphs)
        try:
            made.check()
            return made, ""
        except torch.OutOfMemoryError:
            return made, ""
        except Exception as error:  # a model's own code may need more from a cache or mask than the decoder offers
            problem = f"{type(error).__name__} on a static cache"
    return None, problem


def _dtype(model: Any) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.dtype in (torch.float32, torch.bfloat16, torch.float16))


def _free_bytes() -> int:
    """Device memory that this process can still get."""
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def _room(model: Any, max_new_tokens: int, copies: int) -> int:
    return decoder.tokens_in_memory(model.config, _dtype(model).itemsize, _free_bytes() // copies, max_new_tokens)


def _dequantised(model: Any, max_new_tokens: int) -> bool:
    """Dequantises 4-bit weights to 16 bits if they fit in memory with a batch of usual size."""
    if not (elements := kernels.quantised_elements(model)):
        return False
    size = _dtype(model).itemsize
    free = _free_bytes() - elements * size
    if free < 0 or decoder.tokens_in_memory(model.config, size, free, max_new_tokens) < BATCH_TOKENS:
        return False
    kernels.dequantise(model)
    torch.cuda.empty_cache()
    return True


def _with_adapter(model: Any, folder: Path) -> Any:
    """The model with an adapter on it; its vocabulary grows to that of the adapter's own embeddings, if it has any."""
    from peft import PeftModel
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        rows = [
            file.get_slice(name).get_shape()[0]
            for name in file.keys()  # noqa: SIM118
            if name.endswith(("embed_tokens.weight", "lm_head.weight"))
        ]
    if rows and max(rows) != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(max(rows), mean_resizing=False)
    return PeftModel.from_pretrained(model, folder, is_trainable=False)


def _load(source: Source, device: str) -> Any:
    if not (source.path / "config.json").is_file():
        # Given only an adapter, transformers would download any base that the adapter names.
        raise ModelError("has no config.json", "give the folder of a whole model", file=source.path)
    dtype = compute_dtype(device)
    options: dict[str, Any] = {
        "dtype": dtype,
        "device_map": device,
        "revision": source.revision,
        "trust_remote_code": source.trust_remote_code,
        "use_safetensors": True,
    }
    if source.load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(source.path, output_loading_info=True, **options)
        model, loaded = found
        # transformers initialises missing tensors randomly, and only warns.
        if lacking := sorted(loaded["missing_keys"]):
            raise ValueError(f"it lacks {len(lacking)} tensors, {lacking[0]!r} among them")
        if source.adapter is not None:
            model = _with_adapter(model, source.adapter)
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
