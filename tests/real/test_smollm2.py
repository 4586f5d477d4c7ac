"""The whole pipeline on real weights: SmolLM2-135M-Instruct (`make smollm2`), asked by its own chat template."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from harness.backends import Execution, Generation, Source
from harness.backends.llamacpp import LlamaCppBackend
from harness.config import PROJECT
from harness.prompt import load_tokenizer

MODEL = PROJECT / "models" / "smollm2-135m"
VARIANTS = ["base", "adapter", "merged_16bit", "gguf_f16"]
SETTINGS = [
    f"model.path={MODEL}",
    f"data.qa={PROJECT / 'data' / 'constitution_qa.json'}",
    "data.heldout=8",
    "device=cpu",
    "train.max_steps=3",
    "train.batch_size=4",
    "train.eval_rows=4",
    "train.eval_every=3",
    "train.max_length=256",
    "export.formats=[merged_16bit, gguf_f16]",
    f"predict.variants=[{', '.join(VARIANTS)}]",
    "predict.max_new_tokens=16",
    "predict.fidelity_questions=2",
    "score.resamples=200",
    "compare.resamples=200",
]

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `harness run` ended on the real model."""
    folder = tmp_path_factory.mktemp("real")
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "harness", "run", "--config", "smollm2-135m", *settings],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(PROJECT), "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def rows(run: Path, variant: str) -> list[dict]:
    text = (run / f"runs/smollm2-135m/predictions/{variant}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_every_variant_is_asked_the_same_ids_by_the_chat_template(run: Path) -> None:
    asked = {variant: [row["prompt_hash"] for row in rows(run, variant)] for variant in VARIANTS}
    assert len(asked["base"]) >= 5 and all(hashes == asked["base"] for hashes in asked.values())
    tokenizer = load_tokenizer(MODEL)
    first = json.loads((run / "runs/smollm2-135m/split/heldout.jsonl").read_text(encoding="utf-8").splitlines()[0])
    turns = [
        {"role": "system", "content": "Answer in one short sentence."},
        {"role": "user", "content": first["question"]},
    ]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    kept = next(row for row in rows(run, "base") if row["id"] == first["id"])
    assert tokenizer.decode(kept["prompt_ids"]) == ids
    assert kept["prompt_ids"][0] == tokenizer.convert_tokens_to_ids("<|im_start|>") != kept["prompt_ids"][1]


def test_the_exported_model_answers_like_the_merged_one(run: Path) -> None:
    merged, gguf = ([row["text"] for row in rows(run, variant)] for variant in ("merged_16bit", "gguf_f16"))
    assert sum(a == b for a, b in zip(merged, gguf, strict=True)) >= 0.75 * len(merged)
    comparison = json.loads((run / "reports/smollm2-135m/comparison.json").read_text(encoding="utf-8"))
    assert set(comparison["variants"]) == set(VARIANTS) and (run / "reports/smollm2-135m/report.html").is_file()


def test_the_file_splits_text_as_the_tokenizer(run: Path) -> None:
    rng = random.Random(0)
    words = [
        "Article",
        "21A",
        "don't",
        "₹1,00,000",
        "naïve",
        "अनुच्छेद",
        "中文",
        "🙂",
        "\n\n",
        "  ",
        "\t",
        "C#",
        "3.14",
        "a/b",
        "é",
    ]
    strings = [" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(300)]
    strings += ["".join(chr(rng.randint(32, 0x2FFF)) for _ in range(rng.randint(1, 24))) for _ in range(200)]
    tokenizer = load_tokenizer(MODEL)
    source = Source(run / "runs/smollm2-135m/gguf/model-f16.gguf")
    with closing(LlamaCppBackend(source, Generation(4, (2,), 2), Execution("cpu"))) as model:
        wrong = [s for s in strings if model.model.tokenize(s) != tokenizer(s, add_special_tokens=False).input_ids]
    assert not wrong, wrong[:5]
