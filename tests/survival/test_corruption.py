"""A file of a run that was cut short or had a bit flipped, anywhere, is named or written again, and never used."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import storage
from harness.backends import Execution
from harness.config import Config
from harness.errors import ArtifactError, HarnessError
from harness.gating import baseline
from harness.models import base_model
from harness.prediction.journal import Journal
from harness.records import Prediction
from harness.stages import compare, export, gate, predict, report, score, split, train
from harness.storage import RunFolder
from harness.training import checkpoints
from tests.helpers import chain

Whole = tuple[RunFolder, Config]
Stage = Callable[[RunFolder, Config], object]
OFFSETS = 8
"""Cases of each kind of damage to each file."""


def asked(variant: str) -> Stage:
    return lambda run, config: predict.run(run, config, only=[variant])


def gated(run: RunFolder, config: Config) -> object:
    return gate.run(run, config, baseline_file=run.root / "reports" / "baseline.json")


def rescored(run: RunFolder, config: Config) -> object:
    score.run(run, config)
    return compare.run(run, config)


def compared_anew(run: RunFolder, config: Config) -> object:
    return compare.run(run, config, force=True)


# Each file with the stages that read it: each of them refuses it, or ends with the undisturbed result.
READERS: dict[str, list[Stage]] = {
    "runs/r/split/split.json": [split.run, train.run, rescored, report.run],
    "runs/r/split/train.jsonl": [split.run, train.run],
    "runs/r/split/heldout.jsonl": [
        split.run,
        train.run,
        asked("base"),
        rescored,
        compare.run,
        report.run,
        baseline.snapshot,
    ],
    "runs/r/train.json": [export.run, asked("adapter"), report.run],
    "runs/r/history.jsonl": [report.run],
    "runs/r/adapter/adapter_model.safetensors": [export.run, asked("adapter")],
    "runs/r/adapter/adapter_config.json": [export.run, asked("adapter")],
    "runs/r/export.json": [asked("merged_16bit"), report.run],
    "runs/r/merged_16bit/model.safetensors": [asked("merged_16bit")],
    "runs/r/merged_16bit/config.json": [asked("merged_16bit")],
    "runs/r/merged_16bit/tokenizer.json": [asked("merged_16bit")],
    "runs/r/gguf/model-q8_0.gguf": [asked("gguf_q8_0")],
    "runs/r/predictions/manifest.json": [rescored],
    "runs/r/predictions/adapter.json": [asked("adapter"), rescored, compare.run, report.run],
    "runs/r/predictions/adapter.jsonl": [rescored, compare.run, report.run],
    "runs/r/predictions/gguf_q8_0.logprobs.npz": [compared_anew],
    "runs/r/scores/manifest.json": [rescored, compare.run],
    "runs/r/scores/adapter.json": [rescored, compare.run, report.run, gated],
    "runs/r/scores/adapter.jsonl": [rescored, compare.run, report.run, gated],
    "reports/r/comparison.json": [compare.run, report.run, baseline.snapshot, gated],
    "reports/baseline.json": [gated],
}


def damages(data: bytes, rng: random.Random) -> list[bytes]:
    """The data cut short, and with a bit flipped, at random places."""
    cut = [data[: rng.randrange(len(data))] for _ in range(OFFSETS)]
    flipped = []
    for _ in range(OFFSETS):
        copy = bytearray(data)
        copy[rng.randrange(len(copy))] ^= 1 << rng.randrange(8)
        flipped.append(bytes(copy))
    return cut + flipped


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_refused_or_written_again(name: str, whole: Whole, tmp_path: Path) -> None:
    run, config = chain.copy(whole[0], tmp_path), whole[1]
    file, expected, refused = run.root / name, chain.result(run), 0
    data = file.read_bytes()
    for damaged in damages(data, random.Random(name)):
        for stage in READERS[name]:
            file.write_bytes(damaged)
            try:
                stage(run, config)
            except HarnessError as error:
                refused += 1
                assert error.exit_code in (2, 3) and "\n" not in str(error)
                assert file.name in str(error) or file.parent.name in str(error), error
                _restore(whole[0], run)
                continue
            assert chain.result(run) == expected, (name, stage)
            _restore(whole[0], run)
    assert refused >= OFFSETS, "hardly any damage was found"


def _restore(whole: RunFolder, run: RunFolder) -> None:
    for place in (run.root / "runs", run.root / "reports"):
        for file in [p for p in place.rglob("*") if p.is_file()]:
            source = whole.root / file.relative_to(run.root)
            if not source.exists():
                file.unlink()
        for source in [p for p in (whole.root / place.name).rglob("*") if p.is_file()]:
            target = run.root / source.relative_to(whole.root)
            if (
                not target.exists()
                or target.stat().st_size != source.stat().st_size
                or target.read_bytes() != source.read_bytes()
            ):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())


@pytest.mark.parametrize(
    "name", ["split/heldout.jsonl", "split/split.json", "merged_16bit/model.safetensors", "gguf/model-q8_0.gguf"]
)
def test_the_stage_that_wrote_it_writes_it_again(name: str, whole: Whole, tmp_path: Path) -> None:
    run, config = chain.copy(whole[0], tmp_path), whole[1]
    file = run.path / name
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + b"!" + data[len(data) // 2 + 1 :])
    (split if "split" in name else export).run(run, config)
    if file.name == "split.json":
        assert storage.read_json(file)["split_id"] == storage.read_json(whole[0].split_json)["split_id"]
    else:
        assert file.read_bytes() == data
    score.run(run, config)


def test_a_damaged_journal_loses_answers_and_keeps_none_that_are_wrong(whole: Whole, tmp_path: Path) -> None:
    answers = list(enumerate(storage.read_records(whole[0].prediction("base")[0], Prediction)))
    path = tmp_path / "v.partial"
    with Journal(path, "key").begin(Execution(batch_tokens=100, max_batch=2)) as journal:
        for start in range(0, len(answers), 2):
            journal.put(answers[start : start + 2])
    data, kept = path.read_bytes(), 0
    for damaged in damages(data, random.Random(0)):
        path.write_bytes(damaged)
        found = Journal(path, "key").answers
        kept += len(found)
        assert found == dict(answers[: len(found)])
    assert 0 < kept < 2 * OFFSETS * len(answers)


def test_a_journal_is_never_missing_while_it_is_rewritten(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = list(enumerate(storage.read_records(whole[0].prediction("base")[0], Prediction)))
    path = tmp_path / "v.partial"
    with Journal(path, "key").begin(Execution(batch_tokens=100, max_batch=2)) as journal:
        journal.put(answers)
    data, seen = path.read_bytes(), []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        seen.append(path.read_bytes())
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    with Journal(path, "key").begin(Execution(batch_tokens=100, max_batch=2)):
        assert seen == [data] and path.read_bytes() == data


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", checkpoints.SEAL])
def test_a_damaged_checkpoint_is_not_resumed(name: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    for file in ("model.safetensors", "trainer_state.json"):
        (checkpoint / file).write_bytes(random.Random(file).randbytes(500))
    _torch_save(checkpoint / "optimizer.pt")
    assert not checkpoints.is_readable(checkpoint), "it was never sealed: its writing was interrupted"
    checkpoints.seal(checkpoint)
    assert checkpoints.is_readable(checkpoint)
    data = (checkpoint / name).read_bytes()
    for damaged in damages(data, random.Random(name)):
        (checkpoint / name).write_bytes(damaged)
        assert not checkpoints.is_readable(checkpoint)
    (checkpoint / name).write_bytes(data)
    (checkpoint / "stray").write_text("")
    assert not checkpoints.is_readable(checkpoint)


def _torch_save(file: Path) -> None:
    import torch

    torch.save({"step": torch.arange(10)}, file)


def test_a_handwritten_manifest_without_a_checksum_is_taken(whole: Whole, tmp_path: Path) -> None:
    run = chain.copy(whole[0], tmp_path)
    value = storage.read_json(run.comparison_json)
    value["alarms"] = []
    storage.write_text(run.comparison_json, storage.dumps(value))
    with pytest.raises(
        ArtifactError,
        match=re.escape("comparison.json: is damaged or was changed: its checksum does not match; delete it and run"),
    ):
        report.run(run, whole[1])
    storage.write_text(run.comparison_json, storage.dumps(value | {"checksum": ""}))
    assert report.run(run, whole[1]).exists()
    assert base_model.artifact_sha256(run.merged_16bit) == base_model.artifact_sha256(whole[0].merged_16bit)
