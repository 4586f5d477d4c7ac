"""The model families that are written as GGUF here. A new family is one entry of FAMILIES, if its tensors are of the known kinds.

Each entry says how the family differs from Llama in names, shapes and keys; llama.cpp's conversion/ (llama.py, qwen.py, gemma.py, phi.py) and
its src/models/ say what those keys make it compute. Models that it would compute differently from transformers are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import MODEL_ARCH, GGUFWriter

from harness.errors import ModelError
from harness.formats import rotary

Config = dict[str, Any]


class UnsupportedModel(ModelError):
    """A model that only llama.cpp's own converter can write."""


def _nothing(_: GGUFWriter, __: Config) -> None: ...


@dataclass(frozen=True)
class Family:
    """How a family's Hugging Face models differ from Llama's."""

    arch: MODEL_ARCH
    name: str
    """Of the architecture in GGUF."""
    permuted: bool = False
    """Rows of q and k are permuted: llama.cpp rotates neighbouring pairs, transformers the two halves of a head."""
    biases: tuple[str, ...] = ()
    """Projections that always have a bias."""
    optional_biases: bool = False
    """`attention_bias` and `mlp_bias` are honoured by llama.cpp."""
    head_norms: bool = False
    """q and k are normalised head by head."""
    fused: bool = False
    """q, k and v are fused in one tensor, and gate and up projection in another."""
    four_norms: bool = False
    """Attention and MLP are normalised before and after."""
    norm_offset: float = 0.0
    """Added to the norm weights, which transformers stores minus one."""
    activation: str = "silu"
    head_dim: int | None = None
    """Where config.json does not say it; None: hidden size over heads."""
    always_tied: bool = False
    """transformers ties the output to the embedding by default."""
    window: str = "none"
    """`none`: llama.cpp's code has none, so that the context ends at the window. `alternating`: sliding and full layers by turns."""
    full_every: int = 0
    """For `alternating`: every n-th layer has full attention."""
    rope_types: tuple[str, ...] = ("default", "linear", "llama3")
    settings: Callable[[GGUFWriter, Config], None] = _nothing
    """Writes the family's own keys."""


def _gemma2(writer: GGUFWriter, config: Config) -> None:
    writer.add_attn_logit_softcapping(config.get("attn_logit_softcapping", 50.0))
    writer.add_final_logit_softcapping(config.get("final_logit_softcapping", 30.0))
    writer.add_sliding_window(config.get("sliding_window", 4096))


def _gemma3(writer: GGUFWriter, config: Config) -> None:
    writer.add_sliding_window(config.get("sliding_window", 4096))
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def _phi3(writer: GGUFWriter, config: Config) -> None:
    # A window of 0 keeps llama.cpp from assuming a default window.
    writer.add_sliding_window(0)
    original = rotary.settings(config).get(rotary.ORIGINAL) or config.get(rotary.ORIGINAL)
    writer.add_rope_scaling_orig_ctx_len(original or config["max_position_embeddings"])


_GEMMA = {"norm_offset": 1.0, "four_norms": True, "activation": "gelu_pytorch_tanh", "head_dim": 256} | {
    "always_tied": True,
    "window": "alternating",
}
_LLAMA = Family(MODEL_ARCH.LLAMA, "llama", permuted=True, optional_biases=True)

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": _LLAMA,  # SmolLM and SmolLM2 as well
    "MistralForCausalLM": Family(MODEL_ARCH.LLAMA, "llama", permuted=True),
    "Qwen2ForCausalLM": Family(
        MODEL_ARCH.QWEN2, "qwen2", biases=("q_proj", "k_proj", "v_proj"), rope_types=("default", "linear")
    ),
    "Qwen3ForCausalLM": Family(
        MODEL_ARCH.QWEN3, "qwen3", head_norms=True, head_dim=128, rope_types=("default", "linear")
    ),
    "Gemma2ForCausalLM": Family(
        MODEL_ARCH.GEMMA2, "gemma2", full_every=2, rope_types=("default",), settings=_gemma2, **_GEMMA
    ),
    "Gemma3ForCausalLM": Family(
        MODEL_ARCH.GEMMA3,
        "gemma3",
        full_every=6,
        head_norms=True,
        rope_types=("default", "linear"),
        settings=_gemma3,
        **_GEMMA,
    ),
    "Phi3ForCausalLM": Family(
        MODEL_ARCH.PHI3, "phi3", fused=True, rope_types=("default", "longrope"), settings=_phi3
    ),  # Phi-4 and Phi-4-mini as well
}
"""`architectures` of config.json -> family."""


