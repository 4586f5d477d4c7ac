"""The base model on disk: found, checked and hashed, without importing torch."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from harness.config import Model
from harness.config.loading import HUB, HUB_NAME
from harness.errors import DeviceError, ModelError
from harness.formats import safetensors_reader
from harness.models import openmp
from harness.storage import sha256_large, sha256_tree


def resolve(model: Model) -> Path:
    """The local folder of a model given by folder or hub name, checked; a hub model is downloaded to the hub's cache.

    A download that broke off is resumed; without a network, a model that was downloaded before is taken from the cache.

    Raises:
        ModelError: no such folder, not reachable, gated, no such revision, or one of `check`'s findings.
    """
    folder = Path(model.path)
    if not folder.is_dir():
        folder = _download(model, hub_name(model))
    check(folder)
    return folder


def resolve_tokenizer(name: str, revision: str | None) -> Path:
    """The folder, in the hub's cache, of a hub model's tokenizer without its weights; ModelError as `resolve`."""
    model = Model(path=name, revision=revision)
    name = hub_name(model)
    quiet_libraries()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "tokenizer.model", "*.jinja"]))
    except Exception as error:  # as in `_download`
        raise _hub_error(model, error) from None


def cached(model: Model) -> Path | None:
    """The folder of a model that is on this machine, whole or not, without asking any hub; None if nothing of it is here.

    Raises:
        ModelError: the path is neither a folder nor a hub name.
    """
    folder = Path(model.path)
    if folder.is_dir():
        return folder
    name = hub_name(model)
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    file = try_to_load_from_cache(name, "config.json", revision=model.revision)
    return Path(file).parent if isinstance(file, str) else None


def hub_name(model: Model, holds: str = "config.json, weights and tokenizer") -> str:
    """The name of a model on the hub: `owner/name`, unless a folder `owner` is here, or anything after `hub:`.

    Raises:
        ModelError: the path is not a hub name, so it is a folder that does not exist.
    """
    name = model.path.removeprefix(HUB)
    if HUB_NAME.fullmatch(name) and (name != model.path or not Path(name).parent.exists()):
        return name
    near = f"; the folder {Path(name).parent} exists and has no {Path(name).name!r}" if HUB_NAME.fullmatch(name) else ""
    raise ModelError(
        f"there is no such folder{near}",
        f"give a folder with {holds}, or a hub name like owner/model (hub:owner/model if a folder owner is here)",
        file=model.path,
    )


def _download(model: Model, name: str) -> Path:
    """The folder of a hub model in the hub's cache, after downloading missing files."""
    quiet_libraries()
    from huggingface_hub import HfApi, constants, snapshot_download

    patterns = ["*.json", "*.safetensors", "tokenizer.model", *(["*.py"] if model.trust_remote_code else [])]
    refused = None
    try:
        # Check first, because the download's first request has no timeout.
        HfApi().model_info(name, revision=model.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # offline machines, proxies and mirrors fail in many ways
        refused = error

    def fetch(patterns: str | list[str]) -> Path:
        return Path(
            snapshot_download(
                name, revision=model.revision, allow_patterns=patterns, local_files_only=refused is not None
            )
        )

    try:
        # Download a small file first: it shows whether the large ones can be used.
        folder = fetch("config.json")
        if not (folder / "config.json").exists():
            raise ModelError(
                "has no config.json", "use a model in the format of transformers, not GGUF alone", file=model.path
            )
        check_config(folder, name=model.path)
        return fetch(patterns)
    except ModelError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # a disk error, not a hub error
        raise _hub_error(model, refused or error) from None


def download_adapter(name: str, revision: str | None) -> Path:
    """The folder, in the hub's cache, of a hub adapter without its pickle files; without a network that of an earlier download.

    Raises:
        ModelError: not a hub name, not reachable, gated, no such revision, or pickle files alone.
    """
    model = Model(path=name, revision=revision)
    name = hub_name(model, "adapter_config.json and adapter_model.safetensors")
    quiet_libraries()
    from huggingface_hub import HfApi, constants, snapshot_download

    refused = None
    try:
        found = HfApi().model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        files = {sibling.rfilename for sibling in found.siblings or []}
        if "adapter_model.bin" in files and "adapter_model.safetensors" not in files:
            raise ModelError(
                "holds only adapter_model.bin, a pickle file, which can run any code when it is opened",
                "ask its author for adapter_model.safetensors",
                file=name,
            )
    except ModelError:
        raise
    except Exception as error:  # as in `_download`
        refused = error
    patterns = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "tokenizer*",
        "*token*.json",
        "*.jinja",
    ]
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=refused is not None)
        )
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise
        raise _hub_error(model, refused or error) from None


def _hub_error(model: Model, error: Exception) -> ModelError:
    """The hub's error in words for the user, and the hint."""
    from httpx import ConnectError, TimeoutException, TransportError
    from huggingface_hub import errors

    elsewhere = "download it where there is a network and give its folder as model.path (of an adapter: --base)"
    match error:
        case errors.GatedRepoError():
            reason = "is gated", "accept its licence on the hub and log in with `hf auth login`"
        case errors.RevisionNotFoundError():
            reason = f"has no revision {model.revision or 'main'!r}", "correct model.revision"
        case errors.RepositoryNotFoundError():
            reason = "is not on the hub, or private", "check the name, or log in with `hf auth login`"
        case errors.OfflineModeIsEnabled():
            reason = (
                "cannot be reached (HF_HUB_OFFLINE is set) and is not complete in the cache",
                f"unset it, or {elsewhere}",
            )
        case errors.HfHubHTTPError():
            reason = (
                f"cannot be reached (the hub answers with {error.response.status_code})",
                f"try again later, or {elsewhere}",
            )
        case TimeoutException():
            reason = (
                "cannot be reached (the hub does not answer in time)",
                f"run the same command to resume, or {elsewhere}",
            )
        case ConnectError():
            reason = "cannot be reached (no connection to the hub)", elsewhere
        case TransportError():
            reason = (
                "cannot be downloaded (the connection breaks off)",
                f"run the same command to resume, or {elsewhere}",
            )
        case _:
            reason = f"cannot be reached ({type(error).__name__})", elsewhere
    return ModelError(*reason, file=model.path)


