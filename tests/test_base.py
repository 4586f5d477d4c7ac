"""Base models that cannot be used, each named in one line with its hint."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.config import Model
from harness.errors import ArtifactError, DeviceError, HarnessError, ModelError
from harness.formats import safetensors_reader
from harness.models import base_model, openmp
from tests.helpers.models import edit_json, save_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("sharded"), shard="500KB")


def test_a_whole_model_is_taken(whole: Path, sharded: Path) -> None:
    assert base_model.resolve(Model(path=str(whole))) == whole
    assert base_model.check(sharded)["model_type"] == "llama"
    assert base_model.weights_size(sharded) > base_model.weights_size(whole) * 0.9


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def only_bin(folder: Path) -> None:
    (folder / safetensors_reader.WHOLE).rename(folder / "pytorch_model.bin")


def truncate(folder: Path) -> None:
    file = folder / safetensors_reader.WHOLE
    file.write_bytes(file.read_bytes()[:-1])


def write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def quantise(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "bitsandbytes"})


@pytest.mark.parametrize(
    ("damage", "kind", "line"),
    [
        (remove("tokenizer.json"), ModelError, "m: has no tokenizer; put tokenizer.json beside the weights"),
        (remove("config.json"), ModelError, "m: has no config.json; give the folder of a Hugging Face model"),
        (remove(safetensors_reader.WHOLE), ModelError, "m: has no weights; it needs model.safetensors"),
        (
            only_bin,
            ModelError,
            "m: has no weights; it needs model.safetensors or model.safetensors.index.json (pickled .bin weights are not read)",
        ),
        (quantise, ModelError, "m: is already quantised; use the 16-bit model"),
        (truncate, ArtifactError, "m/model.safetensors: is truncated: "),
        (
            write(safetensors_reader.WHOLE, b""),
            ArtifactError,
            "m/model.safetensors: is truncated or not a safetensors file",
        ),
        (
            write(safetensors_reader.WHOLE, b"version https://git-lfs.github.com/spec/v1\n"),
            ArtifactError,
            "m/model.safetensors: is truncated or not a",
        ),
        (
            write(safetensors_reader.WHOLE, (2).to_bytes(8, "little") + b"{x"),
            ArtifactError,
            "m/model.safetensors: has a damaged safetensors header",
        ),
        (write("config.json", b"{"), ModelError, "m/config.json: cannot be read: "),
        (write("config.json", b"[]"), ModelError, "m/config.json: is not a JSON object; fetch the model again"),
        (write("config.json", b"\xff"), ModelError, "m/config.json: cannot be read: "),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(
    whole: Path, tmp_path: Path, damage: Callable[[Path], object], kind: type[HarnessError], line: str
) -> None:
    folder = shutil.copytree(whole, tmp_path / "m")
    damage(folder)
    with pytest.raises(kind) as error:
        base_model.resolve(Model(path=str(folder)))
    assert str(error.value).startswith(f"{tmp_path}/{line}")
    assert "\n" not in str(error.value) and "; " in str(error.value) and error.value.exit_code == 2


def test_a_missing_shard_is_named(sharded: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sharded, tmp_path / "m")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ArtifactError, match=rf"{shard.name}: is missing, though the index names it"):
        base_model.check(folder)


def test_a_shard_without_its_tensor_is_named(sharded: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sharded, tmp_path / "m")
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    shutil.copyfile(first, second)
    with pytest.raises(ArtifactError, match=rf"names tensor \S+, which {second.name} does not hold"):
        base_model.check(folder)


# ---------------------------------------------------------------------------------------------------------------- hub


@pytest.mark.parametrize("path", ["no-such-folder", "./owner/model", "/no/such", "~/model", "a/b/c", "hf://x/y"])
def test_what_is_neither_folder_nor_hub_name_is_refused(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ModelError,
        match=r"there is no such folder; give a folder with config.json, weights and tokenizer, or a hub name like owner/model",
    ):
        base_model.resolve(Model(path=path))


def test_a_hub_model_offline_is_one_line_at_once(tmp_path: Path) -> None:
    code = "from harness.models import base_model; from harness.config import Model; base_model.resolve(Model(path='owner/no-such-model'))"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=Path(__file__).parent.parent
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("harness.errors.ModelError: owner/no-such-model: cannot be reached (")
    assert last.endswith(
        "download it where there is a network and give its folder as model.path (of an adapter: --base)"
    )
    assert time.monotonic() - began < 20


# ------------------------------------------------------------------------------------------------------------- hashes


def test_the_hash_covers_weights_and_configs_and_nothing_else(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "m")
    first = base_model.weights_sha256(folder)
    assert first == base_model.weights_sha256(whole)
    (folder / "README.md").write_text("x")
    assert base_model.weights_sha256(folder) == first
    assert base_model.artifact_sha256(folder) != base_model.artifact_sha256(whole)
    edit_json(folder / "generation_config.json", eos_token_id=[1, 2])
    second = base_model.weights_sha256(folder)
    data = bytearray((folder / safetensors_reader.WHOLE).read_bytes())
    data[-1] ^= 1
    (folder / safetensors_reader.WHOLE).write_bytes(data)
    assert len({first, second, base_model.weights_sha256(folder)}) == 3


# ------------------------------------------------------------------------------------------------------------- device


def test_a_missing_cuda_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        DeviceError, match=r"needs a CUDA device and there is none; use a machine with a GPU, or --set device=cpu"
    ):
        base_model.device_of("cuda")
    assert (base_model.device_of("auto"), base_model.device_of("cpu")) == ("cpu", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (base_model.device_of("auto"), base_model.device_of("cuda"), base_model.device_of("cpu")) == (
        "cuda",
        "cuda",
        "cpu",
    )


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
        ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
    ],
)
def test_how_threads_wait_is_set_unless_the_user_chose(
    chosen: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    openmp.wait_briefly()
    assert {name: os.environ[name] for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ} == expected
