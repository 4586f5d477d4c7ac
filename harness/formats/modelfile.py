"""Files and commands to serve an exported GGUF file: an Ollama Modelfile and a llama-server command.

Both say what the harness asked for (the prompt, the end tokens, the context, greedy decoding), because each server has its own defaults: Ollama
samples at 0.8 with a repeat penalty, cuts the context, and guesses a template. The Modelfile's syntax: https://docs.ollama.com/modelfile; its
templates are Go's (text/template).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.formats import vocabulary

SERVED_CONTEXT = 8192
"""Largest default context of a server, in tokens; users may choose a larger cache."""
QUESTION = "{question}"
QUOTES = '"""'

CHATML = (
    "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
    "<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n{{ .Response }}<|im_end|>\n"
)
KNOWN_TEMPLATES: dict[tuple[str, ...], tuple[str, tuple[str, ...]]] = {
    ("<|start_header_id|>", "<|eot_id|>"): (
        "{{ if .System }}<|start_header_id|>system<|end_header_id|>\n\n{{ .System }}<|eot_id|>{{ end }}"
        "<|start_header_id|>user<|end_header_id|>\n\n{{ .Prompt }}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{{ .Response }}<|eot_id|>",
        ("<|eot_id|>",),
    ),
    ("<|im_start|>", "<|im_end|>"): (CHATML, ("<|im_end|>",)),
    ("<start_of_turn>", "<end_of_turn>"): (
        "<start_of_turn>user\n{{ if .System }}{{ .System }}\n\n{{ end }}{{ .Prompt }}<end_of_turn>\n"
        "<start_of_turn>model\n{{ .Response }}<end_of_turn>\n",
        ("<end_of_turn>",),
    ),
    ("<|user|>", "<|end|>"): (
        "{{ if .System }}<|system|>\n{{ .System }}<|end|>\n{{ end }}"
        "<|user|>\n{{ .Prompt }}<|end|>\n<|assistant|>\n{{ .Response }}<|end|>\n",
        ("<|end|>",),
    ),
    ("[INST]", "[/INST]"): (
        "[INST] {{ if .System }}{{ .System }}\n\n{{ end }}{{ .Prompt }} [/INST]{{ .Response }}",
        (),
    ),
}
"""Marks that a chat template (Jinja) holds -> (the same in Go, as Ollama wants it; the texts that end an answer).

They render one question as the Jinja template does; what the Jinja template adds, such as a default system message, must be given as SYSTEM."""


@dataclass(frozen=True)
class Serving:
    """The settings that make a server give the same answers as the harness."""

    template: str
    """Of a text prompt, with `{question}`; empty: the chat template."""
    context: int
    max_new_tokens: int
    chat_template: str = ""
    """Jinja, of the tokenizer."""
    stop: tuple[str, ...] = ()
    """Texts of the end tokens."""
    system: str = ""
    """A chat's system message."""


def read_chat_template(folder: Path) -> str:
    """A model folder's chat template (Jinja); empty if it has none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    found: Any = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    if isinstance(found, list):  # several by name
        found = next((entry.get("template") for entry in found if entry.get("name") == "default"), None)
    return found if isinstance(found, str) else ""


def modelfile(gguf: str, serving: Serving) -> str:
    """The text of a Modelfile beside a GGUF file of that name.

    With a chat template that is not known here there is no TEMPLATE line: Ollama takes the one inside the GGUF file.
    """
    lines = [f"FROM ./{gguf}"]
    stops: Sequence[str] = serving.stop
    if (found := template(serving)) is not None:
        lines.append(f"TEMPLATE {QUOTES}{found}{QUOTES}")
    if not serving.template and (known := go_template(serving.chat_template)) is not None:
        stops = [*dict.fromkeys([*stops, *known[1]])]
    if serving.system and not serving.template:
        lines.append(f"SYSTEM {QUOTES}{serving.system.replace(QUOTES, QUOTES[:2])}{QUOTES}")
    lines += [f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}" for text in stops]
    lines += [
        f"PARAMETER num_ctx {serving.context}",
        f"PARAMETER num_predict {serving.max_new_tokens}",
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        "PARAMETER top_k 1",
        "PARAMETER seed 0",
    ]
    return "\n".join(lines) + "\n"


def template(serving: Serving) -> str | None:
    """The prompt as Ollama's template, in Go's language; None: a chat template that is not known here."""
    if serving.template:
        head, tail = serving.template.split(QUESTION)
        return f"{escaped(head)}{{{{ .Prompt }}}}{escaped(tail)}"
    known = go_template(serving.chat_template)
    return None if known is None else known[0]


def serving(folder: Path, prompt: Any, max_new_tokens: int) -> Serving:
    """Settings for a server: the prompt's form, its end tokens, and a context that holds the longest answer.

    Args:
        folder: the merged 16-bit model's.
        prompt: the config's section.
    """
    chat = read_chat_template(folder)
    is_chat = prompt.format == "chat" or (prompt.format == "auto" and bool(chat))
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Serving(
        "" if is_chat else prompt.template,
        min(settings.get("max_position_embeddings", SERVED_CONTEXT), SERVED_CONTEXT),
        max_new_tokens,
        chat if is_chat else "",
        vocabulary.end_texts(folder),
        prompt.system or "",
    )


def go_template(jinja: str) -> tuple[str, tuple[str, ...]] | None:
    """(Go template, end texts) of a chat template that is known here."""
    return next((found for marks, found in KNOWN_TEMPLATES.items() if all(mark in jinja for mark in marks)), None)


def escaped(text: str) -> str:
    """Escapes a text for Go templates and a Modelfile's quotes."""
    # A final quote or brace would merge with the characters after it.
    body, last = (text[:-1], text[-1]) if text[-1:] in ('"', "{") else (text, "")
    parts = body.replace("{{", "\0open\0").replace(QUOTES, "\0quotes\0")
    parts = parts.replace("\0open\0", '{{ "{{" }}').replace("\0quotes\0", '{{ "\\"\\"\\"" }}')
    return parts + {'"': '{{ "\\"" }}', "{": '{{ "{" }}', "": ""}[last]


def server_command(gguf: str, serving: Serving) -> str:
    """The command that serves the file with the harness's settings: POST /completion for a text prompt, /v1/chat/completions for a chat."""
    words = [
        "llama-server",
        "--model",
        gguf,
        "--ctx-size",
        str(serving.context),
        "--predict",
        str(serving.max_new_tokens),
    ]
    words += ["--temp", "0", "--top-k", "1", "--repeat-penalty", "1"]
    return shlex.join([*words, *([] if serving.template else ["--jinja"])])
