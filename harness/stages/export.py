"""adapter, base model -> merged_16bit/, merged_4bit/, gguf/, export.json: every format by one path on every device, each opened again and checked."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from harness import formats, storage, variants
from harness.analysis import fidelity
from harness.config import Config
from harness.errors import ArtifactError
from harness.formats import Checked, Sources, gguf, how_to_run, importance, merged, modelfile, quantize
from harness.models import base_model
from harness.prompt import Prompter, load_tokenizer
from harness.questions.asking import system_of
from harness.records import Artifact, ExportManifest, HowToRun, Question, TrainManifest
from harness.storage import RunFolder

log = logging.getLogger(__name__)

UNFINISHED = "export.partial.json"
"""The manifest of the formats that are there while others are being written: an interrupted export resumes after them."""


def run(run: RunFolder, config: Config, *, force: bool = False) -> ExportManifest:
    """Writes every format of `config.export.formats`; those already written from the same adapter are kept.

    Raises:
        ArtifactError: no training, or an adapter that is not the one it wrote; ModelError: a base that a format does not support;
        StorageError: too little space (checked before anything is written).
    """
    base_model.quiet_libraries()
    trained = storage.read_record(run.train_json, TrainManifest)
    folder = base_model.resolve(config.model)
    if base_model.weights_sha256(run.adapter) != trained.adapter_sha256:
        raise ArtifactError("is not what training wrote", "run harness train --force", file=run.adapter)
    if base_model.weights_sha256(folder) != trained.base["weights_sha256"]:
        raise ArtifactError("is not the base that the adapter was trained on", "run harness train again", file=folder)
    wanted = config.export.formats
    fingerprint = _fingerprint(run, config, trained)
    if wanted and variants.MERGED not in wanted:
        wanted = [variants.MERGED, *wanted]  # every other format is made from it
    needed = {"adapter", *wanted}
    old = storage.up_to_date(run.export_json, ExportManifest, fingerprint, lambda m: needed <= _whole(run, m).keys())
    if old and not force:
        log.info("nothing changed since the last export")
        served = old.model_copy(update={"artifacts": _serve(run, config, old.artifacts)})
        if served != old:
            storage.write_json(run.export_json, served)
        return served
    kept = {} if force else _kept(run, fingerprint)
    if config.export.llama_cpp is None and any(map(variants.is_gguf, wanted)):
        gguf.check_supported(folder)
    missing = [f for f in wanted if f not in kept]
    bound = sum(variants.VARIANTS[f].size_bound for f in missing)
    storage.need_space(run.path, int(base_model.weights_size(folder) * bound) + 50_000_000)
    began, unfinished = time.monotonic(), run.path / UNFINISHED
    if run.export_json.exists():
        run.export_json.rename(unfinished)
    checkout = Path(config.export.llama_cpp) if config.export.llama_cpp else None
    weigh = partial(_importance, run, config) if _importance_key(run, config) else lambda: None
    threads, without_bos = config.predict.threads, chats_without_bos(folder, config)
    sources = Sources(folder, run.adapter, run.merged_16bit, threads, checkout, weigh, without_bos)
    artifacts = {"adapter": kept.get("adapter") or _adapter(run)} | {f: kept[f] for f in wanted if f in kept}

    def record(name: str, artifact: Artifact) -> None:
        artifacts[name] = artifact
        seconds = time.monotonic() - began
        storage.write_json(unfinished, ExportManifest(fingerprint=fingerprint, artifacts=artifacts, seconds=seconds))

    _write_all(run, missing, sources, record)
    artifacts = _serve(run, config, artifacts)
    manifest = ExportManifest(fingerprint=fingerprint, artifacts=artifacts, seconds=time.monotonic() - began)
    storage.write_json(run.export_json, manifest)
    unfinished.unlink(missing_ok=True)
    return manifest


def _serve(run: RunFolder, config: Config, artifacts: dict[str, Artifact]) -> dict[str, Artifact]:
    """Adds to each record how the format is run elsewhere, and writes a Modelfile beside each GGUF file."""
    if variants.MERGED not in artifacts:
        return artifacts
    found = modelfile.serving(run.merged_16bit, config.prompt, config.predict.max_new_tokens)
    served = {}
    for name, artifact in artifacts.items():
        place = run.path / artifact.path
        # As typed in the folder that holds runs/.
        path = f"{run.path.parent.name}/{run.name}/{artifact.path}"
        ways = how_to_run.ways(
            name,
            path,
            found,
            base=config.model.path,
            rank=config.train.lora.r,
            load_in_4bit=config.train.load_in_4bit,
            name=run.name,
        )
        recorded = [HowToRun(tool=w.tool, language=w.language, lines=[*w.lines], note=w.note) for w in ways]
        served[name] = artifact.model_copy(update={"ways": recorded})
        if variants.is_gguf(name):
            with storage.atomic_path(place.with_name(f"Modelfile-{name.removeprefix(variants.GGUF)}")) as temporary:
                temporary.write_text(modelfile.modelfile(place.name, found), encoding="utf-8")
            command = modelfile.server_command(artifact.path, found)
            served[name] = served[name].model_copy(update={"command": command})
    return served


def _fingerprint(run: RunFolder, config: Config, trained: TrainManifest) -> str:
    """Of everything that decides the exported files."""
    made_from = [trained.adapter_sha256, trained.base, config.export.llama_cpp, config.prompt.format]
    return storage.sha256_json([made_from, _importance_key(run, config), storage.code_sha256("harness.stages.export")])


def chats_without_bos(folder: Path, config: Config) -> bool:
    """Whether prompts are chats that begin without BOS although the tokenizer adds one to a text.

    transformers adds nothing to a rendered chat; llama.cpp's server adds BOS to it where the file says so.
    """
    if not any(map(variants.is_gguf, config.export.formats)):
        return False
    tokenizer = load_tokenizer(folder)
    prompter = Prompter(tokenizer, config.prompt)
    return prompter.format == "chat" and prompter.ids("?")[:1] != [tokenizer.bos_token_id]


def _importance_key(run: RunFolder, config: Config) -> list[Any]:
    """What affects the importance matrix, apart from the model; empty: no format uses one."""
    weighed = {f"{variants.GGUF}{kind}" for kind in quantize.WEIGHED} & set(config.export.formats)
    if not weighed or not config.export.importance_rows or not run.train_jsonl.exists():
        return []
    return [config.export.importance_rows, config.prompt.model_dump(), storage.sha256_file(run.train_jsonl)]


def _importance(run: RunFolder, config: Config) -> dict[str, Any]:
    """The importance matrix of the merged model on training rows, measured once for all formats."""
    key = storage.sha256_json([_importance_key(run, config), base_model.weights_sha256(run.merged_16bit)])
    questions = storage.read_records(run.train_jsonl, Question)
    chosen = fidelity.subset([q.id for q in questions], config.export.importance_rows)
    prompter = Prompter(load_tokenizer(run.merged_16bit), config.prompt)
    length = config.train.max_length
    rows = [
        prompter.example(q.question, q.answer, train_on="answer", max_length=length, system=system_of(q)).input_ids
        for q in (questions[i] for i in chosen)
    ]
    log.info(f"importance matrix: {len(rows)} training rows")
    file, device = run.path / "importance.npz", base_model.device_of(config.device)
    return importance.load_or_measure(file, run.merged_16bit, rows, device=device, key=key)


def _write_all(run: RunFolder, names: list[str], sources: Sources, record: Callable[[str, Artifact], None]) -> None:
    """Writes the formats one after the other. Each is hashed and recorded while the next is written; an interrupt waits for that."""

    def finish(name: str, seconds: float, checked: Checked) -> None:
        record(name, _artifact(run, name, run.artifact(name), seconds, checked))

    with ThreadPoolExecutor(1) as pool:
        # The 16-bit model comes first: the others read it.
        finished = [
            pool.submit(finish, name, *_write(run, name, sources))
            for name in sorted(names, key=lambda f: f != variants.MERGED)
        ]
    for each in finished:
        each.result()


def _write(run: RunFolder, name: str, sources: Sources) -> tuple[float, Checked]:
    """Writes one format under a temporary name, checks it, and moves it into place; returns the seconds, and what was checked."""
    log.info(f"writing {name}")
    began = time.monotonic()
    with storage.atomic_path(run.artifact(name)) as temporary:
        checked = formats.find(name)(sources, temporary, name)
    return time.monotonic() - began, checked


def _adapter(run: RunFolder) -> Artifact:
    count = len(merged.adapter_tensors(run.adapter))
    return _artifact(run, "adapter", run.adapter, 0.0, Checked(count, [f"{count} adapted weights read back"]))


def _artifact(run: RunFolder, name: str, path: Path, seconds: float, checked: Checked) -> Artifact:
    size = path.stat().st_size if path.is_file() else base_model.weights_size(path)
    return Artifact(
        format=name,
        path=path.relative_to(run.path).as_posix(),
        sha256=base_model.artifact_sha256(path),
        size_bytes=size,
        tensors=checked.tensors,
        seconds=seconds,
        checks=checked.checks,
    )


def _kept(run: RunFolder, fingerprint: str) -> dict[str, Artifact]:
    """Artifacts of the last export, finished or not, that are still what it wrote; none if anything that decides them changed."""
    file = next((file for file in (run.export_json, run.path / UNFINISHED) if file.exists()), None)
    if file is None:
        return {}
    if old := storage.up_to_date(file, ExportManifest, fingerprint, lambda _: True):
        return _whole(run, old)
    for path in map(run.artifact, variants.exported()):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return {}


def _whole(run: RunFolder, manifest: ExportManifest) -> dict[str, Artifact]:
    """The artifacts of a manifest that are still what it says."""
    return {
        name: artifact
        for name, artifact in manifest.artifacts.items()
        if (path := run.path / artifact.path).exists() and base_model.artifact_sha256(path) == artifact.sha256
    }
