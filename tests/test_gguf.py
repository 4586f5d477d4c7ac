"""GGUF files: each pitfall of the format, judged by llama.cpp itself and by the original model in float32."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import quantize as reference_quantize

from harness import variants
from harness.errors import ArtifactError, ConfigError, ModelError, StorageError
from harness.formats import families, find, gguf, llama, quantize, safetensors_reader
from tests.helpers.gguf_files import gguf_types, load
from tests.helpers.models import CORPUS, EOS_ID, edit_json, save_model, save_tokenizer


def difference(folder: Path, path: Path, *, length: int = 24) -> tuple[float, float, float]:
    """(largest difference of a log-probability, mean KL divergence, top-1 agreement) of a GGUF file and its model in float32."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer(text)["input_ids"][:length] for text in CORPUS[:3]]
    backend = load(path)
    found = backend.logprobs([row[:2] for row in rows], [row[2:] for row in rows])
    backend.close()
    largest, divergence, same = 0.0, [], []
    for row, q in zip(rows, found, strict=True):
        with torch.no_grad():
            p = torch.log_softmax(model(torch.tensor([row])).logits[0, 1:-1].double(), -1).numpy()
        largest = max(largest, float(np.abs(p - q).max()))
        divergence += (np.exp(p) * (p - q)).sum(1).tolist()
        same += (p.argmax(1) == q.argmax(1)).tolist()
    return largest, float(np.mean(divergence)), float(np.mean(same))


# ----------------------------------------------------------------------------------------------------- the same numbers

# (largest difference of a log-probability, mean KL). Measured on this model: f16 0.003 and 1e-7, q8_0 0.06 and 3e-7, q4_k_m 0.5 and 2e-5, q2_k 1.5 and 2e-4.
BOUNDS = {
    "f32": (0.01, 1e-6),
    "f16": (0.01, 1e-6),
    "q8_0": (0.2, 5e-6),
    "q6_k": (0.8, 2e-5),
    "q5_k_m": (1.0, 5e-5),
    "q5_0": (1.0, 5e-5),
    "q4_k_m": (1.5, 1e-4),
    "q4_0": (1.5, 1e-4),
    "iq4_xs": (1.5, 1e-4),
    "q3_k_m": (2.0, 2e-4),
    "q2_k": (4.0, 1e-3),
}


