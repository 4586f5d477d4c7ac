"""Adapters trained elsewhere: located, read, and checked against their base before they are evaluated.

PEFT applies them (LoRA, rsLoRA, DoRA, `modules_to_save`, trained embeddings and output layers). Faults that raise no error elsewhere are found here:
an adapter for another base, one that changes nothing, and a merge that is not base + adapter.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import ArtifactError, ModelError
from harness.formats import safetensors_reader
from harness.formats.safetensors_reader import Tensor
from harness.models import base_model
from harness.records import Finding

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PREFIX = "base_model.model."
LORA = re.compile(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(\.weight)?$")
QUANTISED = re.compile(r"(-unsloth)?-bnb-4bit$")
"""Unsloth's suffix for pre-quantised bases; the 16-bit model has the same name without it."""
TOLERANCE = 1e-5
"""Largest difference between PEFT's merge and ours, both in float32, relative to the largest weight."""


@dataclass(frozen=True)
class Adapter:
    """An adapter's metadata."""

    folder: Path
    kind: str
    """`LoRA`, `rsLoRA` or `DoRA`, with `+ modules_to_save`."""
    base: str | None
    """Folder or hub name of the 16-bit model that it was trained on; None: it does not say."""
    revision: str | None
    """Revision of that model, if the adapter or its card names one."""
    quantised: bool
    """It was trained on a base in 4 bits, by the base's name."""
    settings: dict[str, Any]


def resolve(where: str, revision: str | None = None) -> Path:
    """The local folder of an adapter given by folder or hub name; a hub adapter is downloaded to the hub's cache.

    Raises:
        ModelError: no such adapter, or a pickle file alone.
    """
    folder = Path(where)
    if not folder.is_dir():
        folder = base_model.download_adapter(where, revision)
    if not (folder / CONFIG).is_file():
        raise ModelError(f"has no {CONFIG}", "give the folder that holds an adapter saved by PEFT", file=where)
    if not (folder / WEIGHTS).is_file():
        pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
        if pickled:
            raise ModelError(
                f"holds {pickled[0]}, a pickle file, which can run any code when it is opened",
                f"save the adapter as {WEIGHTS} where it was made: model.save_pretrained(FOLDER)",
                file=where,
            )
        raise ModelError(f"has no {WEIGHTS}", "save the whole adapter: model.save_pretrained(FOLDER)", file=where)
    return folder


def read(folder: Path) -> Adapter:
    """The adapter in a folder.

    Raises:
        ModelError: adapter_config.json is missing or damaged, or the adapter is not of the LoRA family.
    """
    settings = safetensors_reader.read_json(folder / CONFIG, CONFIG)
    if settings.get("peft_type") != "LORA":
        raise ModelError(
            f"is an adapter of the kind {str(settings.get('peft_type'))[:40]!r}",
            "give a LoRA, rsLoRA or DoRA adapter",
            file=folder,
        )
    kind = "DoRA" if settings.get("use_dora") else "rsLoRA" if settings.get("use_rslora") else "LoRA"
    if settings.get("modules_to_save"):
        kind += " + modules_to_save"
    named = settings.get("base_model_name_or_path")
    base = named if isinstance(named, str) and named else None
    return Adapter(
        folder=folder,
        kind=kind,
        base=QUANTISED.sub("", base) if base else None,
        revision=_revision(folder, settings),
        quantised=bool(base and QUANTISED.search(base)),
        settings=settings,
    )


def _revision(folder: Path, settings: dict[str, Any]) -> str | None:
    """The base's revision by adapter_config.json, else by the front matter of the adapter's card."""
    if isinstance(found := settings.get("revision"), str) and found:
        return found
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace")[:20_000] if card.is_file() else ""
    match = re.search(r"^base_model_revision:\s*['\"]?([\w./-]+)", text, re.MULTILINE)
    return match[1] if match else None


def not_exportable(adapter: Adapter) -> str | None:
    """The reason why `harness export` cannot write merged and GGUF files from this adapter; None: it can."""
    from harness.formats import merged

    try:
        merged.adapter_tensors(adapter.folder)
    except ModelError as error:
        return error.problem
    return None


# ----------------------------------------------------------------------------------------------------------- integrity


