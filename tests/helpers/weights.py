"""The tensors of a model folder, and PEFT's own merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """PEFT's merge, in the base's 16 bits."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), adapter)
    return {k: v for k, v in model.merge_and_unload().state_dict().items() if k != "lm_head.weight"}
