"""Small random models of the families that are written as GGUF, and how far a file is from its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from harness.backends import Execution, Generation, Source
from harness.backends.llamacpp import LlamaCppBackend
from tests.helpers.models import save_tokenizer

SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.05,
    "vocab_size": 512,
}


def save(folder: Path, kind: str, settings: dict[str, Any]) -> Path:
    """Saves a random model of that `model_type`, biases and norms random as well."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = save_tokenizer(folder)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SHAPE | ends | settings)
    model: Any = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and "gemma" not in kind else 0.0, std=0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def divergence(folder: Path, path: Path, positions: int) -> tuple[float, float]:
    """(mean KL in nats, top-1 agreement) of two rows of random tokens: a GGUF file against its model in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    rows = np.random.default_rng(0).integers(0, 500, (2, positions + 1)).tolist()
    backend = LlamaCppBackend(Source(path), Generation(4, (), 0), Execution(slots=1, threads=1))
    found = backend.logprobs([row[:1] for row in rows], [row[1:] for row in rows])
    backend.close()
    values, same = [], []
    for row, q in zip(rows, found, strict=True):
        with torch.no_grad():
            p = torch.log_softmax(model(torch.tensor([row])).logits[0, :-1].double(), -1).numpy()
        values += (np.exp(p) * (p - q)).sum(1).tolist()
        same += (p.argmax(1) == q.argmax(1)).tolist()
    assert len(values) == 2 * positions
    return float(np.mean(values)), float(np.mean(same))
