"""The checks, side by side where they do not need one another."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness import prompt
from harness.config import Config
from harness.doctor import Finding, estimate, forecast, known_models, packages, space, training_time
from harness.doctor.probes import Probe, probe
from harness.errors import DataError, HarnessError
from harness.formats import safetensors_reader
from harness.models import base_model, devices
from harness.questions import dataset
from harness.questions.asking import text_of
from harness.questions.dataset import Row
from harness.training.plan import GIB, Shape

OLDEST = (7, 0)
"""The lowest compute capability that Unsloth and bitsandbytes' NF4 are built for (Volta)."""
SETUP = "run make setup GPU=1"


def run(config: Config, *, measure: bool = False) -> list[Finding]:
    """See `harness.doctor.run`."""
    names = [
        "torch",
        *(["unsloth"] if config.train.engine == "unsloth" else []),
        *(["llamacpp"] if packages.uses_gguf(config) else []),
    ]
    with ThreadPoolExecutor(len(names)) as pool:
        probes = {name: pool.submit(probe, name, config.device) for name in names}
        rows, questions = _questions(config)
        folder, model = _model(config)
        shape, lengths = _sizes(config, folder, rows)
        installed = packages.findings(config)
        probed = {name: future.result() for name, future in probes.items()}
    found = probed["torch"].facts.get("devices", [])
    device = "cuda" if found and config.device != "cpu" else "cpu"
    findings = [
        *_device(config, probed["torch"], driver_version()),
        *_picks(config, device, found),
        _nf4(config, probed["torch"]),
    ]
    if "unsloth" in probed:
        findings.append(_unsloth(probed["unsloth"]))
    if "llamacpp" in probed:
        findings.append(_llamacpp(probed["llamacpp"], device))
    findings += [_tracking(config), questions, *model, _prompt(config, folder)]
    if shape is not None:
        free = min((d["free_bytes"] for d in found), default=0) if device == "cuda" else None
        downloaded = folder is not None and not _is_partial(config, folder)
        findings += [
            *space.memory(config, shape, lengths, device, free),
            *space.disk(config, shape, folder or Path("runs").absolute(), downloaded=downloaded),
        ]
        if duration := training_time.finding(config, shape, rows, device, found if device == "cuda" else []):
            findings.append(duration)
    elif folder is not None:
        findings.append(
            Finding("warn", "memory and disk", "not estimated: the model's config.json does not state its size")
        )
    elif not any(f.status == "fail" for f in model):
        hint = f"fetch it with `hf download {config.model.path} config.json`"
        findings.append(Finding("warn", "memory and disk", "not estimated: the model's config.json is not here", hint))
    if measure and folder is not None:
        # Alone, since other work would distort the times.
        count = forecast.held_out(config, len(rows))
        findings += [found for found in [forecast.finding(config, folder, rows, device, count)] if found is not None]
    return [*findings, *installed]


# -------------------------------------------------------------------------------------------------------------- device


def driver_version() -> str | None:
    """Of the NVIDIA driver; None without one."""
    try:
        if found := re.search(r"Module\s.*?(\d+\.\d[\d.]*)", Path("/proc/driver/nvidia/version").read_text()):
            return found[1]
    except OSError:
        pass
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines else None


def _device(config: Config, probed: Probe, driver: str | None) -> list[Finding]:
    """The CUDA devices, or why there is none."""
    facts = probed.facts
    if "torch" not in facts:
        problem = f"torch cannot be loaded: {probed.problem}"
        return [Finding("fail", "device", problem, SETUP if driver else "run make setup")]
    build = facts["torch"] if facts["cuda_build"] else f"{facts['torch']}, a CPU build"
    if not facts.get("devices"):
        return [_no_device(config, facts, build, driver)]
    if config.device == "cpu":
        return [Finding("ok", "device", f"CPU, as the config says; {len(facts['devices'])} CUDA devices stay idle")]
    findings = [
        Finding(
            "ok", "driver", f"NVIDIA {driver or 'of unknown version'}; torch {build} for CUDA {facts['cuda_build']}"
        )
    ]
    for i, found in enumerate(facts["devices"]):
        capability = tuple(found["capability"])
        value = (
            f"{found['name']}, compute capability {_dotted(capability)}, {found['free_bytes'] / GIB:.1f} of {found['total_bytes'] / GIB:.1f} GiB free, "
            f"{'with' if capability >= devices.AMPERE else 'without'} bf16"
        )
        old = capability < OLDEST
        hint = (
            f"use a card of compute capability {_dotted(OLDEST)} or more, or hide it with CUDA_VISIBLE_DEVICES"
            if old
            else ""
        )
        findings.append(Finding("fail" if old else "ok", f"GPU {i}", value, hint))
    return findings


