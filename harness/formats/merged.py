"""Merged models: the adapter added onto the 16-bit base, written in 16 bits and, from that, in 4 (NF4).

Both stream: a few tensors are read, merged or quantised while one is written, so that memory does not grow with the model.
The adapter is merged into the original 16-bit weights, not into the dequantised NF4 weights that training used; the report shows the difference.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from harness.errors import ArtifactError, ModelError
from harness.formats import Checked, Sources, safetensors_reader
from harness.formats.safetensors_reader import Tensor

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

T = TypeVar("T")
COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
)
NF4 = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
}
AT_ONCE = 3
"""Tensors processed at once: more than one to hide I/O, few to limit memory."""
BLOCK = 64
"""Weights that share a scale in NF4; bitsandbytes' default."""


def export_16bit(sources: Sources, out: Path, name: str) -> Checked:
    """Writes and checks `merged_16bit`."""
    written = write_16bit(sources.base, sources.adapter, out)
    tensors_found = check(out, written["tensors"])["tensors"]
    return Checked(
        tensors_found,
        [f"{tensors_found} tensors read back, values finite", f"{written['merged']} tensors changed by the adapter"],
    )


def export_4bit(sources: Sources, out: Path, name: str) -> Checked:
    """Writes and checks `merged_4bit`."""
    written = write_4bit(sources.merged_16bit, out)
    tensors_found = check(out, written["tensors"])["tensors"]
    return Checked(
        tensors_found, [f"{tensors_found} tensors read back, values finite", f"{written['quantised']} weights in NF4"]
    )


# ------------------------------------------------------------------------------------------------------------ 16 bits


def write_16bit(base: Path, adapter: Path, out: Path) -> dict[str, Any]:
    """Writes base + adapter as a 16-bit model folder, sharded as the base is.

    Each adapted weight becomes W + (alpha / r) B A, computed in float32 and rounded once to the base's dtype (LoRA, arXiv 2106.09685, section 4.1).

    Returns:
        {`tensors`: how many were written, `merged`: how many of them the adapter changed}.
    Raises:
        ModelError: an adapter of another kind than plain LoRA, or one that fits another base.
    """
    lora = _Adapter(adapter)
    index = safetensors_reader.index(base)
    strangers = sorted(set(lora.targets) - set(index))
    if strangers:
        raise ModelError(
            f"adapts {strangers[0]!r}, which {base} does not have",
            "merge it onto the base that it was trained on",
            file=adapter,
        )
    out.mkdir(parents=True)
    copy_companions(base, out)
    for file in sorted({t.file for t in index.values()}):
        names = [name for name, t in index.items() if t.file == file]
        log.info(f"merging {file.name}: {len(names)} tensors")
        write_safetensors(
            out / file.name, zip(names, _ahead(lambda name: lora.merge(index[name]), names), strict=True), len(names)
        )
    if (base / safetensors_reader.INDEX).exists():
        shutil.copyfile(base / safetensors_reader.INDEX, out / safetensors_reader.INDEX)
    return {"tensors": len(index), "merged": len(lora.targets)}


class _Adapter:
    """A plain LoRA adapter: the update of each weight."""

    def __init__(self, folder: Path):
        from safetensors import SafetensorError, safe_open

        settings = safetensors_reader.read_json(folder / "adapter_config.json", "adapter_config.json")
        for key in (
            "use_dora",
            "modules_to_save",
            "rank_pattern",
            "alpha_pattern",
            "layers_to_transform",
            "fan_in_fan_out",
        ):
            if settings.get(key):
                raise ModelError(f"uses {key}, which merging does not support", "train with plain LoRA", file=folder)
        if settings.get("peft_type") != "LORA" or settings.get("bias", "none") != "none":
            raise ModelError("is not a plain LoRA adapter", "train with plain LoRA", file=folder)
        r, alpha = settings.get("r"), settings.get("lora_alpha")
        if not isinstance(r, int) or r < 1 or not isinstance(alpha, int | float):
            raise ModelError(
                f"has r {r!r} and lora_alpha {alpha!r} in adapter_config.json", "train it again", file=folder
            )
        self.scale = alpha / r**0.5 if settings.get("use_rslora") else alpha / r
        try:
            self.file = safe_open(folder / "adapter_model.safetensors", framework="pt")
        except (SafetensorError, OSError) as error:
            raise ArtifactError(
                f"cannot be read ({error})", "train again", file=folder / "adapter_model.safetensors"
            ) from None
        prefix, suffix = "base_model.model.", ".lora_A.weight"
        names = list(self.file.keys())
        self.targets = {
            name.removeprefix(prefix).removesuffix(suffix) + ".weight": name for name in names if name.endswith(suffix)
        }
        if len(self.targets) * 2 != len(names):
            raise ModelError("holds tensors that are not LoRA's A and B", "train with plain LoRA", file=folder)

    def merge(self, tensor: Tensor) -> torch.Tensor:
        """The merged tensor, in its own dtype."""
        import torch

        merged = _as_is(tensor)
        if (key := self.targets.get(tensor.name)) is not None:
            a, b = (self.file.get_tensor(key.replace(".lora_A.", side)).float() for side in (".lora_A.", ".lora_B."))
            if (b.shape[0], a.shape[1]) != tuple(tensor.shape):
                shape = f"{b.shape[0]} x {a.shape[1]}"
                raise ModelError(
                    f"the adapter's {tensor.name} is {shape}",
                    "merge it onto the base that it was trained on",
                    file=tensor.file,
                )
            merged = merged.float().add_(self.scale * (b @ a)).to(merged.dtype)
        if not torch.isfinite(merged).all():
            raise ModelError(
                f"merging {tensor.name} gave values that are NaN or infinite",
                "look at the training's loss",
                file=tensor.file,
            )
        return merged


