"""Each family that is written as GGUF: a tiny random model of it, computed by transformers in float32 and by llama.cpp from the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import quantize as reference_quantize

from harness.errors import ModelError
from harness.formats import families, gguf, rotary
from tests.helpers.families import SHAPE, divergence, save
from tests.helpers.models import edit_json

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + i / 10 for i in range(12)],
    "long_factor": [2.0 + i for i in range(12)],
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", {"num_hidden_layers": 2, "sliding_window": None, "head_dim": 48}),
    "smollm": ("llama", {"num_hidden_layers": 2, "hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 3, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {"num_hidden_layers": 2}),
    "qwen2.5-tied": ("qwen2", {"num_hidden_layers": 2, "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3": ("qwen3", {"num_hidden_layers": 2, "head_dim": 64, "tie_word_embeddings": True}),
    "gemma2": ("gemma2", {"num_hidden_layers": 4, "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 16}),
    "gemma3": ("gemma3_text", {"num_hidden_layers": 7, "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 16}),
    "phi3": ("phi3", {"num_hidden_layers": 2}),
    "phi4-mini": (
        "phi3",
        {
            "num_hidden_layers": 2,
            "partial_rotary_factor": 0.75,
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": 256,
            "tie_word_embeddings": True,
        },
    ),
}  # fmt: skip
POSITIONS = 100


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: save(root / name, kind, settings) for name, (kind, settings) in MODELS.items()}


@pytest.mark.parametrize("name", MODELS)
def test_f16_computes_what_transformers_computes(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    facts = gguf.write(folders[name], tmp_path / "model.gguf", "f16", threads=1)
    assert facts["architecture"] == {
        "mistral": "llama",
        "smollm": "llama",
        "qwen2.5-tied": "qwen2",
        "phi4-mini": "phi3",
    }.get(name, name)
    mean, agreement = divergence(folders[name], tmp_path / "model.gguf", POSITIONS)
    assert abs(mean) < 1e-5 and agreement >= 0.99


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_quantised_files_are_near(folders: dict[str, Path], tmp_path: Path, name: str, kind: str) -> None:
    gguf.write(folders[name], tmp_path / "model.gguf", kind, threads=1)
    assert abs(divergence(folders[name], tmp_path / "model.gguf", 20)[0]) < (1e-3 if kind == "q8_0" else 0.05)


@pytest.mark.parametrize("name", ["gemma3", "phi3", "qwen2"])
def test_q8_0_is_that_of_ggufs_own_quantiser(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    for kind in ("f32", "q8_0"):
        gguf.write(folders[name], tmp_path / f"{kind}.gguf", kind, threads=1)
    whole = {t.name: t.data for t in GGUFReader(tmp_path / "f32.gguf").tensors}
    for tensor in GGUFReader(tmp_path / "q8_0.gguf").tensors:
        assert np.array_equal(tensor.data, reference_quantize(whole[tensor.name], tensor.tensor_type)), tensor.name


FAULTS: dict[str, tuple[str, str, Any]] = {
    "gemma's norms are stored less one": ("gemma2", "norm_offset", 0.0),
    "qwen is not permuted": ("qwen2", "permuted", True),
    "mistral is permuted": ("mistral", "permuted", False),
    "phi has no window": ("phi3", "settings", lambda writer, config: writer.add_rope_scaling_orig_ctx_len(512)),
}


@pytest.mark.parametrize("fault", ["gemma's norms are stored less one", "qwen is not permuted", "mistral is permuted"])
def test_a_wrong_entry_shows(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    from dataclasses import replace

    name, field, value = FAULTS[fault]
    architecture = json.loads((folders[name] / "config.json").read_text())["architectures"][0]
    monkeypatch.setitem(families.FAMILIES, architecture, replace(families.FAMILIES[architecture], **{field: value}))
    gguf.write(folders[name], tmp_path / "model.gguf", "f16", threads=1)
    assert divergence(folders[name], tmp_path / "model.gguf", 20)[0] > 1e-3


def test_the_context_ends_where_llama_cpp_would_differ(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["mistral"], tmp_path / "windowed")
    edit_json(folder / "config.json", sliding_window=128)
    assert gguf.write(folder, tmp_path / "a.gguf", "q8_0", threads=1)["context_length"] == 128
    assert gguf.write(folders["phi4-mini"], tmp_path / "b.gguf", "q8_0", threads=1)["context_length"] == 256
    assert gguf.write(folders["gemma3"], tmp_path / "c.gguf", "q8_0", threads=1)["context_length"] == 512


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "sliding": ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
    "biases": ("qwen3", {"attention_bias": True}, "attention_bias"),
    "layers": ("gemma3", {"layer_types": ["full_attention"] * 7}, "do not alternate"),
    "scale": ("gemma2", {"query_pre_attn_scalar": 100}, "scaled by 100"),
    "local": ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 5e3}, "full_attention": {"rope_type": "default", "rope_theta": 1e6}}}, "rotate by 5000"),
    "partial": ("qwen2", {"partial_rotary_factor": 0.5}, "a part of each head"),
    "yarn": ("qwen2", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, "yarn"),
    "short factors": ("phi4-mini", {"rope_parameters": LONGROPE | {"short_factor": [1.0]}}, "short_factor"),
    "activation": ("gemma2", {"hidden_activation": "gelu"}, "gelu"),
    "no cap": ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping is None"),
    "no final cap": ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping is None"),
    "no window": ("gemma3", {"sliding_window": None}, "sliding_window is None"),
    "sees what follows": ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    "scaled sliding layers": ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, "full_attention": {"rope_type": "default", "rope_theta": 1e6}}}, "sliding layers is scaled"),
    "one layer slides": ("qwen3", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
    "odd rotation": ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.3}}, "rotates 9 elements"),
    "no base": ("mistral", {"rope_parameters": {"rope_type": "default", "rope_theta": None}}, "rope_theta is None"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_llama_cpp_would_compute_differently_is_refused(
    folders: dict[str, Path], tmp_path: Path, what: str
) -> None:
    name, changes, words = REFUSED[what]
    folder = shutil.copytree(folders[name], tmp_path / "model")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))  # None becomes a null in the file
    with pytest.raises(ModelError, match=words) as caught:
        gguf.write(folder, tmp_path / "model.gguf", "f16")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.gguf").exists()


# ------------------------------------------------------------------------------------------------ rotary settings

ROPES: dict[str, dict[str, Any]] = {
    "theta beside": {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}},
    "theta in both": {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "scaling and parameters": {
        "rope_theta": 5e5,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256},
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    },
    "old scaling": {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "nothing": {},
}  # fmt: skip


@pytest.mark.parametrize("what", ROPES)
def test_rotary_settings_are_those_of_transformers(tmp_path: Path, what: str) -> None:
    from transformers import AutoConfig

    values = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SHAPE, **ROPES[what]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    theirs = AutoConfig.from_pretrained(tmp_path).rope_parameters
    ours = rotary.settings(values)
    keys = ("rope_type", "rope_theta", "factor", "low_freq_factor", "original_max_position_embeddings")
    assert {k: ours.get(k) for k in keys} == {k: theirs.get(k) for k in keys}


@pytest.mark.parametrize("name", ["mixed", "both"])
def test_rope_settings_given_twice_are_read_as_transformers_reads_them(name: str, tmp_path: Path) -> None:
    file = Path(__file__).parent / "golden" / f"rope_{name}_config.json"
    shutil.copyfile(file, tmp_path / "config.json")
    from transformers import AutoConfig

    expected = AutoConfig.from_pretrained(tmp_path).rope_parameters
    found = rotary.settings(json.loads(file.read_text()))
    assert found["rope_theta"] == expected["rope_theta"] == 500000.0
    assert {key: found[key] for key in expected} == expected
    assert found["rope_type"] == {"mixed": "default", "both": "llama3"}[name]
