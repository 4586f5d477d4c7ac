"""The export stage: every format from one adapter, what is kept, what is rebuilt, and what stops it."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from harness import storage, variants
from harness.backends import Execution, Generation, Source, find
from harness.config import Config
from harness.errors import ArtifactError, ModelError, StorageError
from harness.formats import gguf, merged
from harness.models import base_model
from harness.prompt import Prompter, load_tokenizer
from harness.records import ExportManifest
from harness.stages import export
from harness.storage import RunFolder
from tests.helpers import small_run
from tests.helpers.logged import messages
from tests.helpers.models import CORPUS, EOS_ID, edit_json, save_model

FORMATS = variants.exported()


def config(model: Path, formats: list[str]) -> Config:
    return small_run.config(model, export={"formats": formats}, predict={"threads": 1})


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run.save_adapter(tmp_path_factory.mktemp("adapter"), tiny_model)


@pytest.fixture(scope="module")
def whole(
    tiny_model: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, ExportManifest]:
    """A run with every format."""
    run = RunFolder("r", tmp_path_factory.mktemp("whole"))
    small_run.trained(run, tiny_model, adapter)
    return run, export.run(run, config(tiny_model, FORMATS))


@pytest.fixture
def run(tiny_model: Path, adapter: Path, tmp_path: Path) -> RunFolder:
    """A run that was trained and not exported."""
    run = RunFolder("r", tmp_path)
    small_run.trained(run, tiny_model, adapter)
    return run


def times(run: RunFolder) -> dict[str, int]:
    """Artifact -> when its weights were written."""
    artifacts = storage.read_record(run.export_json, ExportManifest).artifacts
    paths = {name: run.path / artifact.path for name, artifact in artifacts.items()}
    return {name: (p if p.is_file() else next(p.glob("*.safetensors"))).stat().st_mtime_ns for name, p in paths.items()}


# ------------------------------------------------------------------------------------------------------------ formats


def test_every_format_is_written_and_checked(whole: tuple[RunFolder, ExportManifest]) -> None:
    run, manifest = whole
    assert manifest == storage.read_record(run.export_json, ExportManifest)
    assert list(manifest.artifacts) == ["adapter", *FORMATS]
    for name, artifact in manifest.artifacts.items():
        path = run.path / artifact.path
        assert path == (run.adapter if name == "adapter" else run.artifact(name))
        assert artifact.sha256 == base_model.artifact_sha256(path)
        assert artifact.size_bytes > 10_000 and artifact.checks and artifact.seconds >= 0
        assert artifact.tensors >= 14


def test_the_formats_are_as_large_as_their_types_say(whole: tuple[RunFolder, ExportManifest]) -> None:
    sizes = {name: a.size_bytes for name, a in whole[1].artifacts.items()}
    assert sizes["gguf_f32"] > 1.9 * sizes["gguf_f16"] > 1.9 * sizes["gguf_q8_0"] > 1.9 * sizes["gguf_q4_0"] * 0.6
    ordered = [sizes[f"gguf_{t}"] for t in ("f32", "f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")]
    assert ordered == sorted(ordered, reverse=True)
    assert sizes["merged_4bit"] < 0.6 * sizes["merged_16bit"]


def test_the_estimated_space_is_an_upper_bound(whole: tuple[RunFolder, ExportManifest], tiny_model: Path) -> None:
    """But for the vocabulary, which GGUF carries in the file: a few kilobytes here, covered by the constant."""
    for name, share in ((name, variants.VARIANTS[name].size_bound) for name in FORMATS):
        assert whole[1].artifacts[name].size_bytes <= share * base_model.weights_size(tiny_model) + 50_000, name


def test_no_temporary_file_is_left(whole: tuple[RunFolder, ExportManifest]) -> None:
    assert not [p for p in whole[0].path.rglob("*") if p.name.startswith(".") or p.name.endswith(".tmp")]


def test_gguf_f16_answers_as_merged_16bit(whole: tuple[RunFolder, ExportManifest], tiny_model: Path) -> None:
    import torch

    run, _ = whole
    prompter = Prompter(load_tokenizer(tiny_model), "{question}")
    prompts = [prompter.ids(text)[:n] for text in CORPUS for n in (3, 6, 11)]
    generation, answers = Generation(20, (EOS_ID,), EOS_ID), {}
    for name, backend in (("merged_16bit", "transformers"), ("gguf_f16", "llamacpp"), ("gguf_f32", "llamacpp")):
        model: Any = find(backend)(Source(run.artifact(name)), generation, Execution(threads=1))
        answers[name] = [c.answer_ids for c in model.answer(prompts)]
        model.close()
    torch.set_grad_enabled(True)
    assert answers["gguf_f32"] == answers["merged_16bit"]
    assert (
        sum(a == b for a, b in zip(answers["gguf_f16"], answers["merged_16bit"], strict=True))
        >= 0.98 * len(prompts) - 1
    )
    assert len({tuple(a) for a in answers["merged_16bit"]}) > len(CORPUS)


def test_merged_16bit_is_made_although_only_its_children_are_asked_for(run: RunFolder, tiny_model: Path) -> None:
    assert list(export.run(run, config(tiny_model, ["gguf_q8_0"])).artifacts) == [
        "adapter",
        "merged_16bit",
        "gguf_q8_0",
    ]


def test_the_adapter_alone_needs_no_merge(run: RunFolder, tiny_model: Path) -> None:
    assert list(export.run(run, small_run.config(tiny_model, export={"formats": []})).artifacts) == ["adapter"]
    assert not run.merged_16bit.exists()


# ---------------------------------------------------------------------------------------------------- kept or rebuilt


@pytest.fixture
def two(run: RunFolder, tiny_model: Path) -> RunFolder:
    export.run(run, config(tiny_model, ["merged_16bit", "gguf_f16"]))
    return run


def test_nothing_changed_writes_nothing(two: RunFolder, tiny_model: Path) -> None:
    before = times(two)
    with messages() as logged:
        export.run(two, config(tiny_model, ["merged_16bit", "gguf_f16"]))
    assert times(two) == before
    assert logged == ["nothing changed since the last export"]


def test_a_further_format_leaves_the_others(two: RunFolder, tiny_model: Path) -> None:
    before = times(two)
    export.run(two, config(tiny_model, ["merged_16bit", "gguf_f16", "gguf_q8_0"]))
    after = times(two)
    assert {name: after[name] for name in before} == before and "gguf_q8_0" in after


@pytest.mark.parametrize("damaged", ["gguf_f16", "merged_16bit"])
def test_a_flipped_bit_is_rebuilt_and_only_there(two: RunFolder, tiny_model: Path, damaged: str) -> None:
    before, sha256 = times(two), storage.read_record(two.export_json, ExportManifest).artifacts[damaged].sha256
    path = two.artifact(damaged)
    file = path if path.is_file() else path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    manifest = export.run(two, config(tiny_model, ["merged_16bit", "gguf_f16"]))
    assert manifest.artifacts[damaged].sha256 == sha256 == base_model.artifact_sha256(path)
    assert {name for name, time in times(two).items() if time != before[name]} == {damaged}


def test_another_adapter_rebuilds_everything(two: RunFolder, tiny_model: Path, tmp_path: Path) -> None:
    before = storage.read_record(two.export_json, ExportManifest).artifacts
    small_run.trained(two, tiny_model, small_run.save_adapter(tmp_path / "other", tiny_model, seed=1))
    after = export.run(two, config(tiny_model, ["merged_16bit", "gguf_f16"])).artifacts
    assert all(before[name].sha256 != after[name].sha256 for name in after)


# ------------------------------------------------------------------------------------------------------------- errors


def test_too_little_space_is_found_before_anything_is_written(
    run: RunFolder, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(
        StorageError, match=r"r: needs \d\.\d\d GB and 0.00 GB are free; free some space and run the same command again"
    ):
        export.run(run, config(tiny_model, FORMATS))
    assert sorted(p.name for p in run.path.iterdir()) == ["adapter", "train.json"]


def test_a_disk_that_fills_up_leaves_no_half_artifact(
    run: RunFolder, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with (
        monkeypatch.context() as patched,
        pytest.raises(StorageError, match="cannot write: no space left on device; free some space"),
    ):
        patched.setattr(gguf, "write", full)
        export.run(run, config(tiny_model, ["merged_16bit", "gguf_f16"]))
    assert not run.export_json.exists()
    assert list(run.gguf.iterdir()) == []
    export.run(run, config(tiny_model, ["merged_16bit", "gguf_f16"]))


def test_an_interrupted_export_resumes_after_the_formats_that_are_whole(
    run: RunFolder, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(gguf, "write", interrupted)
        export.run(run, config(tiny_model, ["merged_16bit", "gguf_f16"]))
    with messages() as logged:
        export.run(run, config(tiny_model, ["merged_16bit", "gguf_f16"]))
    assert [line for line in logged if line.startswith("writing")] == ["writing gguf_f16"]


def test_an_unknown_architecture_is_one_line(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m")
    run = RunFolder("r", tmp_path)
    adapter = small_run.save_adapter(tmp_path / "a", model)
    edit_json(model / "config.json", architectures=["FalconForCausalLM"])
    small_run.trained(run, model, adapter)
    with pytest.raises(ModelError) as error:
        export.run(run, config(model, ["merged_16bit", "gguf_f16"]))
    line = str(error.value)
    assert "\n" not in line and "its architecture is FalconForCausalLM" in line and "export.llama_cpp" in line
    assert not run.artifact("gguf_f16").exists() and not run.export_json.exists()


def test_an_adapter_that_was_changed_is_refused(run: RunFolder, tiny_model: Path) -> None:
    small_run.save_adapter(run.adapter, tiny_model, seed=2)
    with pytest.raises(ArtifactError, match=r"adapter: is not what training wrote; run harness train --force"):
        export.run(run, config(tiny_model, ["merged_16bit"]))


def test_another_base_is_refused(run: RunFolder, tiny_model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")
    edit_json(other / "generation_config.json", temperature=0.5)
    with pytest.raises(ArtifactError, match=r"other: is not the base that the adapter was trained on"):
        export.run(run, config(other, ["merged_16bit"]))


def test_no_training_is_named(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"train.json: is missing; run harness"):
        export.run(RunFolder("r", tmp_path), config(tiny_model, ["merged_16bit"]))


def test_an_artifact_that_does_not_pass_its_check_does_not_take_its_place(
    run: RunFolder, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = merged.write_safetensors

    def truncated(path: Path, *rest: Any) -> int:
        written = write(path, *rest)
        path.write_bytes(path.read_bytes()[:-1])
        return written

    monkeypatch.setattr(merged, "write_safetensors", truncated)
    with pytest.raises(ArtifactError, match=r"model.safetensors: is damaged .*; export again"):
        export.run(run, config(tiny_model, ["merged_16bit"]))
    assert not run.merged_16bit.exists() and not run.export_json.exists()
