"""GGUF files of architectures that a checkout of llama.cpp converts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.errors import HarnessError, ModelError
from harness.formats import gguf
from tests.helpers.models import edit_json

CONVERTER = """
import argparse, pathlib, shutil, sys
parser = argparse.ArgumentParser()
parser.add_argument("model"); parser.add_argument("--outfile"); parser.add_argument("--outtype")
options = parser.parse_args()
if pathlib.Path(options.model, "fail").exists():
    sys.exit("Model FalconForCausalLM is not supported")
here = pathlib.Path(__file__).parent
(here / "converted.txt").write_text(options.outtype)
shutil.copy(here / "ready.gguf", options.outfile)
"""
QUANTIZER = """#!/bin/sh
echo "$3 $4" > "$(dirname "$0")/quantized.txt"
cp "$1" "$2"
"""


@pytest.fixture
def llama_cpp(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "llama.cpp"
    (folder / "build" / "bin").mkdir(parents=True)
    gguf.write(tiny_model, folder / "ready.gguf", "q8_0")
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER)
    program = folder / "build" / "bin" / "llama-quantize"
    program.write_text(QUANTIZER)
    program.chmod(0o755)
    return folder


@pytest.fixture
def other(tiny_model: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(tiny_model, tmp_path / "other")
    edit_json(folder / "config.json", architectures=["FalconForCausalLM"])
    return folder


def test_another_architecture_goes_through_the_checkout(other: Path, llama_cpp: Path, tmp_path: Path) -> None:
    assert gguf.write(other, tmp_path / "f16.gguf", "f16", llama_cpp=llama_cpp)["architecture"] == "llama"
    assert (llama_cpp / "converted.txt").read_text() == "f16"
    gguf.write(other, tmp_path / "q4.gguf", "q4_k_m", llama_cpp=llama_cpp, threads=3)
    assert (llama_cpp / "converted.txt").read_text() == "auto"
    assert (llama_cpp / "build" / "bin" / "quantized.txt").read_text().split() == ["Q4_K_M", "3"]
    assert not list(tmp_path.glob(".*"))


def test_without_a_checkout_the_hint_names_it(other: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"FalconForCausalLM.*export\.llama_cpp"):
        gguf.write(other, tmp_path / "f16.gguf", "f16")


def test_a_model_that_is_known_here_does_not_need_the_checkout(tiny_model: Path, tmp_path: Path) -> None:
    assert gguf.write(tiny_model, tmp_path / "f16.gguf", "f16", llama_cpp=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda checkout, model: (checkout / "convert_hf_to_gguf.py").unlink(), "has no convert_hf_to_gguf.py"),
        (lambda checkout, model: (checkout / "build/bin/llama-quantize").unlink(), "cmake"),
        (lambda checkout, model: (checkout / "build/bin/llama-quantize").chmod(0o644), "cannot be run"),
        (lambda checkout, model: (model / "fail").touch(), "FalconForCausalLM is not supported"),
        (lambda checkout, model: (checkout / "ready.gguf").write_bytes(b"GGUF"), "truncated"),
    ],
)
def test_a_checkout_that_fails(other: Path, llama_cpp: Path, tmp_path: Path, damage: Any, words: str) -> None:
    damage(llama_cpp, other)
    with pytest.raises(HarnessError, match=words) as caught:
        gguf.write(other, tmp_path / "out" / "q4.gguf", "q4_k_m", llama_cpp=llama_cpp)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())
