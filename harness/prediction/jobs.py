"""Who is asked what: one job per variant, with everything that decides its answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness import storage
from harness.backends import Execution, Generation, Source, resolve_batch_size
from harness.config import Config
from harness.errors import ArtifactError, DeviceError, ModelError
from harness.models import base_model
from harness.prompt import Prompter, load_tokenizer, prompt_hash, stop_ids, tokenizer_sha256
from harness.questions.asking import asked
from harness.records import ExportManifest, Question, TrainManifest
from harness.storage import RunFolder

SOURCES = ("backends", "backends/decoding", "prediction", "prompt.py", "stages/predict.py")


@dataclass(frozen=True)
class Job:
    """Everything a variant's process needs."""

    variant: str
    backend: str
    source: Source
    generation: Generation
    execution: Execution
    weights_sha256: str
    size_bytes: int
    questions: list[str]
    """Their ids, in the order of the split."""
    prompts: list[list[int]]
    tokenizer: Path
    tokenizer_sha256: str
    split_id: str
    lines: Path
    manifest: Path
    processes: int = 1
    """That share the questions."""

    @property
    def prompts_sha256(self) -> str:
        """Over all prompt hashes, in order."""
        return storage.sha256_json([prompt_hash(p) for p in self.prompts])

    def key(self, version: str) -> str:
        """What decides the answers: equal keys, equal predictions."""
        asked = [
            self.weights_sha256,
            self.tokenizer_sha256,
            self.prompts_sha256,
            self.generation.__dict__,
            self.backend,
            version,
            self.source.load_in_4bit,
        ]
        cut = [self.execution.device, self.execution.batch_tokens, self.execution.max_batch, self.execution.slots]
        return storage.sha256_json([*asked, *cut, storage.source_sha256(*SOURCES)])


def jobs(
    run: RunFolder, config: Config, split_id: str, questions: list[Question], variants: list[str]
) -> Iterator[Job]:
    """A job for each variant, made one by one: hashing an artifact takes a while.

    Raises:
        ArtifactError: an artifact is missing, or is not what export wrote; ModelError: the base cannot be used.
    """
    base_model.quiet_libraries()
    device = base_model.device_of(config.device)
    folder = base_model.resolve(config.model)
    tokenizer = load_tokenizer(folder, revision=config.model.revision, trust_remote_code=config.model.trust_remote_code)
    prompter = Prompter(tokenizer, config.prompt.template)
    settings = config.predict
    ends = stop_ids(tokenizer, _generation_eos(folder))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    generation = Generation(settings.max_new_tokens, ends, pad)
    execution = Execution(device, settings.batch_tokens, settings.max_batch, settings.slots, settings.threads)
    if device == "cpu":
        execution = resolve_batch_size(execution, 0, len(questions), 1)
    prompts = [prompter.ids(asked(q)) for q in questions]
    for variant in variants:
        backend, source, weights, size = _source(run, config, folder, variant)
        lines, manifest = run.prediction(variant)
        yield Job(
            variant,
            backend,
            source,
            generation,
            execution,
            weights,
            size,
            [q.id for q in questions],
            prompts,
            folder,
            tokenizer_sha256(tokenizer),
            split_id,
            lines,
            manifest,
            _processes(config, device, backend),
        )


def _source(run: RunFolder, config: Config, folder: Path, variant: str) -> tuple[str, Source, str, int]:
    """(backend, source, hash of the weights, their bytes) of a variant."""
    model = config.model
    if (extra := config.predict.extra.get(variant)) is not None:
        path = Path(extra.path)
        if extra.backend == "endpoint":
            return (
                "endpoint",
                Source(path, url=extra.path, model=extra.model),
                storage.sha256_json([extra.path, extra.model]),
                0,
            )
        if not path.exists():
            raise ArtifactError("does not exist", f"correct predict.extra.{variant}.path", file=path)
        size = path.stat().st_size if path.is_file() else base_model.weights_size(path)
        return (
            extra.backend,
            Source(path, load_in_4bit=extra.load_in_4bit, trust_remote_code=model.trust_remote_code),
            storage.sha256_file(path) if path.is_file() else base_model.weights_sha256(path),
            size,
        )
    whole = Source(folder, trust_remote_code=model.trust_remote_code)
    base_sha256 = base_model.weights_sha256(folder)
    if variant == "base":
        return "transformers", whole, base_sha256, base_model.weights_size(folder)
    if variant == "adapter":
        trained = storage.read_record(run.train_json, TrainManifest)
        found = base_model.weights_sha256(run.adapter)
        if found != trained.adapter_sha256:
            raise ArtifactError("is not what training wrote", "run harness train --force", file=run.adapter)
        source = replace(whole, adapter=run.adapter, load_in_4bit=config.train.load_in_4bit)
        return (
            "transformers",
            source,
            storage.sha256_json([base_sha256, found]),
            base_model.weights_size(folder) + base_model.weights_size(run.adapter),
        )
    exported = storage.read_record(run.export_json, ExportManifest).artifacts.get(variant)
    path = run.artifact(variant)
    if exported is None or not path.exists():
        raise ArtifactError("is missing", "run harness export", file=path)
    if base_model.artifact_sha256(path) != exported.sha256:
        raise ArtifactError(
            "is damaged or was changed: it is not what export wrote", "run harness export again", file=path
        )
    return "llamacpp" if path.is_file() else "transformers", Source(path), exported.sha256, exported.size_bytes


def _processes(config: Config, device: str, backend: str) -> int:
    """How many share a variant's questions: llama.cpp takes all cores in one, and an endpoint spreads them itself.

    Raises:
        DeviceError: more than there are GPUs.
    """
    asked = config.predict.processes
    if backend != "transformers":
        return 1
    if device == "cpu":
        return asked or 1
    import torch

    found = torch.cuda.device_count()
    if asked > found:
        raise DeviceError(
            f"predict.processes is {asked}, and there are {found} GPUs", "set it to 0 for one process on each GPU"
        )
    return asked or found


def _generation_eos(folder: Path) -> int | list[int] | None:
    file = folder / "generation_config.json"
    settings = storage.read_json(file) if file.exists() else {}
    found = settings.get("eos_token_id") if isinstance(settings, dict) else settings
    if not all(type(i) is int and i >= 0 for i in (found if isinstance(found, list) else [found or 0])):
        raise ModelError(f"its eos_token_id is {str(found)[:40]!r}, not token ids", "fetch the model again", file=file)
    return found


def installed(backend: str) -> dict[str, str]:
    """Versions of the packages that decide a backend's numbers."""
    names = {"transformers": ["torch", "transformers", "peft", "bitsandbytes"], "llamacpp": ["xllamacpp"]}.get(
        backend, []
    )
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found
