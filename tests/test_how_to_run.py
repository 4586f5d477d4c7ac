"""The commands that the report shows run verbatim, and answer as the harness does."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.backends import Execution, Generation, Source
from harness.backends.transformers import TransformersBackend
from harness.formats import how_to_run, merged
from harness.formats.modelfile import Serving
from harness.prompt import Prompter, load_tokenizer
from tests.helpers import small_run
from tests.helpers.models import EOS_ID

SERVING = Serving(small_run.TEMPLATE, 512, 12, stop=("</s>",))
QUESTION = small_run.QUESTIONS[0][0]


def printed(way: how_to_run.Way) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec("\n".join(way.lines), {"question": QUESTION})
    return out.getvalue().strip()


def python(ways: list[how_to_run.Way]) -> how_to_run.Way:
    return next(way for way in ways if way.language == "python")


def test_the_python_lines_answer_as_the_harness_does(tiny_model: Path, tmp_path: Path) -> None:
    adapter = small_run.save_adapter(tmp_path / "adapter", tiny_model, std=0.3)
    merged.write_16bit(tiny_model, adapter, tmp_path / "merged")
    tokenizer = load_tokenizer(tiny_model)
    prompt = Prompter(tokenizer, small_run.TEMPLATE).ids(QUESTION)
    for variant, path, source in (
        ("merged_16bit", tmp_path / "merged", Source(tmp_path / "merged")),
        ("adapter", adapter, Source(tiny_model, adapter=adapter)),
    ):
        # The backend turns gradients off for its process; other tests need them.
        with torch.no_grad():
            backend = TransformersBackend(source, Generation(12, (EOS_ID,), EOS_ID), Execution())
            ids = backend.answer([prompt])[0].answer_ids
            backend.close()
        found = how_to_run.ways(variant, str(path), SERVING, base=str(tiny_model), rank=4)
        said = printed(python(found))
        ours = tokenizer.decode(ids, skip_special_tokens=True).strip()
        # In bfloat16, which the folder is stored in, against float32: the first words are the same.
        assert said and said[:8] == ours[:8]


@pytest.mark.parametrize(
    ("variant", "tools", "words"),
    [
        ("gguf_q8_0", ["llama-server", "Ollama"], ["--temp 0", "Modelfile-q8_0"]),
        ("merged_16bit", ["vLLM", "transformers"], ["vllm serve 'a b/m'", '"temperature": 0']),
        ("merged_4bit", ["vLLM", "transformers"], ["--quantization bitsandbytes", "'a b/m'"]),
        ("adapter", ["vLLM", "transformers"], ["--max-lora-rank 32", "mine=a b/m", "load_in_4bit=True"]),
        ("base", [], []),
    ],
)
def test_each_format_has_its_ways(variant: str, tools: list[str], words: list[str]) -> None:
    found = how_to_run.ways(variant, "a b/m", SERVING, base="owner/base", rank=20, load_in_4bit=True)
    text = "\n".join(line for way in found for line in way.lines)
    assert [way.tool for way in found] == tools
    assert all(word in text for word in words), text
    assert all("\n" not in line for way in found for line in way.lines)
    for way in found:
        if way.language == "python":
            compile("\n".join(way.lines), variant, "exec")
        else:
            assert all(shlex.split(line) for line in way.lines)


def test_vllm_is_run_with_greedy_decoding() -> None:
    (line,) = how_to_run.ways("merged_16bit", "m", SERVING)[0].lines
    words = shlex.split(line)
    settings: Any = json.loads(words[words.index("--override-generation-config") + 1])
    assert settings["temperature"] == 0 and settings["max_new_tokens"] == 12


def test_a_chat_is_asked_by_messages() -> None:
    serving = Serving("", 512, 12, chat_template="x", system="It's brief.")
    text = "\n".join(python(how_to_run.ways("merged_16bit", "m", serving)).lines)
    assert "apply_chat_template" in text and '"It\'s brief."' in text
    compile(text, "chat", "exec")
