"""The doctor: every finding with its hint, also when what it looks at is missing, broken, crashes or hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from gguf import MODEL_ARCH, get_tensor_name_map
from typer.testing import CliRunner

from harness import variants
from harness.cli import app
from harness.config import load
from harness.doctor import Finding, checks, estimate, packages, probes, space
from harness.doctor.probes import Probe
from harness.formats import families, quantize
from harness.models import devices
from harness.training.plan import GIB, Shape
from tests.helpers.gguf_files import gguf_types

PROJECT = Path(__file__).parent.parent
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
}
EIGHT = Shape.of(LLAMA_8B)
LENGTHS = [60, 90, 150] * 40


def gpu(name: str, capability: tuple[int, int], free: float, total: float) -> dict[str, Any]:
    return {"name": name, "capability": capability, "free_bytes": int(free * GIB), "total_bytes": int(total * GIB)}


H200, T4, P100 = (
    gpu("NVIDIA H200", (9, 0), 139, 140),
    gpu("Tesla T4", (7, 5), 14.5, 14.6),
    gpu("Tesla P100", (6, 0), 15, 16),
)


def torch_told(*found: dict[str, Any], cuda_build: str | None = "13.0", **facts: Any) -> Probe:
    return Probe(
        {
            "torch": "2.13.0",
            "cuda_build": cuda_build,
            "warning": "",
            "devices": list(found),
            "nf4": "",
            "nf4_device": "cuda",
            **facts,
        }
    )


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


# --------------------------------------------------------------------------------------------------------- the real thing


@pytest.fixture(scope="module")
def real() -> dict[str, dict[str, str]]:
    """What `harness doctor --json` says of the embedded default on this machine; Unsloth, whose import takes 8 s, has tests of its own."""
    environment = {
        **os.environ,
        "WANDB_API_KEY": "c0ffee" * 6 + "dead",
        "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": "2",
    }
    command = [sys.executable, "-m", "harness", "doctor", "--json", "--set", "device=cpu", "--set", "train.engine=peft"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=environment, timeout=200)
    assert (done.returncode, done.stderr) == (0, "") and "c0ffee" not in done.stdout
    return {finding["what"]: finding for finding in json.loads(done.stdout)}


def test_the_embedded_default_can_run_here(real: dict[str, dict[str, str]]) -> None:
    assert [f for f in real.values() if f["status"] != "ok"] == []
    assert real["device"]["value"].startswith("CPU (") and real["picked: dtype"]["value"].startswith("float32")
    assert real["bitsandbytes"]["value"] and real["llama.cpp"]["value"].endswith(
        "answered from a GGUF file written here"
    )
    assert {"W&B", "questions", "model", "memory", "disk", "picked: attention"} <= set(real)
    assert "WANDB_MODE wins" in real["W&B"]["value"]


def test_every_package_of_the_config_is_compared_with_its_range(real: dict[str, dict[str, str]]) -> None:
    needed = packages.requirements(["", "train", "gguf"])
    assert len(needed) > 20 and "pytest" not in real
    for requirement in needed:
        if requirement.name != "bitsandbytes":  # the finding of that name is whether it works
            assert real[requirement.name]["value"].startswith(metadata.version(requirement.name))


# --------------------------------------------------------------------------------------------- what is missing or broken


BLOCK = """
import importlib.abc, importlib.metadata, sys
BLOCKED = {blocked!r}
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
whole = importlib.metadata.Distribution.from_name.__func__
def from_name(cls, name):
    if name in BLOCKED:
        raise importlib.metadata.PackageNotFoundError(name)
    return whole(cls, name)