def find(config: Config, folder: Path) -> Family:
    """The family of a config.json; UnsupportedModel if there is none."""
    name = (config.get("architectures") or [config.get("model_type")])[0]
    if name not in FAMILIES:
        raise UnsupportedModel(
            f"its architecture is {name}, and GGUF is written here for {', '.join(FAMILIES)}", file=folder
        )
    return FAMILIES[name]


def head_dim(config: Config) -> int:
    """Elements of a head."""
    name = (config.get("architectures") or [""])[0]
    default = FAMILIES.get(name, _LLAMA).head_dim
    return config.get("head_dim") or default or config["hidden_size"] // config["num_attention_heads"]


def tied(config: Config) -> bool:
    """Whether the output matrix is the embedding."""
    name = (config.get("architectures") or [""])[0]
    return bool(config.get("tie_word_embeddings", FAMILIES.get(name, _LLAMA).always_tied))


def check(config: Config, family: Family, folder: Path) -> None:
    """Raises UnsupportedModel if llama.cpp would compute something different from transformers."""
    problem = (
        rotary.malformed(config)
        or _activation(config, family)
        or _biases(config, family)
        or _window(config, family)
        or _scale(config, family)
        or _soft_caps(config, family)
        or _rotation(config, family)
        or _shapes(config, family)
    )
    if problem:
        raise UnsupportedModel(problem, file=folder)


def context_length(config: Config, family: Family) -> int:
    """Maximum tokens for which llama.cpp computes the same as transformers."""
    longest = rotary.context_length(config)
    if family.window == "none" and family.name not in ("qwen2", "qwen3") and config.get("sliding_window"):
        # transformers ignores use_sliding_window for all but Qwen.
        longest = min(longest, config["sliding_window"])
    return longest


def _activation(config: Config, family: Family) -> str | None:
    key = "hidden_activation" if family.four_norms else "hidden_act"  # transformers reads no other for the family
    used = config.get(key, family.activation)
    return None if used == family.activation else f"its activation ({key}) is {used}, not {family.activation}"


def _biases(config: Config, family: Family) -> str | None:
    if family.optional_biases:
        return None
    extra = next((key for key in ("attention_bias", "mlp_bias") if config.get(key)), None)
    return f"its {extra} is true, which llama.cpp does not know of {family.name}" if extra else None


def _window(config: Config, family: Family) -> str | None:
    if config.get("use_sliding_window"):
        return "it uses a sliding window (use_sliding_window), which llama.cpp does not"
    if config.get("use_bidirectional_attention"):
        return "each token sees those behind it (use_bidirectional_attention), which llama.cpp does not know"
    window = config.get("sliding_window", 4096)
    if family.window != "alternating":
        sliding = "sliding_attention" in (config.get("layer_types") or ())
        if sliding and family.name in ("qwen2", "qwen3"):
            return "some of its layers have a sliding window (layer_types), which llama.cpp does not know"
        return None if window is None or _tokens(window) else f"its sliding_window is {window}, not a number of tokens"
    if not _tokens(window):
        return f"its sliding_window is {window}, not a number of tokens"
    every = (config.get("sliding_window_pattern") if family.name == "gemma3" else None) or family.full_every
    if (config.get("layer_types") or _layer_types(config, every)) != _layer_types(config, family.full_every):
        return f"its layers do not alternate as llama.cpp has it ({family.full_every - 1} sliding, one full)"
    if family.name == "gemma3" and config.get("attn_logit_softcapping"):
        return "its attention is soft-capped, which llama.cpp does not know of gemma3"
    return None


def _layer_types(config: Config, every: int) -> list[str]:
    layers = range(1, config["num_hidden_layers"] + 1)
    return ["sliding_attention" if layer % every else "full_attention" for layer in layers]


