"""Attention over rows that are packed end to end in one sequence: within each row, causal, by PyTorch's variable-length flash attention.

Unsloth's own padding-free layout runs attention row by row where neither flash-attn nor xformers is installed, and asks the device for the
rows' lengths at every step, which no CUDA graph can hold. Here the lengths are a tensor that is refilled between steps.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from harness.models import devices
from harness.prompt import IGNORED

LOGIT_RULES = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "output_logit_soft_cap",
    "logit_scale",
    "lm_head_multiplier",
    "logits_scaling",
)
"""Keys of config.json of models that do more than a matrix product between the last hidden state and the logits."""
HOOKS = ("run_attention", "get_packed_info_from_kwargs")
"""Functions that Unsloth's model files call for attention, and to find where rows begin."""
HIDDEN_STATES = "UNSLOTH_RETURN_HIDDEN_STATES"
"""Set to 1, Unsloth's models return the last hidden states instead of logits."""


def namespaces(model: Any) -> list[dict[str, Any]]:
    """Globals of the Unsloth files that run this model; empty if it is not one whose attention can be replaced."""
    backbone = model.get_base_model() if hasattr(model, "get_base_model") else model
    found: dict[int, dict[str, Any]] = {}
    attentions = 0
    for module in backbone.modules():
        names = getattr(type(module).forward, "__globals__", {})
        if all(hook in names for hook in HOOKS) and str(names.get("__name__", "")).startswith("unsloth."):
            found[id(names)] = names
            attentions += type(module).__name__.endswith("Attention")
    return list(found.values()) if attentions else []


def is_supported(model: Any) -> bool:
    """Whether rows of this model can be packed on this machine."""
    if any(getattr(model.config, rule, None) for rule in LOGIT_RULES):
        return False
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < devices.AMPERE or not namespaces(model):
        return False
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    return next(p.dtype for p in model.parameters() if p.is_floating_point() and not p.requires_grad) in (
        torch.bfloat16,
        torch.float16,
    )


def loss(model: Any, inputs: dict[str, torch.Tensor], items: Any) -> torch.Tensor:
    """Cross-entropy of the labelled tokens, summed and divided by `items`, with logits for no other position.

    Unsloth's own loss reads the labelled positions from the device; here they come with the rows (`harness.training.rows.packed`).
    """
    backbone = model.get_base_model()
    before = os.environ.get(HIDDEN_STATES)
    os.environ[HIDDEN_STATES] = "1"
    try:
        hidden = model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False).logits
    finally:
        os.environ.pop(HIDDEN_STATES) if before is None else os.environ.update({HIDDEN_STATES: before})
    weight = backbone.get_output_embeddings().weight
    logits = torch.nn.functional.linear(hidden[0].index_select(0, inputs["at"]).to(weight.dtype), weight)
    summed = torch.nn.functional.cross_entropy(logits.float(), inputs["targets"], ignore_index=IGNORED, reduction="sum")
    return summed / items


def allow_long_sequences(model: Any) -> None:
    """Allows packed rows to exceed the length of a single row: Unsloth would truncate them silently at the length it was loaded with."""
    for module in model.modules():
        if hasattr(module, "max_seq_length"):
            module._unsloth_allow_packed_overlength = True


def held(model: Any) -> list[torch.Tensor]:
    """Tensors that modules hold outside of parameters and buffers, mostly tables of rotary embeddings.

    A longer sequence makes Unsloth replace such a table; a CUDA graph that captured the old one must keep it alive.
    """
    values = [value for module in model.modules() for value in vars(module).values()]
    values += [item for value in values if isinstance(value, list | tuple) for item in value]
    return [value for value in values if isinstance(value, torch.Tensor)]


@contextmanager
def attention_within_rows(spaces: list[dict[str, Any]], cu_seqlens: torch.Tensor, longest: int) -> Iterator[None]:
    """Replaces the attention of the model that these namespaces belong to.

    Warning: this patches module globals of another package (`HOOKS`) while the context is open, and restores them. It relies on the names and
    keyword arguments of Unsloth as pinned in requirements/constraints.txt; `is_supported` is false for a release without these names.

    Args:
        cu_seqlens: int32, where each row begins and the last ends, on the device; read when the attention runs.
        longest: no row is longer.
    """

    def attend(*, config: Any, context: Any, Q: torch.Tensor, K: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
        # (1, heads, tokens, width) -> (tokens, heads, width), and back to (1, tokens, heads, width).
        query, key, value = (x[0].transpose(0, 1) for x in (Q, K, V))
        return _attention()(query, key, value, cu_seqlens, cu_seqlens, longest, longest)[None]

    before = [{hook: names[hook] for hook in HOOKS} for names in spaces]
    try:
        for names in spaces:
            names.update(run_attention=attend, get_packed_info_from_kwargs=lambda *_, **__: None)
        yield
    finally:
        for names, originals in zip(spaces, before, strict=True):
            names.update(originals)


def _attention() -> Any:
    """PyTorch's varlen_attn, causal. Before PyTorch 2.11 the argument was `is_causal`; `enable_gqa` came later still."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *where: Any) -> Any:
        if "enable_gqa" in known:
            return varlen_attn(query, key, value, *where, **causal, enable_gqa=True)
        groups = query.shape[1] // key.shape[1]
        return varlen_attn(
            query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), *where, **causal
        )

    return attend