def check(adapter: Adapter, base: Path) -> list[Finding]:
    """Checks every tensor of an adapter against the base: it must fit, change the weights, and merge correctly.

    The expected merge of each weight, which PEFT's own must equal, is W + scale B A (LoRA, arXiv 2106.09685, section 4.1; scale alpha / r, or alpha /
    sqrt(r) for rsLoRA, arXiv 2312.03732), for DoRA m (W + scale B A) / ||W + scale B A|| by rows (arXiv 2402.09353, section 4), within TOLERANCE.

    Raises:
        ModelError: a tensor that the base does not have or that has another shape there (an adapter for another base), NaN or infinite values, or
        a merge that differs.
        ArtifactError: a damaged file.
    """
    weights = _tensors(adapter)
    index = safetensors_reader.index(base)
    tied = base_model.read_config(base).get("tie_word_embeddings", False)
    zero, moved, total = [], 0, 0
    log.info(f"checking the adapter ({adapter.kind}, {len(weights)} weights) against {base.name}")
    for module, parts in weights.items():
        tensor = _base_tensor(adapter, index, module, tied=tied)
        change = _change(adapter, module, parts, tensor)
        total += 1
        if change == "zero":
            zero.append(module)
        moved += change == "moved"
    return list(_findings(adapter, zero, moved, total, base))


def _findings(adapter: Adapter, zero: list[str], moved: int, total: int, base: Path) -> Iterator[Finding]:
    name = adapter.folder.name
    if len(zero) == total:
        yield Finding(
            code="adapter_without_effect",
            message=f"all {total} weights of the adapter {name} are zero: it changes nothing",
        )
    elif zero:
        yield Finding(
            code="adapter_partly_zero",
            message=f"{len(zero)} of {total} weights of the adapter {name} are zero, {zero[0]} among them",
        )
    if not moved and len(zero) < total:
        yield Finding(
            code="adapter_without_effect",
            message=f"merging the adapter {name} changes no weight: what it adds is lost in the base's rounding",
        )
    commit = base.name if base.parent.name == "snapshots" else None
    if adapter.revision and commit and commit != adapter.revision and len(adapter.revision) == len(commit):
        yield Finding(
            code="adapter_other_revision",
            message=f"the adapter {name} was trained on revision {adapter.revision[:12]} of its base, and this is {commit[:12]}",
        )