importlib.metadata.Distribution.from_name = classmethod(from_name)
"""


def absent(folder: Path, *names: str) -> dict[str, str]:
    """An environment in which these packages are not installed, for child processes of child processes too."""
    (folder / "sitecustomize.py").write_text(BLOCK.format(blocked=set(names)))
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{PROJECT}"}


def test_without_the_heavy_packages_every_one_is_a_finding(tmp_path: Path) -> None:
    heavy = "torch unsloth unsloth_zoo xllamacpp bitsandbytes transformers trl peft datasets accelerate wandb gguf tokenizers huggingface_hub".split()
    command = [sys.executable, "-m", "harness", "doctor", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=PROJECT, env=absent(tmp_path, *heavy), timeout=100
    )
    assert (done.returncode, done.stderr) == (2, "")
    findings = json.loads(done.stdout)
    failed = {f["what"]: f for f in findings if f["status"] == "fail"}
    assert set(failed) >= {"device", "Unsloth", "llama.cpp", "torch", "xllamacpp", "transformers", "unsloth"}
    assert failed["device"]["value"] == "torch cannot be loaded: ModuleNotFoundError: No module named 'torch'"
    assert failed["torch"]["hint"] == "run make setup, or pip install 'torch>=2.11,<2.15'"
    assert all(f["hint"] for f in failed.values())
    kept = {f["what"]: f["status"] for f in findings}
    assert kept["numpy"] == kept["questions"] == kept["model"] == kept["disk"] == "ok"


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import os; os.abort()", "crashes (SIGABRT)"),
        ("raise RuntimeError('no libcuda\\nat all')", "at all"),
        ("import sys; sys.exit(7)", "ends with exit code 7"),
        ("import time; time.sleep(60)", "does not end within 2 s"),
    ],
)
def test_a_library_that_breaks_its_process_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, problem: str
) -> None:
    (tmp_path / "unsloth.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{PROJECT}")
    monkeypatch.setattr(probes, "SECONDS", 2 if "sleep" in code else 60)
    probed = probes.probe("unsloth", "cpu")
    assert probed == Probe({}, problem)
    assert (
        str(checks._unsloth(probed))
        == f"fail  Unsloth               cannot be imported: {problem}; run make setup, or --set train.engine=peft"
    )


def test_a_library_that_can_be_imported_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unsloth.py").write_text(
        "import os, sys\nprint('a banner')\n__version__ = '7'\nassert os.environ['UNSLOTH_COMPILE_LOCATION']"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{PROJECT}")
    assert str(checks._unsloth(probes.probe("unsloth", "cpu"))) == "ok    Unsloth               7 can be imported"


def test_what_was_reported_before_a_crash_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{PROJECT}")
    probed = probes.probe("torch", "cpu")
    assert (
        probed.facts["torch"].startswith(metadata.version("torch").partition("+")[0])
        and probed.problem == "crashes (SIGABRT)"
    )
    found = checks._nf4(load("tiny"), probed)
    assert (found.status, found.value) == ("fail", "NF4 cannot be tried: crashes (SIGABRT)") and found.hint
    sixteen = load("tiny", ["train.load_in_4bit=false", "export.formats=[merged_16bit]", "predict.variants=[base]"])
    assert checks._nf4(sixteen, probed).status == "warn"


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (
            lambda layer, x: x @ layer.weight.data.new_zeros(256, 128).to(x.dtype) + 0 * x.sum(),
            "computes wrong numbers in the forward pass",
        ),
        (lambda layer, x: TRUE_FORWARD(layer, x.detach()) + 0 * x.sum(), "computes wrong numbers in the backward pass"),
    ],
)
def test_wrong_numbers_of_nf4_are_noticed(monkeypatch: pytest.MonkeyPatch, spoil: Any, problem: str) -> None:
    from bitsandbytes.nn.modules import Linear4bit

    monkeypatch.setitem(globals(), "TRUE_FORWARD", Linear4bit.forward)
    assert probes._nf4("cpu") == ""
    monkeypatch.setattr(Linear4bit, "forward", spoil)
    assert probes._nf4("cpu") == problem


TRUE_FORWARD: Any = None


# -------------------------------------------------------------------------------------------------------------- device


@pytest.mark.parametrize(
    ("settings", "probed", "driver", "status", "line"),
    [
        ([], torch_told(H200), "580.1", "ok", "NVIDIA 580.1; torch 2.13.0 for CUDA 13.0"),
        (
            [],
            torch_told(cuda_build=None),
            None,
            "fail",
            "this config needs a CUDA device and there is none (torch 2.13.0, a CPU build)",
        ),
        (["device=auto"], torch_told(cuda_build=None), None, "ok", "no NVIDIA driver"),
        (["device=cpu"], torch_told(cuda_build=None), "580.1", "ok", "CPU ("),
        (["device=cpu"], torch_told(H200), "580.1", "ok", "CPU, as the config says; 1 CUDA devices stay idle"),
        (
            [],
            torch_told(cuda_build=None),
            "580.1",
            "fail",
            "there is an NVIDIA driver (580.1), and torch 2.13.0, a CPU build",
        ),
        (
            ["device=auto"],
            torch_told(cuda_build=None),
            "580.1",
            "warn",
            "there is an NVIDIA driver (580.1), and torch 2.13.0, a CPU build",
        ),
        (
            [],
            torch_told(warning="driver too old"),
            "450.2",
            "fail",
            "for CUDA 13.0 finds no device with driver 450.2 (driver too old)",
        ),
        ([], Probe({}, "crashes (SIGSEGV)"), None, "fail", "torch cannot be loaded: crashes (SIGSEGV)"),
    ],
)
def test_the_device_or_why_there_is_none(
    settings: list[str], probed: Probe, driver: str | None, status: str, line: str
) -> None:
    first, *_ = checks._device(load("llama3-8b", settings), probed, driver)
    assert first.status == status and line in first.value and bool(first.hint) == (status != "ok")


def test_hidden_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (found,) = checks._device(load("llama3-8b"), torch_told(), "580.1")
    assert str(found) == "fail  device                no CUDA device: CUDA_VISIBLE_DEVICES hides them all; unset it"


def test_each_gpu_is_described_and_an_ancient_one_refused() -> None:
    findings = by_name(checks._device(load("llama3-8b"), torch_told(H200, T4, P100), "580.1"))
    assert findings["GPU 0"].value == "NVIDIA H200, compute capability 9.0, 139.0 of 140.0 GiB free, with bf16"
    assert findings["GPU 1"].value == "Tesla T4, compute capability 7.5, 14.5 of 14.6 GiB free, without bf16"
    assert [findings[f"GPU {i}"].status for i in range(3)] == ["ok", "ok", "fail"] and findings["GPU 2"].hint


@pytest.mark.parametrize(
    ("device", "capability", "installed", "dtype", "attention", "unsloth"),
    [
        ("cpu", None, {"flash_attn", "xformers"}, "float32", "sdpa", "sdpa"),
        ("cuda", (9, 0), set(), "bfloat16", "sdpa", "sdpa"),
        ("cuda", (8, 0), {"flash_attn", "xformers"}, "bfloat16", "flash_attention_2", "flash_attention_2"),
        ("cuda", (8, 6), {"xformers"}, "bfloat16", "sdpa", "xformers"),
        ("cuda", (7, 5), {"flash_attn"}, "float16", "sdpa", "sdpa"),
        ("cuda", (7, 5), {"flash_attn", "xformers"}, "float16", "sdpa", "xformers"),
    ],
)
def test_the_compute_capability_decides(
    device: str, capability: Any, installed: set[str], dtype: str, attention: str, unsloth: str
) -> None:
    assert devices.compute_dtype_name(device, capability) == dtype
    assert devices.attention(device, capability, installed=installed.__contains__) == attention
    assert devices.attention(device, capability, engine="unsloth", installed=installed.__contains__) == unsloth


def test_this_machines_dtype() -> None:
    import torch

    assert devices.compute_dtype("cpu") is torch.float32


def test_what_is_picked_is_reported() -> None:
    new, old = (
        by_name(checks._picks(load("llama3-8b"), "cuda", [H200])),
        by_name(checks._picks(load("llama3-8b"), "cuda", [H200, T4])),
    )
    assert new["picked: dtype"].value == "bfloat16 (compute capability 9.0; bf16 from 8.0)"
    assert old["picked: dtype"].value == "float16 (compute capability 7.5; bf16 from 8.0)"
    assert old["picked: attention"].status == "warn" and old["picked: attention"].hint == "run make setup GPU=1"
    assert new["picked: training layout"].value == "rows end to end, CUDA graphs where activations are kept"
    assert old["picked: training layout"].value == "rows side by side, padded"
    padded = by_name(checks._picks(load("llama3-8b", ["train.packing=false"]), "cuda", [H200]))
    assert padded["picked: training layout"].value == "rows side by side, padded"
    assert checks._picks(load("llama3-8b"), "cpu", []) == []


# ------------------------------------------------------------------------------------------------------ memory and disk


@pytest.mark.parametrize(
    ("free", "training", "answering"),
    [(139, "ok", "ok"), (20, "ok", "warn"), (8, "ok", "fail"), (4, "fail", "fail")],
)
def test_device_memory_is_compared_with_what_is_needed(free: int, training: str, answering: str) -> None:
    config = load("llama3-8b", ["predict.max_batch=400", "predict.batch_tokens=131072"])
    findings = by_name(space.memory(config, EIGHT, LENGTHS, "cuda", free * GIB))
    assert (findings["training memory"].status, findings["answering memory"].status) == (training, answering)
    assert all(bool(f.hint) == (f.status != "ok") for f in findings.values())
    if free == 8:
        assert "activations computed again" in findings["training memory"].value
    if free == 4:
        assert "GiB of device memory" in findings["training memory"].value


def test_an_8b_model_in_float32_does_not_fit_a_small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "memory_available", lambda: 16 * GIB)
    (found,) = space.memory(load("llama3-8b", ["device=cpu"]), EIGHT, LENGTHS, "cpu", None)
    assert found.status == "fail" and found.value.startswith("answering in float32 takes about ")
    assert found.hint == "free some memory, or use a smaller model or a GPU"


def test_a_full_disk_is_reported_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    def found(free: int, downloaded: bool = True) -> Finding:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(free, 0, free))  # pyright: ignore
        (finding,) = space.disk(load("llama3-8b"), EIGHT, tmp_path, downloaded=downloaded)
        return finding

    assert found(60 * 10**9).status == "ok" and "merged_16bit 16.1 GB" in found(60 * 10**9).value
    # One disk holds both: what is still to be downloaded counts with the rest.
    assert (
        found(60 * 10**9, downloaded=False).status == "fail"
        and "base 16.1 GB" in found(60 * 10**9, downloaded=False).value
    )
    assert found(10**9).hint == "free some space, or name fewer export.formats"


@pytest.mark.parametrize("type", gguf_types())
@pytest.mark.parametrize(
    "config", [LLAMA_8B, json.loads((PROJECT / "data/tiny-llama3/config.json").read_text())], ids=["8B", "tiny"]
)
def test_sizes_are_those_of_the_types_that_tensors_get(type: str, config: dict[str, Any]) -> None:
    names, layers = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"]), config["num_hidden_layers"]
    tied = config.get("tie_word_embeddings", False)
    exact = 0
    for name, shape in families.expected(config, families.FAMILIES["LlamaForCausalLM"]).items():
        gguf_name = names.get_name(name, try_suffixes=(".weight",))
        assert gguf_name
        groups = config["num_attention_heads"] // config["num_key_value_heads"]
        kind = quantize.tensor_type(gguf_name, shape, type, layers=layers, tied=tied, query_groups=groups)
        exact += quantize.size_bytes(kind, shape)
    estimated = estimate.parameters(Shape.of(config)) * variants.VARIANTS[f"gguf_{type}"].bits / 8
    assert 0.995 * exact <= estimated <= 1.05 * exact


# -------------------------------------------------------------------------------------------------------------- inputs


def test_inputs_that_cannot_be_used_are_findings(tmp_path: Path) -> None:
    assert checks._questions(load("tiny", qa=str(tmp_path / "no.json")))[1].value.endswith("no.json: no such file")
    config = load("tiny", ["model.path=./nowhere"])
    assert str(checks._model(config)[1][0]).startswith(
        "fail  model                 ./nowhere: there is no such folder; give a folder"
    )
    (long,) = checks._model(load("tiny", ["train.max_length=9999"]))[1]
    assert (long.status, long.hint) == ("fail", "set train.max_length to 512 or less")


def test_a_hub_model_is_looked_for_in_the_cache_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    config = load("llama3-8b")
    folder, (found,) = checks._model(config)
    assert folder is None and found.status == "warn" and "set HF_TOKEN or run `hf auth login`" in found.hint
    snapshot = tmp_path / "models--meta-llama--Meta-Llama-3-8B" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text(json.dumps(LLAMA_8B))
    folder, (found,) = checks._model(config)
    assert folder == snapshot and found.value.endswith("its weights are not all in the hub's cache")
    assert checks._sizes(config, folder, [])[0] == EIGHT
    (snapshot / "config.json").write_text(json.dumps({**LLAMA_8B, "quantization_config": {}}))
    assert [f.status for f in checks._model(config)[1]] == ["fail"]


@pytest.mark.parametrize(
    ("environment", "status", "line"),
    [
        ({}, "ok", "offline: the curves stay in the run's folder (set WANDB_API_KEY to go online)"),
        ({"WANDB_API_KEY": "secret"}, "ok", "online, WANDB_API_KEY is set"),
        ({"WANDB_MODE": "online"}, "warn", "online by WANDB_MODE, and WANDB_API_KEY is not set"),
        ({"WANDB_MODE": "disabled"}, "ok", "off; the report has the curves all the same"),
        ({"WANDB_MODE": "bogus"}, "warn", "WANDB_MODE is 'bogus': nothing is logged"),
    ],
)
def test_where_the_curves_go(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], status: str, line: str
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = checks._wandb(load("tiny"))
    assert (found.status, found.value) == (status, line)


# ------------------------------------------------------------------------------------------------------------ packages


@pytest.mark.parametrize(
    ("version", "status", "value"),
    [
        ("5.17.0", "ok", "5.17.0, supported >=5.17,<5.18 and by Unsloth"),
        ("5.18.1", "fail", "5.18.1, supported >=5.17,<5.18"),
        ("5.17.3", "fail", "5.17.3, and unsloth asks for "),  # ours allows it, Unsloth stops at 5.17.0
        (None, "fail", "is not installed"),
    ],
)
def test_versions_are_compared_with_our_range_and_unsloths(
    monkeypatch: pytest.MonkeyPatch, version: str | None, status: str, value: str
) -> None:
    true_version = metadata.version

    def fake(name: str) -> str:
        if name == "transformers" and version is None:
            raise metadata.PackageNotFoundError(name)
        return str(version) if name == "transformers" else true_version(name)

    monkeypatch.setattr(metadata, "version", fake)
    found = by_name(packages.findings(load("tiny")))["transformers"]
    assert found.status == status and found.value.startswith(value) and bool(found.hint) == (status != "ok")


def test_only_what_the_config_needs_is_asked_for() -> None:
    lean = load(
        "tiny", ["train.engine=peft", "wandb.enabled=false", "export.formats=[merged_16bit]", "predict.variants=[base]"]
    )
    names = {f.what for f in packages.findings(lean)}
    assert not names & {"unsloth", "unsloth_zoo", "wandb", "xllamacpp", "gguf"} and {"torch", "numpy"} <= names


def test_an_installed_harness_without_its_checkout_has_its_ranges_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extras = ["", "train", "gguf"]
    read = {r.name: r.specifier for r in packages.requirements(extras)}
    monkeypatch.setattr(packages, "PROJECT", tmp_path)
    installed = {r.name: r.specifier for r in packages.requirements(extras)}
    assert "pytest" not in read and "pytest" not in installed
    assert all(read[name] == installed[name] for name in ("torch", "transformers", "xllamacpp", "numpy"))


# -------------------------------------------------------------------------------------------------------- command line


def test_the_lines_and_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [Finding("ok", "torch", "2.13.0"), Finding("warn", "W&B", "off", "set the key")]
    monkeypatch.setattr(checks, "run", lambda _, measure: findings)
    done = CliRunner().invoke(app, ["doctor", "--config", "tiny"])
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "warn  W&B                   off; set the key",
        "ok    torch                 2.13.0",
        "tiny can run here",
    ]
    findings.append(Finding("fail", "device", "there is none", "use another machine"))
    findings.extend(Finding("ok", name, "1.0", is_package=True) for name in ("numpy", "scipy"))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.stdout.startswith("fail  device") and "2 fit (-v names them)" in done.stdout
    assert "numpy" in CliRunner().invoke(app, ["doctor", "-v"]).stdout and "numpy" not in done.stdout
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (2, "tiny cannot run here: fix device")
    assert json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)[2]["status"] == "fail"
    assert CliRunner().invoke(app, ["doctor", "--set", "train.max_step=3"]).exit_code == 2
