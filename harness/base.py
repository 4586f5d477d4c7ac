"""The base model on disk: found, checked and hashed, without importing torch."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from harness.config import Model
from harness.errors import DeviceError, ModelError
from harness.formats import tensors
from harness.store import sha256_file, sha256_tree


def resolve(model: Model) -> Path:
    """The local folder of a model given by folder or hub name, checked; a hub model is downloaded to the hub's cache.

    Raises:
        ModelError: no such folder, not reachable, gated, or one of `check`'s findings.
    """
    folder = Path(model.path)
    if folder.is_dir():
        check(folder)
        return folder
    if model.path.startswith((".", "/", "~")) or model.path.count("/") != 1:
        raise ModelError(
            "is no folder", "give a folder with config.json, weights and tokenizer, or a hub name like owner/model", file=model.path
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors", "tokenizer.model", *(["*.py"] if model.trust_remote_code else [])]
        folder = Path(snapshot_download(model.path, revision=model.revision, allow_patterns=patterns))
    except GatedRepoError:
        raise ModelError("is gated", "accept its licence on the hub and log in with `hf auth login`", file=model.path) from None
    except RepositoryNotFoundError:
        raise ModelError("is not on the hub, or private", "check the name, or log in with `hf auth login`", file=model.path) from None
    except Exception as error:  # offline machines, proxies and mirrors fail in many ways
        raise ModelError(
            f"cannot be reached ({type(error).__name__})",
            "download it where there is a network and give its folder as model.path",
            file=model.path,
        ) from None
    check(folder)
    return folder


def check(folder: Path) -> dict[str, Any]:
    """Checks that a folder holds an unquantised causal language model with its tokenizer; returns its config.json.

    Raises:
        ModelError: config, weights or tokenizer missing, or weights that are already quantised.
        ArtifactError: a truncated or damaged weight file.
    """
    config = read_config(folder)
    if "quantization_config" in config:
        raise ModelError("is already quantised", "use the 16-bit model: merging and exporting need its full weights", file=folder)
    tensors.index(folder)
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        raise ModelError("has no tokenizer", "put tokenizer.json beside the weights", file=folder)
    return config


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError("has no config.json", "give the folder of a Hugging Face model", file=folder) from None
    except (ValueError, OSError) as error:
        raise ModelError(f"cannot be read: {error}", "fetch the model again", file=file) from None
    if not isinstance(config, dict):
        raise ModelError("is not a JSON object", "fetch the model again", file=file)
    return config


def weights_sha256(folder: Path) -> str:
    """Hash of everything that decides a model's outputs: weights, model config, generation config."""
    names = {"config.json", "generation_config.json", "adapter_config.json"}
    return sha256_tree(folder, lambda p: p.suffix == ".safetensors" or p.name in names)


def artifact_sha256(path: Path) -> str:
    """The hash of an exported format: of a GGUF file, or of a model folder's weights and configs."""
    return sha256_file(path) if path.is_file() else weights_sha256(path)


def weights_size(folder: Path) -> int:
    """Bytes of the weight files."""
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def device_of(device: str) -> str:
    """`cpu` or `cuda` for a config's `device`; DeviceError if CUDA is asked for and not there."""
    if device == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise DeviceError(
            "this config needs a CUDA device and there is none", "use a machine with a GPU, or --set device=cpu for a small model"
        )
    return "cpu"


def expected_device(device: str) -> str:
    """What `device_of` will say, told without loading torch: `auto` is CUDA where the kernel shows an NVIDIA device that is not hidden."""
    if device != "auto":
        return device
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    return "cuda" if not hidden and any(Path("/dev").glob("nvidia[0-9]*")) else "cpu"


def quiet_libraries() -> None:
    """Keeps libraries from telephoning home, and from drawing bars of their own; call it before they are imported."""
    for name in ("HF_HUB_DISABLE_TELEMETRY", "UNSLOTH_DISABLE_STATISTICS", "DO_NOT_TRACK", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that spin at a barrier on a shared machine keep the one they wait for off its core: measured 6.6 against 2.1 s a step.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("BITSANDBYTES_NOWELCOME", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