def _no_device(config: Config, facts: dict[str, Any], build: str, driver: str | None) -> Finding:
    if config.device == "cpu":
        return Finding("ok", "device", f"CPU ({_processor()}), torch {build}")
    status = "fail" if config.device == "cuda" else "warn"
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return Finding(status, "device", "no CUDA device: CUDA_VISIBLE_DEVICES hides them all", "unset it")
    if driver and not facts["cuda_build"]:
        value = f"there is an NVIDIA driver ({driver}), and torch {build}"
        return Finding(status, "device", value, f"{SETUP}, with pip set up for an index that has CUDA builds")
    if driver:
        warning = f" ({facts['warning']})" if facts.get("warning") else ""
        value = f"torch {build} for CUDA {facts['cuda_build']} finds no device with driver {driver}{warning}"
        return Finding(
            status, "device", " ".join(value.split()), "update the driver, or install torch for an older CUDA"
        )
    if config.device == "cuda":
        hint = "use a machine with an NVIDIA GPU, or --set device=cpu for a small model"
        return Finding("fail", "device", f"this config needs a CUDA device and there is none (torch {build})", hint)
    value = f"CPU ({_processor()}), no NVIDIA driver; torch {build}"
    if facts["cuda_build"]:
        waste = f"{value} for CUDA {facts['cuda_build']}, several GB that this machine cannot use"
        return Finding(
            "ok",
            "device",
            waste,
            "rm -r .venv, then make setup TORCH_INDEX=URL with an index of CPU builds (README, On a GPU)",
        )
    return Finding("ok", "device", value)


def _processor() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores"


def _dotted(capability: Sequence[int]) -> str:
    return ".".join(map(str, capability))


def _picks(config: Config, device: str, found: Sequence[dict[str, Any]]) -> list[Finding]:
    """What the compute capability decides."""
    if config.device == "cuda" and device != "cuda":
        return []
    capability = (
        min(((d["capability"][0], d["capability"][1]) for d in found), default=None) if device == "cuda" else None
    )
    dtype = devices.compute_dtype_name(device, capability)
    why = (
        "the processor"
        if capability is None
        else f"compute capability {_dotted(capability)}; bf16 from {_dotted(devices.AMPERE)}"
    )
    findings = [Finding("ok", "picked: dtype", f"{dtype} ({why})")]
    attention = devices.attention(
        device, capability, engine="unsloth" if config.train.engine == "unsloth" else "transformers"
    )
    if devices.wants_xformers(capability) and config.train.engine == "unsloth" and attention != "xformers":
        findings.append(
            Finding(
                "warn", "picked: attention", f"{attention}; xformers is faster on such a card and not installed", SETUP
            )
        )
    else:
        because = {"flash_attention_2": "flash-attn is installed", "xformers": "xformers is installed"}.get(
            attention, "PyTorch's own"
        )
        findings.append(Finding("ok", "picked: attention", f"{attention} ({because})"))
    if capability is not None:
        packs = capability >= devices.AMPERE and config.train.engine == "unsloth" and config.train.packing is not False
        graphs = ", CUDA graphs where activations are kept" if config.train.cuda_graphs is not False else ""
        findings.append(
            Finding(
                "ok", "picked: training layout", f"rows end to end{graphs}" if packs else "rows side by side, padded"
            )
        )
    return findings