@pytest.mark.parametrize("kind", gguf_types())
def test_every_type_computes_what_the_model_computes(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    facts = gguf.write(tiny_model, tmp_path / "model.gguf", kind)
    largest, divergence, agreement = difference(tiny_model, tmp_path / "model.gguf")
    assert largest < BOUNDS[kind][0]
    assert abs(divergence) < BOUNDS[kind][1]
    assert agreement == 1
    assert facts["architecture"] == "llama"
    assert facts["end_ids"] == [EOS_ID]
    assert facts["size_bytes"] == (tmp_path / "model.gguf").stat().st_size


def test_without_the_rope_permutation_the_numbers_are_wrong(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = gguf._convert
    monkeypatch.setattr(
        gguf,
        "_convert",
        lambda t, first, count: convert(llama.Planned(t.name, t.shape, t.kind, t.source, 0), first, count),
    )
    gguf.write(tiny_model, tmp_path / "model.gguf", "f32")
    assert difference(tiny_model, tmp_path / "model.gguf")[0] > 1


@pytest.mark.parametrize(
    "settings",
    [
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": False},
        {"vocabulary": 560},
        {"num_key_value_heads": 8},
        {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32},
    ],
    ids=["llama3-rope", "linear-rope", "biases", "untied", "padded", "no-gqa", "head-dim"],
)
def test_variations_of_the_architecture(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = save_model(tmp_path / "model", initializer_range=0.05, **settings)
    gguf.write(folder, tmp_path / "model.gguf", "f32")
    assert difference(folder, tmp_path / "model.gguf")[0] < 0.01


def test_llama3_rope_scaling_is_a_tensor_and_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    folder = save_model(tmp_path / "model", initializer_range=0.05, rope_parameters=rope)
    gguf.write(folder, tmp_path / "with.gguf", "f32")
    assert "rope_freqs.weight" in {t.name for t in GGUFReader(tmp_path / "with.gguf").tensors}
    monkeypatch.setattr(llama, "_rope_factors", lambda config: None)
    gguf.write(folder, tmp_path / "without.gguf", "f32")
    assert difference(folder, tmp_path / "without.gguf")[0] > 0.03


def test_rope_settings_of_older_configs_are_read(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "old")
    edit_json(folder / "config.json", rope_parameters=None, rope_theta=500000.0, rope_scaling=None)
    assert gguf.write(folder, tmp_path / "old.gguf", "q8_0") and gguf.write(tiny_model, tmp_path / "new.gguf", "q8_0")
    assert (tmp_path / "old.gguf").read_bytes() == (tmp_path / "new.gguf").read_bytes()


# ----------------------------------------------------------------------------------------------------------- which type


def test_q4_k_m_gives_more_bits_where_llama_cpp_does() -> None:
    # llama.cpp src/llama-quant.cpp, use_more_bits, for 32 layers (Llama-3-8B).
    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    for part in ("attn_v", "ffn_down"):
        kinds = [
            quantize.tensor_type(f"blk.{i}.{part}.weight", (1024, 4096), "q4_k_m", layers=32, tied=False).name
            for i in range(32)
        ]
        assert [i for i, kind in enumerate(kinds) if kind == "Q6_K"] == more
        assert set(kinds) == {"Q4_K", "Q6_K"}


@pytest.mark.parametrize(
    ("name", "shape", "kind", "tied", "expected"),
    [
        ("token_embd.weight", (2048, 256), "q4_k_m", True, "Q6_K"),
        ("token_embd.weight", (2048, 256), "q4_k_m", False, "Q4_K"),
        ("output.weight", (2048, 256), "q4_k_m", False, "Q6_K"),
        ("output.weight", (2048, 256), "q4_0", False, "Q6_K"),
        ("output.weight", (2048, 256), "q8_0", False, "Q8_0"),
        ("output.weight", (2048, 192), "q4_k_m", False, "Q8_0"),
        ("output.weight", (2048, 192), "q4_0", False, "Q8_0"),  # Q6_K does not fit 192 columns
        ("blk.1.attn_q.weight", (256, 192), "q4_k_m", True, "Q5_0"),
        ("blk.1.attn_q.weight", (256, 192), "q5_k_m", True, "Q5_1"),
        ("blk.1.attn_q.weight", (256, 192), "q6_k", True, "Q8_0"),
        ("blk.0.attn_v.weight", (256, 192), "q4_k_m", True, "Q8_0"),
        ("blk.1.attn_q.weight", (256, 48), "q4_k_m", True, "F16"),
        ("blk.1.attn_q.weight", (256, 48), "q8_0", True, "F16"),
        ("blk.1.attn_norm.weight", (256,), "q4_k_m", True, "F32"),
        ("blk.1.attn_q.bias", (256,), "f16", True, "F32"),
        ("blk.1.attn_q.weight", (256, 256), "f16", True, "F16"),
        ("rope_freqs.weight", (16,), "q8_0", True, "F32"),
        ("output.weight", (2048, 256), "iq4_xs", False, "Q6_K"),
        ("blk.0.ffn_down.weight", (256, 256), "iq4_xs", True, "Q5_K"),
        ("blk.1.ffn_down.weight", (256, 256), "iq4_xs", True, "IQ4_XS"),
        ("blk.1.attn_q.weight", (256, 192), "iq4_xs", True, "IQ4_NL"),
        ("blk.1.attn_v.weight", (256, 256), "q3_k_m", True, "Q5_K"),
        ("blk.2.attn_v.weight", (256, 256), "q3_k_m", True, "Q4_K"),
        ("blk.2.attn_output.weight", (256, 256), "q3_k_m", True, "Q4_K"),
        ("blk.2.attn_q.weight", (256, 192), "q3_k_m", True, "Q4_0"),
        ("blk.2.attn_v.weight", (256, 256), "q2_k", True, "Q3_K"),
        ("blk.2.attn_output.weight", (256, 256), "q2_k", True, "Q3_K"),
        ("blk.2.ffn_up.weight", (256, 256), "q2_k", True, "Q2_K"),
    ],
)
def test_type_of_a_tensor(name: str, shape: tuple[int, ...], kind: str, tied: bool, expected: str) -> None:
    assert quantize.tensor_type(name, shape, kind, layers=8, tied=tied).name == expected


LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}


def plan_without_weights(config: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch) -> list[llama.Planned]:
    monkeypatch.setattr(
        safetensors_reader,
        "index",
        lambda folder: {
            name: safetensors_reader.Tensor(name, folder, "BF16", s, 0)
            for name, s in families.expected(config, families.FAMILIES["LlamaForCausalLM"]).items()
        },
    )
    return llama.plan(Path(), config, kind)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        ("f16", 16.0005),
        ("q8_0", 8.5008),
        ("q6_k", 6.5633),
        ("q5_k_m", 5.7036),
        ("q4_k_m", 4.8944),
        ("iq4_xs", 4.4597),
        ("q3_k_m", 3.9960),
        ("q2_k", 3.1593),
    ],
)  # llama.cpp tools/quantize/README.md, table of meta-llama/Llama-3.1-8B
def test_bits_per_weight_are_those_that_llama_cpp_publishes(
    kind: str, bits: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan_without_weights(LLAMA_8B, kind, monkeypatch)
    assert 8 * sum(t.size_bytes for t in planned) / sum(np.prod(t.shape, dtype=int) for t in planned) == pytest.approx(
        bits, abs=5e-5
    )


def test_importance_spares_bits_of_the_first_layers() -> None:
    kinds = [
        quantize.tensor_type("blk.0.ffn_down.weight", (256, 256), "iq4_xs", layers=8, tied=True, weighed=weighed).name
        for weighed in (False, True)
    ]
    assert kinds == ["Q5_K", "IQ4_XS"]


def test_70b_gets_more_bits_for_attn_v(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {t.name: t.kind.name for t in plan_without_weights(LLAMA_70B, "q4_k_m", monkeypatch)}
    assert (kinds["blk.10.attn_v.weight"], kinds["blk.12.attn_v.weight"], kinds["blk.10.ffn_down.weight"]) == (
        "Q5_K",
        "Q6_K",
        "Q4_K",
    )


@pytest.mark.parametrize(("hidden", "heads"), [(192, 6), (48, 4)])
def test_rows_that_do_not_fit_a_block_still_load(tmp_path: Path, hidden: int, heads: int) -> None:
    folder = save_model(
        tmp_path / "model",
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=2,
        intermediate_size=2 * hidden,
    )
    for kind in ("q4_k_m", "q8_0", "q5_k_m"):
        gguf.write(folder, tmp_path / "model.gguf", kind)
        assert difference(folder, tmp_path / "model.gguf")[0] < 0.5


def test_tied_embeddings_have_no_output_matrix(tmp_path: Path) -> None:
    tied, untied = save_model(tmp_path / "tied"), save_model(tmp_path / "untied", tie_word_embeddings=False)
    for folder, has in ((tied, False), (untied, True)):
        gguf.write(folder, tmp_path / "model.gguf", "q8_0")
        assert ("output.weight" in {t.name for t in GGUFReader(tmp_path / "model.gguf").tensors}) is has


def test_q8_0_is_that_of_ggufs_own_quantiser(tiny_model: Path, tmp_path: Path) -> None:
    gguf.write(tiny_model, tmp_path / "f32.gguf", "f32")
    gguf.write(tiny_model, tmp_path / "q8_0.gguf", "q8_0")
    whole = {t.name: t.data for t in GGUFReader(tmp_path / "f32.gguf").tensors}
    for tensor in GGUFReader(tmp_path / "q8_0.gguf").tensors:
        assert np.array_equal(tensor.data, reference_quantize(whole[tensor.name], tensor.tensor_type)), tensor.name


# ---------------------------------------------------------------------------------------------------- bytes and memory


def test_bytes_depend_on_neither_threads_nor_chunks_nor_shards(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharded = save_model(tmp_path / "sharded", shard="300KB")
    whole = save_model(tmp_path / "whole")
    assert len(list(sharded.glob("*.safetensors"))) > 3
    gguf.write(whole, tmp_path / "a.gguf", "q4_k_m", threads=1)
    gguf.write(sharded, tmp_path / "b.gguf", "q4_k_m", threads=4)
    monkeypatch.setattr(gguf, "CHUNK", 4096)
    gguf.write(whole, tmp_path / "c.gguf", "q4_k_m", threads=3)
    assert (
        (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes() == (tmp_path / "c.gguf").read_bytes()
    )


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_memory_stays_under_one_tensor_and_a_constant(tmp_path: Path, kind: str) -> None:
    folder = save_model(tmp_path / "model", num_hidden_layers=16, intermediate_size=2048, hidden_size=512, shard="20MB")
    index = safetensors_reader.index(folder)
    sizes = [4 * t.rows * t.row_length for t in index.values()]
    tracemalloc.start()
    gguf.write(folder, tmp_path / "model.gguf", kind, threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    constant = 20 << 20
    assert sum(sizes) > 7 * (max(sizes) + constant)
    assert peak < max(sizes) + constant


# ------------------------------------------------------------------------------------------------------------ bad input


def set_weight(folder: Path, name: str, value: float) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights[name][1, 2] = torch.tensor(value)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut(file: Path, keep: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])


def drop(folder: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_tokenizer(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"].update(changes.pop("model", {}))
    data.update(changes)
    (folder / "tokenizer.json").write_text(json.dumps(data))


Q = "model.layers.1.self_attn.q_proj.weight"
BAD = {
    "no config": (lambda f: (f / "config.json").unlink(), ModelError, "has no config"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), ModelError, "cannot be read as JSON"),
    "config without layers": (
        lambda f: edit_json(f / "config.json", num_hidden_layers=None),
        ModelError,
        "no num_hidden_layers",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), ModelError, "has no tokenizer"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ModelError, "has no weights"),
    "weights cut": (lambda f: cut(f / "model.safetensors", 0.7), ArtifactError, "is truncated"),
    "weights cut in the header": (lambda f: cut(f / "model.safetensors", 0.0001), ArtifactError, "is truncated"),
    "weights empty": (lambda f: (f / "model.safetensors").write_bytes(b""), ArtifactError, "is truncated"),
    "weights of another kind": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x80\x02PK" * 100),
        ArtifactError,
        "not a safetensors",
    ),
    "header damaged": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x04" + bytes(7) + b"{{{{"),
        ArtifactError,
        "damaged",
    ),
    "a tensor missing": (lambda f: drop(f, Q), ModelError, Q),
    "an adapter not merged": (lambda f: edit_json(f / "config.json", num_hidden_layers=1), ModelError, "not part of"),
    "another shape": (lambda f: edit_json(f / "config.json", intermediate_size=768), ModelError, "has shape"),
    "another architecture": (
        lambda f: edit_json(f / "config.json", architectures=["FalconForCausalLM"]),
        ModelError,
        "FalconForCausalLM",
    ),
    "another activation": (lambda f: edit_json(f / "config.json", hidden_act="gelu"), ModelError, "gelu"),
    "yarn": (
        lambda f: edit_json(f / "config.json", rope_parameters={"rope_type": "yarn", "factor": 2.0}),
        ModelError,
        "yarn",
    ),
    "llama3 without its factor": (
        lambda f: edit_json(f / "config.json", rope_parameters={"rope_type": "llama3"}),
        ModelError,
        "no factor",
    ),
    "quantised": (
        lambda f: edit_json(f / "config.json", quantization_config={"load_in_4bit": True}),
        ModelError,
        "quantised already",
    ),
    "too few rows": (
        lambda f: edit_json(f / "config.json", vocab_size=510),
        ModelError,
        "512 tokens and its embedding 510",
    ),
    "no end token": (
        lambda f: [
            edit_json(f / n, eos_token=None, eos_token_id=None)
            for n in ("config.json", "generation_config.json", "tokenizer_config.json")
        ],
        ModelError,
        "no end token",
    ),
    "not BPE": (lambda f: edit_tokenizer(f, model={"type": "WordPiece"}), ModelError, "WordPiece"),
    "SentencePiece with unknown steps": (
        lambda f: edit_tokenizer(f, model={"byte_fallback": True}),
        ModelError,
        "treats spaces",
    ),
    "a greedy token": (
        lambda f: edit_tokenizer(f, added_tokens=[{"id": 5, "content": "<x>", "lstrip": True}]),
        ModelError,
        "strips spaces",
    ),
    "a normaliser": (lambda f: edit_tokenizer(f, normalizer={"type": "NFKC"}), ModelError, "NFKC"),
    "an unknown regex": (
        lambda f: save_tokenizer(f, regex=r"\s+|\S+"),
        ModelError,
        "pre-tokenizer",
    ),
    "too large for f16": (lambda f: set_weight(f, Q, 70000.0), ModelError, "65504"),
    "not a number": (lambda f: set_weight(f, Q, float("nan")), ModelError, "not finite"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_and_writes_nothing(tiny_model: Path, tmp_path: Path, what: str) -> None:
    damage, error, words = BAD[what]
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    damage(folder)
    out = tmp_path / "out" / "model.gguf"
    with pytest.raises(error) as caught:
        gguf.write(folder, out, "f16")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_an_index_that_names_a_missing_shard(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", shard="1MB")
    next(folder.glob("*00001*.safetensors")).unlink()
    with pytest.raises(ArtifactError, match="is missing, though the index names it"):
        gguf.write(folder, tmp_path / "model.gguf", "f16")


def test_a_value_beyond_f16_is_no_error_where_it_fits(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    set_weight(folder, Q, 70000.0)
    assert gguf.write(folder, tmp_path / "model.gguf", "q8_0")
    assert gguf.write(folder, tmp_path / "model.gguf", "f32")


def test_a_failure_leaves_the_old_file(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf.write(tiny_model, tmp_path / "model.gguf", "q8_0")
    before = (tmp_path / "model.gguf").read_bytes()
    monkeypatch.setattr(quantize, "quantize", lambda *_: (_ for _ in ()).throw(ModelError("no")))
    with pytest.raises(ModelError):
        gguf.write(tiny_model, tmp_path / "model.gguf", "f16")
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]
    assert (tmp_path / "model.gguf").read_bytes() == before


@pytest.mark.parametrize("kind", gguf_types())
def test_the_size_is_known_before(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    size = gguf.write(tiny_model, tmp_path / "model.gguf", kind)["size_bytes"]
    settings = safetensors_reader.read_json(tiny_model / "config.json", "config")
    planned = sum(tensor.size_bytes for tensor in llama.plan(tiny_model, settings, kind))
    assert planned < size <= planned + gguf.METADATA, "so much space is asked for before a file is written"


def test_no_space_is_found_before_writing(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 10**6))  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match="are free"):
        gguf.write(tiny_model, tmp_path / "model.gguf", "f16")


# ---------------------------------------------------------------------------------------------------------------- check


@pytest.mark.parametrize("keep", [0.0, 0.00001, 0.0005, 0.01, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_named(tiny_model: Path, tmp_path: Path, keep: float) -> None:
    path = tmp_path / "model.gguf"
    gguf.write(tiny_model, path, "q8_0")
    cut(path, keep)
    with pytest.raises(ArtifactError, match=r"model\.gguf: (is truncated or damaged|is not a GGUF file)"):
        gguf.check(path)


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(ArtifactError, match="not a GGUF file"):
        gguf.check(tmp_path / "model.gguf")
    with pytest.raises(ArtifactError, match="missing"):
        gguf.check(tmp_path / "other.gguf")


def test_values_that_are_not_finite_are_found(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    gguf.write(tiny_model, path, "f32")
    reader = GGUFReader(path, "r+")
    reader.tensors[3].data[-1] = np.inf
    del reader
    with pytest.raises(ArtifactError, match="not finite"):
        gguf.check(path)


# ------------------------------------------------------------------------------------------------------------- registry


def test_every_type_of_the_config_has_a_writer() -> None:
    assert set(gguf_types()) == set(quantize.FILE_TYPES)
    assert find("gguf_q4_k_m") is gguf.export
    assert all(callable(find(name)) for name in variants.exported())
    with pytest.raises(ConfigError, match="gguf_f16"):
        find("gguf_q1")
    with pytest.raises(ConfigError, match="q4_k_m"):
        gguf.write(Path(), Path(), "q1")
