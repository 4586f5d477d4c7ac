"""Tokens per second of greedy decoding: this harness against `model.generate` and lm-evaluation-harness, in one process on the same prompts.

python benchmarks/generation.py --quick                    the embedded model on this CPU, half a minute
python benchmarks/generation.py --random-8b                random weights of Llama-3 8B's shape, made on the GPU (17 GiB)
python benchmarks/generation.py --random-8b --weights nf4  the same in 4 bits; --weights adapter: and a LoRA adapter on them
python benchmarks/generation.py --model FOLDER             a model on disk

Every answer has exactly `--new` tokens: there is no end token. Each figure is the median of `--repeats` after a warm-up; the first call of
this harness, which includes graph capture, is reported too. lm-evaluation-harness is measured if it is installed (pip install --no-deps lm_eval).
"""

# ruff: noqa: E402

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.models import base_model

base_model.quiet_libraries()

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

from harness.backends.decoding.decoder import Decoder, kernels
from harness.config import PROJECT, PROJECTIONS, TEMPLATE
from harness.prompt import Prompter, load_tokenizer

EMBEDDED = PROJECT / "data" / "tiny-llama3"
QUESTIONS = PROJECT / "data" / "constitution_qa.json"
GIB = 2**30
Answers = list[list[int]]


def main() -> None:
    options = arguments()
    device = "cuda" if torch.cuda.is_available() and not options.quick else "cpu"
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = load(options, device)
    tokenizer: Any = load_tokenizer(options.model or EMBEDDED)
    # BOS as the end token: it is never the most probable, so no answer ends, while the check for an end is still paid for.
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.bos_token
    prompter = Prompter(load_tokenizer(options.model or EMBEDDED), TEMPLATE)
    rows = json.loads(QUESTIONS.read_text(encoding="utf-8"))
    questions = [row["question"] for row in rows[:: max(1, len(rows) // options.questions)]][: options.questions]
    prompts = sorted((prompter.ids(question) for question in questions), key=len, reverse=True)
    texts = [prompter.text(question) for question in questions]
    print(f"machine: {machine(device)}, torch {torch.__version__}, transformers {transformers.__version__}")
    shape = f"{options.weights if options.weights != 'bf16' else str(model.dtype)[6:]}, {sum(p.numel() for p in model.parameters()) / 1e6:,.0f}M stored weights"
    print(
        f"{len(prompts)} prompts of {len(prompts[-1])} to {len(prompts[0])} tokens, {options.new} new tokens each; {shape}",
        flush=True,
    )

    bench = Bench(device, options.repeats)
    pad = tokenizer.bos_token_id
    # The others first, since ours replaces the model's attention and norms.
    for batch in options.batches:
        bench.measure(
            f"model.generate, batch {batch}", lambda batch=batch: generate(model, prompts, batch, options.new, pad)
        )
    for batch in options.lm_eval_batches:
        # One by one takes minutes, so only a share of the questions is asked.
        asked = texts if batch != "1" else texts[: max(1, len(texts) // 25)]
        if (ask := lm_eval(model, tokenizer, asked, batch, options.new)) is None:
            print("lm-evaluation-harness: not installed")
            break
        bench.measure(f"lm-evaluation-harness hf, batch {batch}", ask, tokens=len(asked) * options.new)
    if options.weights != "bf16" and device == "cuda":
        bench.measure("harness, weights in 4 bits", ours(model, prompts, options.new, pad, device))
    if options.weights != "bf16":
        kernels.dequantise(model)
        gc.collect()
    kernels.fuse_norms(model)
    bench.measure(
        "harness" if options.weights == "bf16" else "harness, dequantised once",
        ours(model, prompts, options.new, pad, device),
    )
    bench.report()


class Bench:
    """Measures and compares."""

    def __init__(self, device: str, repeats: int):
        self.device, self.repeats = device, repeats
        self.rates: dict[str, float] = {}
        self.answers: dict[str, Answers] = {}

    def measure(self, name: str, call: Callable[[], Answers | None], *, tokens: int = 0) -> None:
        """Prints the tokens per second of a call that returns the new tokens; `tokens` overrides their number."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        first, found = self._timed(call)
        times = [self._timed(call)[0] for _ in range(self.repeats)]
        count = tokens or sum(map(len, found or []))
        self.rates[name] = count / statistics.median(times)
        if found is not None:
            self.answers[name] = found
        memory = f", peak {torch.cuda.max_memory_allocated() / GIB:.1f} GiB" if self.device == "cuda" else ""
        seconds = ", ".join(f"{t:.2f}" for t in times)
        print(f"{name}: {self.rates[name]:,.0f} tokens/s ({seconds} s; first call {first:.2f} s){memory}", flush=True)

    def report(self) -> None:
        """Prints the ratio of our rate to each of the others."""
        *others, mine = self.rates
        for other in others:
            print(f"{mine} is {self.rates[mine] / self.rates[other]:.1f} times {other}")
        names = list(self.answers)
        for left, right in [(names[0], names[1])] * (len(names) > 2) + [(mine, name) for name in names if name != mine]:
            pairs = list(zip(self.answers[left], self.answers[right], strict=True))
            same = sum(a == b for a, b in pairs) / len(pairs)
            print(
                f"same text, {left} and {right}: {same:.1%} of answers, {statistics.mean(agreed(a, b) for a, b in pairs):.1%} of tokens"
            )

    def _timed(self, call: Callable[[], Answers | None]) -> tuple[float, Answers | None]:
        began = time.perf_counter()
        found = call()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began, found


def agreed(left: Sequence[int], right: Sequence[int]) -> float:
    """The share of tokens before the first difference."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b), len(left)) / len(left)


def generate(model: Any, prompts: Answers, batch: int, new: int, pad: int) -> Answers:
    """The answers of a loop over `model.generate`, prompts sorted by length."""
    # What a call leaves out, the end token too, comes from the model's own generation config.
    whole(model).generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=new, pad_token_id=pad, eos_token_id=None, use_cache=True
    )
    answers: Answers = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        width = len(part[0])
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in part], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part], device=model.device)
        answers += model.generate(input_ids=ids, attention_mask=mask)[:, width:].tolist()
    return answers


def lm_eval(model: Any, tokenizer: Any, texts: list[str], batch: str, new: int) -> Callable[[], None] | None:
    """A call of lm-evaluation-harness's `hf` backend, given the same model object; None if it is not installed."""
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        return None
    inner = whole(model)
    inner.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id, eos_token_id=None)
    size: Any = batch if batch == "auto" else int(batch)
    harness = HFLM(
        pretrained=inner,
        tokenizer=tokenizer,
        batch_size=size,
        max_batch_size=64,
        add_bos_token=True,
        device=str(inner.device),
    )
    settings = {"until": [], "max_gen_toks": new, "do_sample": False}

    def ask() -> None:
        requests = [Instance("generate_until", {}, (text, settings), i) for i, text in enumerate(texts)]
        harness.generate_until(requests, disable_tqdm=True)

    return ask