# --------------------------------------------------------------------------------------------------------------- parts


def _nf4(config: Config, probed: Probe) -> Finding:
    """bitsandbytes, tried."""
    needed = config.train.load_in_4bit or "merged_4bit" in config.export.formats or "8bit" in config.train.optimizer
    hint = "run make setup again; bitsandbytes must be built for this CUDA and this processor"
    if probed.facts.get("nf4") == "":
        return Finding(
            "ok", "bitsandbytes", f"an NF4 layer works on {probed.facts['nf4_device']}, forward and backward"
        )
    problem = (
        f"NF4 {probed.facts['nf4']} on {probed.facts['nf4_device']}"
        if probed.facts.get("nf4")
        else f"NF4 cannot be tried: {probed.problem}"
    )
    return Finding("fail" if needed else "warn", "bitsandbytes", problem, hint)


def _unsloth(probed: Probe) -> Finding:
    """Unsloth, imported."""
    if probed.problem:
        return Finding(
            "fail", "Unsloth", f"cannot be imported: {probed.problem}", "run make setup, or --set train.engine=peft"
        )
    return Finding("ok", "Unsloth", f"{probed.facts['version']} can be imported")


def _llamacpp(probed: Probe, device: str) -> Finding:
    """llama.cpp, tried on the embedded model."""
    facts = probed.facts
    if probed.problem or "version" not in facts:
        return Finding(
            "fail",
            "llama.cpp",
            f"does not work: {probed.problem}",
            "run make setup again, or leave GGUF out of export.formats",
        )
    worked = "answered from a GGUF file written here" if facts["answered"] else "can be imported"
    if device == "cuda" and not facts["gpu"]:
        value = f"xllamacpp {facts['version']} {worked}; built without CUDA, so GGUF variants answer on the CPU"
        return Finding("warn", "llama.cpp", value, "install a CUDA build of xllamacpp if that is too slow")
    return Finding("ok", "llama.cpp", f"xllamacpp {facts['version']} {worked}")


def _tracking(config: Config) -> Finding:
    """Where the curves go."""
    if config.tracking == "wandb":
        return _wandb(config)
    from harness.training.tracker import chosen

    kind = chosen(config)
    if kind.package and find_spec(kind.package) is None:
        return Finding(
            "warn", kind.label, "not installed: nothing is logged", f"pip install 'qa-harness[{config.tracking}]'"
        )
    mode = {"disabled": "off", "offline": "files in the run's folder"}.get(kind.mode(), "online")
    return Finding("ok", kind.label, f"{mode}; the report has the curves all the same")


def _wandb(config: Config) -> Finding:
    """W&B's mode; the key itself is never read."""
    from harness.training.wandb_log import MODES, wandb_mode

    mode, has_key = wandb_mode(enabled=config.wandb.enabled), bool(os.environ.get("WANDB_API_KEY"))
    if mode not in MODES:
        return Finding(
            "warn", "W&B", f"WANDB_MODE is {mode!r}: nothing is logged", "set it to online, offline or disabled"
        )
    if mode == "online":
        if has_key:
            return Finding("ok", "W&B", "online, WANDB_API_KEY is set")
        return Finding(
            "warn",
            "W&B",
            "online by WANDB_MODE, and WANDB_API_KEY is not set",
            "set it, unless `wandb login` was done here",
        )
    if mode == "disabled":
        return Finding("ok", "W&B", "off; the report has the curves all the same")
    key = "WANDB_API_KEY is set, but WANDB_MODE wins" if has_key else "set WANDB_API_KEY to go online"
    return Finding("ok", "W&B", f"{mode}: the curves stay in the run's folder ({key})")


# -------------------------------------------------------------------------------------------------------------- inputs


