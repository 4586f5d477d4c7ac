"""The importance matrix: how much each input of each linear layer matters on training questions, for the small GGUF types.

llama.cpp's quantiser weighs the error of a weight with the mean square of what it is multiplied by (tools/imatrix). Here transformers measures it: it
runs the merged 16-bit model over training rows (question and answer, as trained), never over development or held-out ones. Embedding and output
weights have none, as in llama.cpp.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from harness import storage
from harness.errors import ModelError
from harness.formats import families

ROWS_AT_ONCE_TOKENS = 8192
"""Padded tokens of one batch."""
CPU_OPERATIONS = 1e12
"""Operations for each core without a GPU, at 2 for each weight and token: about a minute; larger models are measured on fewer rows."""
LARGE = 2e9
"""Weights from which a model is kept in 16 bits on the CPU too."""


def load_or_measure(
    file: Path, model_folder: Path, rows: Sequence[Sequence[int]], *, device: str, key: str
) -> dict[str, np.ndarray]:
    """The importance matrix in `file` if it was measured under this key, else measured now and kept there.

    Args:
        rows: token ids of training rows.
        key: hash of everything that decides it.
    """
    if file.exists():
        with np.load(file) as stored:
            if str(stored["key"]) == key:
                return {name: stored[name] for name in stored.files if name != "key"}
    found = measure(model_folder, rows, device=device)
    with storage.atomic_path(file) as temporary, temporary.open("wb") as handle:
        arrays: dict[str, Any] = {**found, "key": np.array(key)}
        np.savez(handle, **arrays)
    return found


def measure(model_folder: Path, rows: Sequence[Sequence[int]], *, device: str) -> dict[str, np.ndarray]:
    """GGUF tensor name -> mean square of each input over all tokens of `rows`, float32 of shape (columns,).

    Raises:
        ModelError: no rows, or the model gives values that are not finite numbers.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if not rows:
        raise ModelError("there are no training rows to measure importance on", "set export.importance_rows to 0")
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    weights = sum(file.stat().st_size for file in model_folder.glob("*.safetensors")) // 2
    if device == "cpu":
        rows = affordable(rows, weights)
    dtype = torch.float32 if device == "cpu" and weights < LARGE else torch.bfloat16
    loaded: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype)
    model = loaded.to(device).eval()
    names = gguf_names(config, model_folder)
    squares: dict[str, Any] = {}
    tokens = 0
    mask: Any = None

    def hook(name: str) -> Any:
        def add(_: Any, inputs: tuple[Any, ...]) -> None:
            kept = inputs[0][mask].float()
            squares[name] = squares.get(name, 0) + kept.pow(2).sum(0, dtype=torch.float64)

        return add

    with ExitStack() as stack, torch.inference_mode():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and f"{name}.weight" in names:
                handle = module.register_forward_pre_hook(hook(names[f"{name}.weight"]))
                stack.callback(handle.remove)
        for batch in _batches(rows):
            width = max(map(len, batch))
            ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in batch], device=device)
            lengths = torch.tensor([len(row) for row in batch], device=device)
            mask = torch.arange(width, device=device)[None] < lengths[:, None]
            # Run only the trunk: logits of a large vocabulary are not needed.
            model.base_model(input_ids=ids, attention_mask=mask.long())
            tokens += int(lengths.sum())
    del loaded, model
    if device == "cuda":
        torch.cuda.empty_cache()
    found = {name: (total / tokens).cpu().numpy().astype(np.float32) for name, total in squares.items()}
    if bad := [name for name, values in found.items() if not np.isfinite(values).all()]:
        raise ModelError(f"the inputs of {bad[0]} are not finite numbers", "check the training", file=model_folder)
    return found


def affordable(rows: Sequence[Sequence[int]], weights: int) -> Sequence[Sequence[int]]:
    """The first rows that take no more than CPU_OPERATIONS, one at the least."""
    left, count = CPU_OPERATIONS * (os.cpu_count() or 1) / (2 * max(weights, 1)), 0
    while count < len(rows) and (left > 0 or not count):
        left -= len(rows[count])
        count += 1
    return rows[:count]


def gguf_names(config: dict[str, Any], model_folder: Path) -> dict[str, str]:
    """Tensor name in the model folder -> in GGUF, of all tensors of the layers."""
    from gguf import get_tensor_name_map

    family = families.find(config, model_folder)
    names = get_tensor_name_map(family.arch, config["num_hidden_layers"])
    found = {
        name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name in families.expected(config, family)
    }
    return {name: to for name, to in found.items() if to is not None and to.startswith("blk.")}


def _batches(rows: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Rows of similar length together, so that there is little padding."""
    cut: list[list[Sequence[int]]] = []
    for row in sorted((row for row in rows if len(row)), key=len, reverse=True):
        if cut and len(cut[-1][0]) * (len(cut[-1]) + 1) <= ROWS_AT_ONCE_TOKENS:
            cut[-1].append(row)
        else:
            cut.append([row])
    return cut