def ours(model: Any, prompts: Answers, new: int, pad: int, device: str) -> Callable[[], Answers]:
    """A call of this harness's decoder on all prompts at once."""
    decoder = Decoder(whole(model), [], pad, new, graphs=device == "cuda")

    def ask() -> Answers:
        found = [ids for ids, _ in decoder.generate(prompts)]
        if decoder.graph_problem:
            raise RuntimeError(f"no CUDA graphs: {decoder.graph_problem}")
        return found

    return ask


# -------------------------------------------------------------------------------------------------------------- models


def whole(model: Any) -> Any:
    """The causal language model inside PEFT's wrapper, adapter and all."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def load(options: argparse.Namespace, device: str) -> Any:
    """The model to measure on: bf16 on a GPU, f32 on the CPU."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if options.random_8b:
        model = random_8b(device, dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(options.model or EMBEDDED, dtype=dtype, device_map=device)
    if options.weights != "bf16":
        into_4_bits(model, dtype)
    if options.weights == "adapter":
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(
            r=16, lora_alpha=16, target_modules=PROJECTIONS, init_lora_weights=False, task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, settings).to(device)
    return model.eval()


def random_8b(device: str, dtype: torch.dtype) -> Any:
    """Llama-3 8B's shape with random weights: speed and memory do not depend on the values."""
    shape = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=False,
        bos_token_id=128000,
        eos_token_id=128001,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(shape, dtype=dtype)


def into_4_bits(model: Any, dtype: torch.dtype) -> None:
    """Quantises a model's layers to NF4 in place, as loading with `load_in_4bit` does."""
    from bitsandbytes.nn import modules

    kind: Any = modules.Params4bit
    linear = [
        (parent, name)
        for parent in model.model.layers.modules()
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear
    ]
    for parent, name in linear:
        old: Any = getattr(parent, name)
        with torch.device("meta"):
            new: Any = modules.Linear4bit(
                old.in_features, old.out_features, bias=False, compute_dtype=dtype, quant_type="nf4"
            )
        packed = kind(old.weight.data.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True)
        new.weight = packed.to(old.weight.device)
        new.support_avx512bf16_for_cpu = False
        setattr(parent, name, new)


def machine(device: str) -> str:
    """Its processor, in words."""
    return (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder with its tokenizer; the embedded model by default")
    parser.add_argument("--random-8b", action="store_true", help="random weights of Llama-3 8B's shape")
    parser.add_argument("--weights", choices=("bf16", "nf4", "adapter"), default="bf16")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--new", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--batches",
        type=lambda text: [int(n) for n in text.split(",") if n],
        default=[32, 128, 400],
        help="of model.generate",
    )
    parser.add_argument(
        "--lm-eval-batches",
        type=lambda text: [n for n in text.split(",") if n],
        default=["1", "64", "400"],
        help="numbers, or auto",
    )
    parser.add_argument("--quick", action="store_true", help="the embedded model on the CPU, few questions")
    options = parser.parse_args()
    if options.quick:
        options.questions, options.new, options.repeats, options.batches, options.lm_eval_batches = (
            48,
            24,
            1,
            [16, 48],
            ["1", "48"],
        )
    return options


if __name__ == "__main__":
    main()
