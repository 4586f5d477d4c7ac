"""How each exported format is loaded and served elsewhere: commands and Python lines with the prompt's form, end tokens and greedy decoding.

Text only: the report shows it, and `tests/test_how_to_run.py` runs the Python lines.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness import variants
from harness.formats.modelfile import QUESTION, Serving, server_command


@dataclass(frozen=True)
class Way:
    """One way of running a format."""

    tool: str
    """`llama-server`, `Ollama`, `vLLM` or `transformers`."""
    language: Literal["shell", "python"]
    """`shell` or `python`."""
    lines: Sequence[str]
    note: str = ""
    """What the user must install or do."""


def ways(
    variant: str,
    path: str,
    serving: Serving,
    *,
    base: str = "",
    rank: int = 0,
    load_in_4bit: bool = False,
    name: str = "mine",
) -> list[Way]:
    """How a variant is run; empty for one that has no weights.

    Args:
        path: of its file or folder, as the user may type it.
        serving: see `harness.formats.modelfile.serving`.
        base: of an adapter: folder or hub name of the model that it is put on.
        rank: of an adapter.
        load_in_4bit: the adapter was trained on the base in 4 bits.
        name: that a server gives the model.
    """
    if variants.is_gguf(variant):
        return _gguf(variant, path, serving, name)
    if variant == variants.ADAPTER:
        bits = [] if not load_in_4bit else ["--quantization", "bitsandbytes"]
        lora = ["--enable-lora", "--max-lora-rank", str(_rank(rank)), "--lora-modules", f"{name}={path}"]
        return [
            _vllm([base, *bits, *lora], serving, name, "bitsandbytes too" if bits else ""),
            _transformers(path, serving, adapter_on=base, load_in_4bit=load_in_4bit),
        ]
    if variant == "merged_4bit":
        served = [path, "--quantization", "bitsandbytes", "--served-model-name", name]
        return [_vllm(served, serving, name, "bitsandbytes too"), _transformers(path, serving, needs="bitsandbytes")]
    if variant == variants.MERGED:
        return [_vllm([path, "--served-model-name", name], serving, name, ""), _transformers(path, serving)]
    return []


def _gguf(variant: str, path: str, serving: Serving, name: str) -> list[Way]:
    folder = path.rpartition("/")[0] or "."
    file = f"{folder}/Modelfile-{variant.removeprefix(variants.GGUF)}"
    return [
        Way(
            "llama-server",
            "shell",
            [server_command(path, serving)],
            "check: harness verify --server http://127.0.0.1:8080",
        ),
        Way(
            "Ollama",
            "shell",
            [shlex.join(["ollama", "create", name, "-f", file]), shlex.join(["ollama", "run", name])],
            f"check: harness verify --server ollama:{name}",
        ),
    ]


def _vllm(served: Sequence[str], serving: Serving, name: str, more: str) -> Way:
    greedy = json.dumps({"temperature": 0, "max_new_tokens": serving.max_new_tokens})
    words = ["vllm", "serve", *served, "--max-model-len", str(serving.context)]
    line = shlex.join([*words, "--generation-config", "vllm", "--override-generation-config", greedy])
    route = "/v1/completions, with the prompt as text" if serving.template else "/v1/chat/completions"
    note = f"needs vLLM{', and ' + more if more else ''}; ask {route}; check: harness verify --server http://127.0.0.1:8000 --model {name}"
    return Way("vLLM", "shell", [line], note)


def _transformers(
    path: str, serving: Serving, *, adapter_on: str = "", load_in_4bit: bool = False, needs: str = ""
) -> Way:
    four = ", quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True)"
    imports = ["AutoModelForCausalLM", "AutoTokenizer", *(["BitsAndBytesConfig"] if load_in_4bit else [])]
    lines = [f"from transformers import {', '.join(imports)}"]
    lines += ["from peft import PeftModel"] if adapter_on else []
    lines += [
        f"tokenizer = AutoTokenizer.from_pretrained({adapter_on or path!r})",
        f"model = AutoModelForCausalLM.from_pretrained({adapter_on or path!r}, dtype='auto', device_map='auto'{four if load_in_4bit else ''})",
    ]
    lines += [f"model = PeftModel.from_pretrained(model, {path!r})"] if adapter_on else []
    if serving.template:
        head, tail = serving.template.split(QUESTION)
        lines.append(f"ids = tokenizer({head!r} + question + {tail!r}, return_tensors='pt').to(model.device)")
    else:
        system = [{"role": "system", "content": serving.system}] if serving.system else []
        messages = "[" + "".join(f"{m!r}, " for m in system) + "{'role': 'user', 'content': question}]"
        options = "add_generation_prompt=True, return_dict=True, return_tensors='pt'"
        lines.append(f"ids = tokenizer.apply_chat_template({messages}, {options}).to(model.device)")
    lines += [
        f"out = model.generate(**ids, max_new_tokens={serving.max_new_tokens}, do_sample=False)",
        "print(tokenizer.decode(out[0, ids['input_ids'].shape[1]:], skip_special_tokens=True))",
    ]
    packages = ", ".join(
        [
            "transformers",
            *(["peft"] if adapter_on else []),
            *(["bitsandbytes"] if load_in_4bit else []),
            *([needs] if needs else []),
        ]
    )
    return Way("transformers", "python", lines, f"needs {packages}")


def _rank(rank: int) -> int:
    """vLLM takes these values only for its largest rank."""
    return next((allowed for allowed in (8, 16, 32, 64, 128, 256, 320, 512) if allowed >= rank), rank)
