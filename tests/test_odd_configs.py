"""Odd settings of config.json, family by family: a GGUF file computes what transformers computes, or the model is refused before export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ModelError
from harness.formats import gguf
from tests.helpers.families import SHAPE, divergence, save

SMALL = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2} | {
    "initializer_range": 0.08,
    "num_hidden_layers": 2,
}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma2": GEMMA,
    "gemma3_text": GEMMA | {"num_hidden_layers": 7},
    "phi3": {},
}
POSITIONS = 40


def rotate(type: str = "default", **values: Any) -> dict[str, Any]:
    return {"rope_type": type, "rope_theta": 1e4} | values


LONG = rotate(
    "longrope", short_factor=[1 + i / 10 for i in range(16)], long_factor=[2.0 + i for i in range(16)]
)  # of 32 elements of a head
LLAMA3 = rotate("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
ORIGINAL = "original_max_position_embeddings"
LINEAR = {"rope_type": "linear", "factor": 8.0}


def kinds(full: Any, sliding: Any = None) -> dict[str, Any]:
    return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding or rotate()}}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("plain")
    return {kind: save(root / kind, kind, SMALL | settings) for kind, settings in KINDS.items()}


def edited(folder: Path, to: Path, changes: dict[str, Any]) -> Path:
    """A copy with these values in config.json, `...` for a key that is taken out and None for a null."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text()) | changes
    (to / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return to


def computed_alike(folder: Path, positions: int = POSITIONS) -> dict[str, Any]:
    file = folder / "model.gguf"
    facts = gguf.write(folder, file, "f16", threads=1)
    assert abs(divergence(folder, file, positions)[0]) < 1e-5
    return facts


READ: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "base beside", {"rope_theta": 5e4, "rope_parameters": {"rope_type": "default"}}),
    ("llama", "original length twice", {"rope_parameters": LLAMA3 | {ORIGINAL: 64}, ORIGINAL: 32}),
    ("llama", "no original length", {"rope_parameters": LLAMA3}),
    ("llama", "Gemma's key of the activation", {"hidden_activation": "relu"}),
    ("mistral", "old scaling", {"rope_parameters": ..., "rope_theta": 3e4, "rope_scaling": {"type": "linear", "factor": 4}}),
    ("gemma2", "Llama's key of the activation", {"hidden_act": "gelu", "hidden_activation": ...}),
    ("gemma2", "no layers named", {"layer_types": None}),
    ("gemma2", "caps", {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    ("gemma3_text", "linear", kinds(LINEAR | {"rope_theta": 1e6})),
    ("gemma3_text", "scaling by rope_type", {"rope_parameters": ..., "rope_scaling": LINEAR, "rope_theta": 5e4}),
    ("gemma3_text", "scaling by type, which counts for nothing", {"rope_parameters": ..., "rope_scaling": {"type": "linear", "factor": 8.0}}),
    ("gemma3_text", "scaling and parameters", kinds(rotate(rope_theta=3e4)) | {"rope_scaling": LINEAR}),
    ("gemma3_text", "layers named, other pattern", {"sliding_window_pattern": 3}),
    ("gemma3_text", "cap of the logits", {"final_logit_softcapping": 3.0}),
    ("gemma3_text", "window of one", {"sliding_window": 1}),
    ("phi3", "original length in the rotary settings only", {"rope_parameters": LONG | {ORIGINAL: 256}, ORIGINAL: ...}),
    ("phi3", "original length twice", {"rope_parameters": LONG | {ORIGINAL: 128}, ORIGINAL: 256}),
    ("phi3", "factor", {"rope_parameters": LONG | {"factor": 16.0}, ORIGINAL: 300}),
    ("phi3", "attention factor", {"rope_parameters": LONG | {"attention_factor": 1.5}, ORIGINAL: 256}),
    ("phi3", "half rotated", {"partial_rotary_factor": 0.5, "rope_parameters": ...}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "what", "changes"), READ, ids=[f"{kind}: {what}" for kind, what, _ in READ])
def test_settings_are_read_as_transformers_reads_them(
    plain: dict[str, Path], tmp_path: Path, kind: str, what: str, changes: dict[str, Any]
) -> None:
    computed_alike(edited(plain[kind], tmp_path / "model", changes))


MADE: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "biases", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    ("mistral", "wide heads", {"head_dim": 48, "vocab_size": 517, "tie_word_embeddings": True}),
    ("qwen3", "wide heads", {"head_dim": 48, "rms_norm_eps": 1e-3}),
    ("gemma2", "wide heads", {"head_dim": 48, "query_pre_attn_scalar": 48, "num_key_value_heads": 1}),
    ("gemma3_text", "own output", {"tie_word_embeddings": False, "vocab_size": 517}),
    ("phi3", "one head of keys", {"num_key_value_heads": 1, "rms_norm_eps": 1e-3}),
]


@pytest.mark.parametrize(("kind", "what", "settings"), MADE, ids=[f"{kind}: {what}" for kind, what, _ in MADE])
def test_odd_shapes(tmp_path: Path, kind: str, what: str, settings: dict[str, Any]) -> None:
    computed_alike(save(tmp_path / "model", kind, SMALL | KINDS[kind] | settings))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [{"num_key_value_heads": 1}, {"vocab_size": 1001}, {"rms_norm_eps": 1e-3}, {"intermediate_size": 100}]
    + [{"tie_word_embeddings": tied} for tied in (True, False)],
    ids=str,
)
def test_every_family_with_every_shape(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    if kind == "gemma2" and settings.get("tie_word_embeddings") is False:
        pytest.skip("is refused")
    computed_alike(save(tmp_path / "model", kind, SMALL | KINDS[kind] | settings))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "layers"), [("gemma2", 46), ("gemma2", 62), ("gemma3_text", 46), ("gemma3_text", 62)])