def _tensors(adapter: Adapter) -> dict[str, dict[str, torch.Tensor]]:
    """Module of the base -> part (`A`, `B`, `embedding_A`, `embedding_B`, `magnitude_vector`, `whole`) -> tensor."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = adapter.folder / WEIGHTS
    try:
        loaded = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"is damaged ({error})", "copy the adapter again", file=file) from None
    if not loaded:
        raise ModelError("holds no tensors", "save the adapter again", file=file)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in loaded.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{name} holds NaN or infinite values", "look at the training's loss", file=file)
        bare = name.removeprefix(PREFIX)
        match = LORA.search(bare)
        if match:
            found.setdefault(bare[: match.start()], {})[match[1]] = tensor
        else:
            found.setdefault(bare.removesuffix(".weight"), {})["whole"] = tensor
    return found


def _base_tensor(adapter: Adapter, index: dict[str, Tensor], module: str, *, tied: bool) -> Tensor:
    names = [module, f"{module}.weight"]
    if tied and module.endswith("lm_head"):
        names += [name for name in index if name.endswith("embed_tokens.weight")]
    tensor = next((index[name] for name in names if name in index), None)
    if tensor is None:
        raise ModelError(
            f"adapts {module!r}, which the base does not have",
            f"give the base that it was trained on ({adapter.base or 'its card may name it'}) with --base",
            file=adapter.folder,
        )
    return tensor


def _change(adapter: Adapter, module: str, parts: dict[str, torch.Tensor], tensor: Tensor) -> str:
    """`zero`, `lost` (nothing is left of it after rounding to the base's dtype) or `moved`; raises as `check`."""
    import torch

    if "whole" in parts:
        whole = parts["whole"]
        same_rows = whole.shape == tensor.shape or (whole.ndim == 2 and whole.shape[1:] == tensor.shape[1:])
        if not same_rows:  # only the vocabulary may have grown
            raise _another_base(adapter, module, tuple(whole.shape), tensor)
        if whole.shape != tensor.shape:
            return "moved"
        base = torch.from_numpy(tensor.read()).reshape(tensor.shape)
        return "lost" if torch.equal(whole.float(), base) else "moved"
    embedding = "embedding_A" in parts
    a, b = (parts.get(f"embedding_{side}" if embedding else side) for side in "AB")
    if a is None or b is None:
        raise ModelError(f"lacks one of the two factors of {module}", "save the adapter again", file=adapter.folder)
    a, b = a.float(), b.float()
    if embedding:
        a, b = b.T, a.T  # W is (vocabulary, hidden), and PEFT adds (B A)^T
    transposed = bool(adapter.settings.get("fan_in_fan_out"))
    shape = (a.shape[1], b.shape[0]) if transposed else (b.shape[0], a.shape[1])
    if shape != tuple(tensor.shape) or a.shape[0] != b.shape[1]:
        raise _another_base(adapter, module, shape, tensor)
    magnitude = parts.get("magnitude_vector")
    if not b.any() and magnitude is None:
        return "zero"
    delta = _scale(adapter, module, a.shape[0]) * (b @ a)
    base = torch.from_numpy(tensor.read()).reshape(tensor.shape)
    merged = base + (delta.T if transposed else delta)
    if magnitude is not None:
        merged = magnitude.float().reshape(-1, 1) * merged / merged.norm(dim=1, keepdim=True)
    if not embedding and not transposed:
        _same_as_peft(adapter, module, base, a, b, magnitude, merged)
    dtype = {"BF16": torch.bfloat16, "F16": torch.float16}.get(tensor.dtype, torch.float32)
    return "lost" if torch.equal(merged.to(dtype), base.to(dtype)) else "moved"


def _scale(adapter: Adapter, module: str, rank: int) -> float:
    from peft.utils.other import get_pattern_key

    settings = adapter.settings
    pattern = settings.get("alpha_pattern") or {}
    alpha = pattern.get(get_pattern_key(list(pattern), module), settings.get("lora_alpha"))
    if not isinstance(alpha, int | float):
        raise ModelError(f"has lora_alpha {alpha!r}", "save the adapter again", file=adapter.folder / CONFIG)
    return alpha / rank**0.5 if settings.get("use_rslora") else alpha / rank


def _same_as_peft(
    adapter: Adapter,
    module: str,
    base: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    magnitude: torch.Tensor | None,
    expected: torch.Tensor,
) -> None:
    """Has PEFT merge this one weight, and raises ModelError unless that gives `expected`."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    settings = adapter.settings
    rank = a.shape[0]
    alpha = _scale(adapter, module, rank) * (rank**0.5 if settings.get("use_rslora") else rank)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  # PEFT takes fractions as well
        target_modules=["weight"],
        use_rslora=bool(settings.get("use_rslora")),
        use_dora=magnitude is not None,
        init_lora_weights=True,
    )
    with torch.no_grad():
        linear = torch.nn.Linear(base.shape[1], base.shape[0], bias=False, device="meta")
        linear.weight = torch.nn.Parameter(base.clone(), requires_grad=False)
        layer: Any = inject_adapter_in_model(config, torch.nn.ModuleDict({"weight": linear})).weight
        layer.lora_A["default"].weight.copy_(a)
        layer.lora_B["default"].weight.copy_(b)
        if magnitude is not None:
            layer.lora_magnitude_vector["default"].weight.copy_(magnitude.float())
        layer.merge(safe_merge=True)
        merged = layer.get_base_layer().weight
        difference = float((merged - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if difference > TOLERANCE:
        raise ModelError(
            f"PEFT's merge of {module} is not base + adapter (they differ by {difference:.1e} of the largest weight)",
            "check the versions of peft and torch (harness doctor)",
            file=adapter.folder,
        )


def _another_base(adapter: Adapter, module: str, shape: tuple[int, ...], tensor: Tensor) -> ModelError:
    mine, theirs = (" x ".join(map(str, s)) for s in (shape, tensor.shape))
    return ModelError(
        f"is for another base: its {module} is {mine}, the base's is {theirs}",
        f"give the base that it was trained on ({adapter.base or 'its card may name it'}) with --base",
        file=adapter.folder,
    )


def trains_tokens(folder: Path) -> bool:
    """Whether an adapter changes embeddings or the output layer, so that the tokenizer beside it must be used."""
    settings = read(folder).settings
    names = [*(settings.get("modules_to_save") or []), *(settings.get("trainable_token_indices") or [])]
    return any("embed" in str(name) or "lm_head" in str(name) for name in names)