def _questions(config: Config) -> tuple[list[Row], Finding]:
    """The rows that are trained on, or the test file's where nothing is: they decide memory."""
    data, rows, summaries = config.data, [], []
    for source in (data.training_file, data.test, data.trained_on):
        if source is not None:
            try:
                file = dataset.read(source, data)
            except DataError as error:
                return [], Finding("fail", "questions", f"{error.file}: {error.problem}", error.hint)
            rows = rows or file.rows
            summaries.append(f"{source}: {file.summary}")
    return rows, Finding("ok", "questions", "; ".join(summaries))


def _model(config: Config) -> tuple[Path | None, list[Finding]]:
    """The folder of the base model if any of it is on this machine, and the finding about it."""
    path = config.model.path
    try:
        folder = base_model.cached(config.model)
        if folder is None:
            value = f"{path} is not in the hub's cache: it is downloaded on the first use"
            hint = "download it before with `hf download " + path + "`, or give its folder with --set model.path=FOLDER"
            if gate := known_models.gate(config.model):
                value, hint = f"{value}; {gate[0]}", f"{gate[1]}; or give its folder with --set model.path=FOLDER"
            return None, [Finding("warn", "model", value, hint)]
        if _is_partial(config, folder):
            settings = base_model.check_config(folder)
            whole = [
                Finding(
                    "warn",
                    "model",
                    f"{path}: its weights are not all in the hub's cache",
                    f"run `hf download {path}` to resume",
                )
            ]
        else:
            settings = base_model.check(folder)
            base_model.check_targets(folder, config.train.lora.target_modules)
            whole = [
                Finding(
                    "ok",
                    "model",
                    f"{path}: {settings.get('model_type', 'unknown')}, {space.size_text(base_model.weights_size(folder))}",
                )
            ]
        longest = settings.get("max_position_embeddings", config.train.max_length)
        if config.train.max_length > longest:
            value = f"takes {longest} tokens and train.max_length is {config.train.max_length}"
            return folder, [Finding("fail", "model", f"{path}: {value}", f"set train.max_length to {longest} or less")]
        if packages.uses_gguf(config) and config.export.llama_cpp is None:
            from harness.formats import gguf

            gguf.check_supported(folder)
    except HarnessError as error:
        return None, [Finding("fail", "model", f"{error.file}: {error.problem}", error.hint)]
    except ImportError:
        pass  # the packages' finding
    return folder, whole


def _prompt(config: Config, folder: Path | None) -> Finding:
    """How questions are put: a chat config needs a tokenizer with a chat template."""
    value = prompt.describe(config.prompt, folder)
    if folder is None or _has_no_tokenizer(folder):
        return Finding("ok", "prompt", f"{value}; checked once the tokenizer is here")
    try:
        prompt.resolve_format(config.prompt, prompt.has_chat_template(folder), folder)
    except HarnessError as error:
        return Finding("fail", "prompt", error.problem, error.hint)
    return Finding("ok", "prompt", value)


def _has_no_tokenizer(folder: Path) -> bool:
    return not any((folder / name).exists() for name in prompt.TOKENIZER_FILES)


def _is_partial(config: Config, folder: Path) -> bool:
    """Whether a hub model was downloaded in part."""
    if Path(config.model.path).is_dir():
        return False
    try:
        return not safetensors_reader.index(folder)
    except HarnessError:
        return True


def _sizes(config: Config, folder: Path | None, rows: list[Row]) -> tuple[Shape | None, list[int]]:
    """The model's shape and the lengths of the longest rows; (None, ..) if config.json does not state them."""
    if folder is None:
        # The longest row of the questions, in tokens of four characters.
        characters = max((len(text_of(row)) + len(row.answer) for row in rows), default=0)
        longest = min(characters // 4 + 64, config.train.max_length)
        return known_models.shape(config.model), [longest] if rows else []
    try:
        shape = Shape.of(base_model.read_config(folder))
    except (HarnessError, KeyError, TypeError, ValueError):
        return None, []
    try:
        return shape, estimate.row_lengths(rows, config, folder / "tokenizer.json")
    except Exception:  # the tokenizers library is missing or refuses the file, with its own exception
        return shape, [config.train.max_length] * min(len(rows), 1)