def _tokens(value: object) -> bool:
    return isinstance(value, int) and rotary.positive(value)


def _soft_caps(config: Config, family: Family) -> str | None:
    """llama.cpp caps both of Gemma 2's logits always; transformers does not where config.json says null."""
    if family.name == "gemma2":
        for key, default in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)):
            if not rotary.positive(config.get(key, default)):
                return f"its {key} is {config[key]}, and llama.cpp always caps"
    cap = config.get("final_logit_softcapping")
    if family.name == "gemma3" and cap is not None and not rotary.positive(cap):
        return f"its final_logit_softcapping is {cap}, not a positive number"
    return None


def _rotation(config: Config, family: Family) -> str | None:
    if found := rotary.problem(config, head_dim(config)):
        return found
    if family.name != "gemma3":
        return None
    local = rotary.settings(config, "sliding_attention")
    if local["rope_type"] != "default":
        return f"the rotary embedding of its sliding layers is scaled by {local['rope_type']!r}"
    if local["rope_theta"] != 10000.0:
        return f"its sliding layers rotate by {local['rope_theta']}, not 10000"
    return None


def _scale(config: Config, family: Family) -> str | None:
    """Gemma's attention is scaled by a number of config.json; llama.cpp takes the size of a head."""
    if family.window != "alternating":
        return None
    scalar, dim = config.get("query_pre_attn_scalar", 256), head_dim(config)
    # llama.cpp knows the two models of 27 billion parameters by their layers.
    if config["num_hidden_layers"] == {"gemma2": 46, "gemma3": 62}[family.name]:
        dim = config["hidden_size"] // config["num_attention_heads"]
    return None if scalar == dim else f"its attention is scaled by {scalar}, and llama.cpp scales it by {dim}"


def _shapes(config: Config, family: Family) -> str | None:
    """Shapes that llama.cpp would refuse to load."""
    hidden, width = config["hidden_size"], head_dim(config) * config["num_attention_heads"]
    if family.name in ("qwen2", "phi3") and width != hidden:
        return f"its heads make {width} elements and its hidden size is {hidden}; in llama.cpp's {family.name} both are equal"
    if family.name == "gemma2" and not tied(config):
        return "its output matrix is not the embedding (tie_word_embeddings), as llama.cpp's gemma2 has it"
    return None


def expected(config: Config, family: Family) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors (transformers models/*/modeling_*.py)."""
    hidden, rows = config["hidden_size"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, hidden)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _layer(config, family).items()}
    shapes["model.norm.weight"] = (hidden,)
    if not tied(config):
        shapes["lm_head.weight"] = (rows, hidden)
    return shapes


def _layer(config: Config, family: Family) -> dict[str, tuple[int, ...]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, dim = config["num_attention_heads"], head_dim(config)
    kv_heads = config.get("num_key_value_heads") or heads
    attention = {"q_proj": heads * dim, "k_proj": kv_heads * dim, "v_proj": kv_heads * dim}
    up = {"gate_proj": inner, "up_proj": inner}
    if family.fused:
        attention, up = {"qkv_proj": (heads + 2 * kv_heads) * dim}, {"gate_up_proj": 2 * inner}
    blocks = {
        "self_attn": {**{name: (rows, hidden) for name, rows in attention.items()}, "o_proj": (hidden, heads * dim)},
        "mlp": {**{name: (rows, hidden) for name, rows in up.items()}, "down_proj": (hidden, inner)},
    }
    biased = {"self_attn": config.get("attention_bias"), "mlp": config.get("mlp_bias")}
    shapes: dict[str, tuple[int, ...]] = {}
    for block, matrices in blocks.items():
        for name, shape in matrices.items():
            shapes[f"{block}.{name}.weight"] = shape
            if name in family.biases or (family.optional_biases and biased[block]):
                shapes[f"{block}.{name}.bias"] = shape[:1]
    if family.head_norms:
        shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (dim,)
    norms = ("input_layernorm", "post_attention_layernorm")
    if family.four_norms:
        norms = (*norms, "pre_feedforward_layernorm", "post_feedforward_layernorm")
    return shapes | {f"{name}.weight": (hidden,) for name in norms}