def test_the_number_of_layers_decides_the_scale_of_attention(tmp_path: Path, kind: str, layers: int) -> None:
    """llama.cpp takes Gemma 2 with 46 layers and Gemma 3 with 62 for the models of 27 billion parameters."""
    large = (kind, layers) in (("gemma2", 46), ("gemma3_text", 62))
    shape = {
        "num_hidden_layers": layers,
        "hidden_size": 160,
        "head_dim": 32,
        "query_pre_attn_scalar": 40 if large else 32,
    }
    folder = save(tmp_path / "model", kind, SMALL | KINDS[kind] | shape)
    computed_alike(folder, 20)
    with pytest.raises(ModelError, match=r"attention is scaled by (32|40)"):
        gguf.check_supported(edited(folder, tmp_path / "other", {"query_pre_attn_scalar": 32 if large else 40}))


@pytest.mark.parametrize("kind", ["mistral", "phi3"])
def test_a_window_ends_the_context_whatever_use_sliding_window_says(
    plain: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    changes = {"sliding_window": 20, "use_sliding_window": False}
    assert computed_alike(edited(plain[kind], tmp_path / "model", changes), 18)["context_length"] == 20


@pytest.mark.parametrize(("original", "context"), [(300, 256), (511, 256), (512, 512)])
def test_longrope_ends_where_the_cache_would_choose_other_factors(
    plain: dict[str, Path], tmp_path: Path, original: int, context: int
) -> None:
    folder = edited(plain["phi3"], tmp_path / "model", {"rope_parameters": LONG, ORIGINAL: original})
    assert gguf.write(folder, tmp_path / "model.gguf", "q8_0", threads=1)["context_length"] == context


@pytest.mark.parametrize("kind", ["qwen2", "gemma2", "gemma3_text"])
def test_an_output_matrix_that_is_stored_is_not_tied(plain: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """transformers ties by config.json, unless the file holds both matrices with different values."""
    from safetensors.torch import load_file, save_file

    folder = edited(plain[kind], tmp_path / "model", {"tie_word_embeddings": True})
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if kind == "gemma2":
        with pytest.raises(ModelError, match="tie_word_embeddings"):
            gguf.write(folder, tmp_path / "model.gguf", "f16")
    else:
        computed_alike(folder)


REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    *[(kind, f"scaled by '{type}'", {"rope_parameters": rotate(type, factor=4.0)}) for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3") for type in ("yarn", "dynamic")],
    *[(kind, "hidden_act", {"hidden_act": "relu", "hidden_activation": "silu"}) for kind in ("llama", "mistral", "qwen2", "qwen3", "phi3")],
    *[(kind, "llama3", {"rope_parameters": LLAMA3 | {ORIGINAL: 64}}) for kind in ("qwen2", "qwen3", "gemma2", "phi3")],
    ("qwen2", "make 192 elements", {"head_dim": 48}),
    ("phi3", "make 192 elements", {"head_dim": 48}),
    ("llama", "by kind of layer", kinds(rotate())),
    ("qwen2", "by kind of layer", kinds(rotate())),
    ("llama", "not a mapping", {"rope_scaling": "linear"}),
    ("llama", "not a mapping", {"rope_parameters": [1]}),
    ("llama", "factor 0", {"rope_parameters": rotate("linear", factor=0)}),
    ("llama", "low_freq_factor 0", {"rope_parameters": LLAMA3 | {"low_freq_factor": 0}}),
    ("llama", "not below", {"rope_parameters": LLAMA3 | {"low_freq_factor": 8.0}}),
    ("mistral", "not a number of tokens", {"sliding_window": "7"}),
    ("gemma2", "tie_word_embeddings", {"tie_word_embeddings": False}),
    ("gemma2", "attention_bias", {"attention_bias": True}),
    ("gemma2", "do not alternate", {"layer_types": ["full_attention", "sliding_attention"]}),
    ("gemma3_text", "do not alternate", {"sliding_window_pattern": 3, "layer_types": ...}),
    ("gemma3_text", "16.0, not a number of tokens", {"sliding_window": 16.0}),
    ("gemma3_text", "final_logit_softcapping is 0", {"final_logit_softcapping": 0.0}),
    ("gemma3_text", "not given by kind of layer", {"rope_parameters": rotate()}),
    ("gemma3_text", "not a mapping", {"rope_parameters": {"full_attention": 3}}),
    ("gemma3_text", "sliding layers is scaled", kinds(rotate(), rotate("linear", factor=2.0))),
    ("gemma3_text", "sliding layers rotate by", {"rope_parameters": ..., "rope_local_base_freq": 5e3}),
    ("phi3", "256 tokens at least", {"rope_parameters": LONG, ORIGINAL: 100}),
    ("phi3", "no original_max_position_embeddings", {"rope_parameters": LONG, ORIGINAL: None}),
    ("phi3", "attention_factor", {"rope_parameters": LONG | {"attention_factor": 0.0}}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "words", "changes"), REFUSED, ids=[f"{kind}: {words}" for kind, words, _ in REFUSED])
def test_other_settings_are_refused_before_anything_is_written(
    tmp_path: Path, kind: str, words: str, changes: dict[str, Any]
) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model(kind, **SHAPE | SMALL | KINDS[kind]).save_pretrained(tmp_path)
    architecture = {"gemma3_text": "Gemma3ForCausalLM"}.get(kind, f"{kind.capitalize()}ForCausalLM")
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": [architecture]} | changes
    (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    with pytest.raises(ModelError, match=words) as caught:
        gguf.check_supported(tmp_path)
    assert "\n" not in str(caught.value)
