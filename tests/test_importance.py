"""The importance matrix: what it measures, what it is measured on, and that it helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf.quants import dequantize

from harness import storage
from harness.errors import ModelError
from harness.formats import importance, quantize
from harness.prompt import Prompter, load_tokenizer
from harness.records import ExportManifest
from harness.stages import export
from harness.storage import read_record
from tests.helpers import small_run
from tests.helpers.models import CORPUS
from tests.helpers.opened import opened_files

MARKER = "Zyxomma petiolatum"


@pytest.fixture(scope="module")
def rows(tiny_model: Path) -> list[list[int]]:
    prompter = Prompter(load_tokenizer(tiny_model), "{question}")
    return [prompter.ids(text) for text in CORPUS]


@pytest.fixture(scope="module")
def matrix(tiny_model: Path, rows: list[list[int]]) -> dict[str, np.ndarray]:
    return importance.measure(tiny_model, rows, device="cpu")


def test_it_is_the_mean_square_of_each_input(
    tiny_model: Path, rows: list[list[int]], matrix: dict[str, np.ndarray]
) -> None:
    """Recomputed for the first layer's attention from its definition: embedding, norm, square, mean over the tokens of all rows."""
    from safetensors.torch import load_file

    tensors = {name: t.float().numpy() for name, t in load_file(tiny_model / "model.safetensors").items()}
    tokens = np.concatenate([tensors["model.embed_tokens.weight"][row] for row in rows])
    normed = tokens / np.sqrt((tokens**2).mean(1, keepdims=True) + 1e-6)
    inputs = normed * tensors["model.layers.0.input_layernorm.weight"]
    assert len(matrix) == 2 * 7 and not any("embd" in name or name == "output.weight" for name in matrix)
    for part in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(matrix[f"blk.0.{part}.weight"], (inputs**2).mean(0), rtol=1e-3)


def test_padding_counts_for_nothing(tiny_model: Path, rows: list[list[int]], matrix: dict[str, np.ndarray]) -> None:
    alone = [importance.measure(tiny_model, [row], device="cpu") for row in rows[:2]]
    both = importance.measure(tiny_model, rows[:2], device="cpu")
    sizes = np.array([len(row) for row in rows[:2]])
    for name, values in both.items():
        expected = (alone[0][name] * sizes[0] + alone[1][name] * sizes[1]) / sizes.sum()
        np.testing.assert_allclose(values, expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("kind", quantize.WEIGHED)
def test_the_error_of_what_matters_is_smaller_with_it(kind: str) -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((64, 256)).astype(np.float32)
    weights = np.exp(3 * random.standard_normal(256)).astype(np.float32)
    main = quantize.FILE_TYPES[kind][1]
    block, size = GGML_QUANT_SIZES[main]
    errors = []
    for given in (None, weights):
        data = quantize.quantize(values, main, "t", given).reshape(64, 256 // block * size)
        errors.append(float((weights * (dequantize(data, main) - values) ** 2).sum()))
    assert errors[1] < 0.9 * errors[0]
    with pytest.raises(ModelError, match="has shape"):
        quantize.quantize(values, main, "t", weights[:32])


def test_the_training_questions_and_no_others_are_measured(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[list[int]]] = []
    measure = importance.measure
    monkeypatch.setattr(
        importance, "measure", lambda folder, rows, device: asked.append(rows) or measure(folder, rows, device=device)
    )
    run = small_run.split(tmp_path)
    small_run.trained(run, tiny_model, small_run.save_adapter(tmp_path / "adapter", tiny_model))
    formats = ["merged_16bit", "gguf_q4_k_m", "gguf_q2_k", "gguf_q8_0"]
    config = small_run.config(tiny_model, export={"formats": formats, "importance_rows": 3})
    found = export.run(run, config)
    tokenizer = load_tokenizer(tiny_model)
    texts = [tokenizer.decode(row) for row in asked[0]]
    assert len(asked) == 1 and len(texts) == 3
    assert all(any(sentence[20:40] in text for sentence in CORPUS) for text in texts)
    assert "weighed by importance" in str(found.artifacts["gguf_q2_k"].checks)
    assert "importance" not in str(found.artifacts["gguf_q8_0"].checks)
    assert export.run(run, config).fingerprint == found.fingerprint and len(asked) == 1
    export.run(run, small_run.config(tiny_model, export={"formats": formats, "importance_rows": 0}))
    plain = read_record(run.export_json, ExportManifest).artifacts
    assert len(asked) == 1 and plain["gguf_q2_k"].sha256 != found.artifacts["gguf_q2_k"].sha256
    assert plain["gguf_q8_0"].sha256 == found.artifacts["gguf_q8_0"].sha256


def test_a_marker_in_the_other_sides_is_never_read_or_tokenised(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The marked sides are never opened, and without them the file has the same bytes."""
    marked = [
        q.model_copy(update={"question": f"{MARKER} {q.question}", "answer": f"{q.answer} {MARKER}"})
        for q in small_run.questions()
    ]
    adapter = small_run.save_adapter(tmp_path / "adapter", tiny_model)
    config = small_run.config(tiny_model, export={"formats": ["merged_16bit", "gguf_q2_k"], "importance_rows": 99})
    encode, tokenised = Prompter.example, []

    def seen(self: Prompter, question: str, answer: str, **options: Any) -> Any:
        tokenised.append(question + answer)
        return encode(self, question, answer, **options)

    monkeypatch.setattr(Prompter, "example", seen)
    hashes = []
    for kept in (True, False):
        run = small_run.split(tmp_path / str(kept), asked=marked)
        storage.write_jsonl(run.taught_jsonl, marked)
        others = [run.dev_jsonl, run.heldout_jsonl, run.taught_jsonl]
        assert all(MARKER in file.read_text(encoding="utf-8") for file in others)
        if not kept:
            for file in others:
                file.unlink()
        small_run.trained(run, tiny_model, adapter)
        with opened_files() as opened:
            hashes.append(export.run(run, config).artifacts["gguf_q2_k"].sha256)
        assert str(run.train_jsonl) in opened and not opened & set(map(str, others))
    assert len(tokenised) == 2 * len(CORPUS) and not any(MARKER in text for text in tokenised)
    assert hashes[0] == hashes[1]


def test_a_large_model_is_measured_on_fewer_rows_without_a_gpu() -> None:
    rows = [[0] * 100] * 50
    assert len(importance.affordable(rows, 5_000_000)) == 50
    assert 1 <= len(importance.affordable(rows, 10**11)) < 50
    with pytest.raises(ModelError, match="no training rows"):
        importance.measure(Path(), [], device="cpu")