def adapter_tensors(folder: Path) -> list[str]:
    """The weights that an adapter changes; raises what reading it raises."""
    return sorted(_Adapter(folder).targets)


# ------------------------------------------------------------------------------------------------------------- 4 bits


def write_4bit(model: Path, out: Path) -> dict[str, Any]:
    """Writes a 16-bit model folder as NF4 with double quantisation, as `from_pretrained` loads it without further options.

    Quantised are the linear layers that transformers would quantise on loading; embeddings, norms and the output layer stay 16-bit.
    """
    # Import before starting threads: a concurrent import could see its functions before its kernels are registered.
    import bitsandbytes  # noqa: F401

    index = safetensors_reader.index(model)
    linear = _linear_weights(model)
    out.mkdir(parents=True)
    copy_companions(model, out)
    config = safetensors_reader.read_json(model / "config.json", "config.json")
    (out / "config.json").write_text(
        json.dumps(config | {"quantization_config": NF4}, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )

    def packed(name: str) -> list[tuple[str, torch.Tensor]]:
        return list(_quantised(index[name])) if name in linear else [(name, _as_is(index[name]))]

    log.info(f"quantising {len(linear)} of {len(index)} tensors to NF4")
    written = write_safetensors(
        out / safetensors_reader.WHOLE, chain.from_iterable(_ahead(packed, index)), len(index) * 6
    )
    return {"tensors": written, "quantised": len(linear & set(index))}


def _linear_weights(model: Path) -> set[str]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    output = skeleton.get_output_embeddings()
    return {
        f"{name}.weight"
        for name, module in skeleton.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not output
    }


def _quantised(tensor: Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    import torch
    from bitsandbytes.functional import quantize_4bit

    # Quantised from 16 bits, as on loading: bitsandbytes stores the dtype it must give back.
    weight = _as_is(tensor)
    packed, state = quantize_4bit(
        weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4", quant_storage=torch.uint8
    )
    yield tensor.name, packed
    for key, value in state.as_dict(packed=True).items():
        yield f"{tensor.name}.{key}", value


def _as_is(tensor: Tensor) -> torch.Tensor:
    import torch

    values = torch.from_numpy(tensor.raw()).reshape(tensor.shape)
    return values.view(torch.bfloat16) if tensor.dtype == "BF16" else values


# ------------------------------------------------------------------------------------------------------------- common


def _ahead(work: Callable[[str], T], names: Iterable[str]) -> Iterator[T]:
    """Yields `work` of each name in order; the next few are computed while one is written."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for name in names:
                waiting.append(pool.submit(work, name))
                if len(waiting) > AT_ONCE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def copy_companions(source: Path, out: Path) -> None:
    """Copies tokenizer, model config and generation config."""
    for name in COPIED:
        if (source / name).exists():
            shutil.copyfile(source / name, out / name)


def write_safetensors(path: Path, stream: Iterator[tuple[str, torch.Tensor]], expected: int) -> int:
    """Writes tensors to one safetensors file as they come; returns how many there were.

    Space for the header, whose contents are known only at the end, is reserved at the front and padded with spaces, as the format allows.
    """
    import torch

    room = 1024 + 256 * expected
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    with path.open("wb") as file:
        file.seek(8 + room)
        for name, tensor in stream:
            data = tensor.contiguous().flatten().view(torch.uint8).numpy().data if tensor.numel() else b""
            file.write(data)
            dtype = str(tensor.dtype).removeprefix("torch.")
            kind = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "uint8": "U8"}[dtype]
            end = offset + tensor.numel() * tensor.element_size()
            header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        if len(text) > room:
            raise ArtifactError(f"its header needs {len(text)} bytes and got {room}", "report this as a bug", file=path)
        file.seek(0)
        file.write(room.to_bytes(8, "little") + text.ljust(room))
    return len(header) - 1


def check(folder: Path, expected: int) -> dict[str, Any]:
    """Opens a written model folder again: every tensor there, files whole, values finite at a sample of rows.

    Raises:
        ArtifactError: naming what is missing or damaged.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    count = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    part = opened.get_slice(name)
                    rows = part[: min(4, part.get_shape()[0])] if part.get_shape() else opened.get_tensor(name)
                    if rows.is_floating_point() and not torch.isfinite(rows).all():
                        raise ArtifactError(
                            f"tensor {name!r} holds values that are NaN or infinite", "export again", file=file
                        )
                    count += 1
        except SafetensorError as error:
            raise ArtifactError(f"is damaged ({error})", "export again", file=file) from None
    if count != expected:
        raise ArtifactError(f"holds {count} tensors where {expected} were written", "export again", file=folder)
    for name in ("config.json", "tokenizer.json"):
        safetensors_reader.read_json(folder / name, name)
    return {"tensors": count}