def check(folder: Path) -> dict[str, Any]:
    """Checks that a folder holds an unquantised causal language model with its tokenizer; returns its config.json.

    Raises:
        ModelError: config, weights or tokenizer missing, or weights that are already quantised.
        ArtifactError: a truncated or damaged weight file.
    """
    config = check_config(folder)
    _check_links(folder)
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            "holds an adapter beside the model, which transformers would apply",
            "merge it, or remove it",
            file=folder,
        )
    safetensors_reader.index(folder)
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        raise ModelError("has no tokenizer", "put tokenizer.json beside the weights", file=folder)
    return config


def check_targets(folder: Path, targets: list[str]) -> None:
    """Checks that each of `train.lora.target_modules` names a matrix of the model, by the names in its weight files.

    Raises:
        ModelError: one does not; ArtifactError: a damaged weight file.
    """
    tensors = safetensors_reader.index(folder)
    linear = {
        name.removesuffix(".weight") for name, t in tensors.items() if name.endswith(".weight") and len(t.shape) == 2
    }
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear} - {"lm_head", "embed_tokens"})
            raise ModelError(
                f"has no module {target!r} to train",
                f"use of train.lora.target_modules: {', '.join(known)}",
                file=folder,
            )


def _check_links(folder: Path) -> None:
    """Raises ModelError for a link that leads out of the folder, except for weights and in the hub's cache, which is made of links.

    All other files are copied into the exported models, which are published: a link could publish any file of this machine.
    """
    home = folder.resolve()
    allowed = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    for file in folder.iterdir():
        if (
            file.is_symlink()
            and file.suffix != ".safetensors"
            and not any(place in file.resolve().parents for place in allowed)
        ):
            raise ModelError("is a link that leads out of the model's folder", "put the file itself there", file=file)


def check_config(folder: Path, *, name: str | None = None) -> dict[str, Any]:
    """The config.json of a model that can be trained on and exported; ModelError, about `name` or the folder, if it is quantised already."""
    config = read_config(folder)
    if "quantization_config" in config:
        raise ModelError(
            "is already quantised",
            "use the 16-bit model: merging and exporting need its full weights",
            file=name or folder,
        )
    return config


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError("has no config.json", "give the folder of a Hugging Face model", file=folder) from None
    except (ValueError, RecursionError, OSError) as error:
        raise ModelError(f"cannot be read: {error}", "fetch the model again", file=file) from None
    if not isinstance(config, dict):
        raise ModelError("is not a JSON object", "fetch the model again", file=file)
    return config


def weights_sha256(folder: Path) -> str:
    """Hash of everything that decides a model's outputs: weights, model config, generation config."""
    names = {"config.json", "generation_config.json", "adapter_config.json"}
    return sha256_tree(folder, lambda p: p.suffix == ".safetensors" or p.name in names)


def tokenizer_files_sha256(folder: Path) -> str:
    """Hash of the files that a tokenizer is loaded from: equal hashes, equal tokenizers, without loading any library."""
    return sha256_tree(folder, lambda p: p.suffix in (".json", ".model", ".jinja", ".txt"))


def artifact_sha256(path: Path) -> str:
    """The hash of an exported format: of a GGUF file, or of all files of a model folder, the tokenizer of which later formats are made from."""
    return sha256_large(path) if path.is_file() else sha256_tree(path)


def weights_size(folder: Path) -> int:
    """Bytes of the weight files."""
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def device_of(device: str) -> str:
    """`cpu` or `cuda` for a config's `device`; DeviceError if CUDA is asked for and not there."""
    # If the kernel shows no GPU, there is no need to load torch.
    if device == "cpu" or (device == "auto" and "torch" not in sys.modules and not _may_have_gpu()):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise DeviceError(
            "this config needs a CUDA device and there is none",
            "use a machine with a GPU, or --set device=cpu for a small model",
        )
    return "cpu"


def expected_device(device: str) -> str:
    """The expected result of `device_of`, without loading torch."""
    if device != "auto":
        return device
    return "cuda" if _may_have_gpu() else "cpu"


def _may_have_gpu() -> bool:
    """Whether the kernel shows a GPU device that is not hidden: NVIDIA's, WSL's or AMD's. Without one torch finds none either."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    return not hidden and any(any(Path("/dev").glob(name)) for name in ("nvidia[0-9]*", "dxg", "kfd"))


def quiet_libraries() -> None:
    """Turns off the libraries' telemetry and progress bars; call it before they are imported."""
    for name in (
        "HF_HUB_DISABLE_TELEMETRY",
        "UNSLOTH_DISABLE_STATISTICS",
        "DO_NOT_TRACK",
        "HF_HUB_DISABLE_PROGRESS_BARS",
    ):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    openmp.wait_briefly()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("BITSANDBYTES_NOWELCOME", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
