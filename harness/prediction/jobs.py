"""Builds one prediction job for each variant, with everything that decides its answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness import storage
from harness.backends import Execution, Generation, Source, resolve_batch_size
from harness.config import Config
from harness.errors import ArtifactError, DeviceError, ModelError
from harness.models import base_model
from harness.prompt import Prompter, load_tokenizer, prompt_hash, stop_ids, tokenizer_sha256
from harness.questions import few_shot
from harness.records import ExportManifest, PromptForm, Question, TrainManifest
from harness.storage import RunFolder


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
    loaded: Any = field(default=None, compare=False, repr=False)
    """The tokenizer, loaded once for all jobs; it stays in the process that made the job."""

    prompt: PromptForm | None = None
    """How the questions were put."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "loaded": None}

    def open_tokenizer(self) -> Any:
        """The tokenizer that made the prompts, which also decodes the answers."""
        return self.loaded if self.loaded is not None else load_tokenizer(self.tokenizer)

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
        cut += [self.execution.libllama, self.execution.gpu_layers]
        return storage.sha256_json([*asked, *cut, storage.code_sha256("harness.stages.predict")])


@dataclass(frozen=True)
class Weights:
    """What one variant answers with."""

    backend: str
    source: Source
    sha256: str
    size_bytes: int


def find_weights(run: RunFolder, config: Config, folder: Path, variants: list[str]) -> dict[str, Weights]:
    """Where each variant's weights are, hashed and checked against what wrote them; the base is hashed once.

    Args:
        folder: of the base model.

    Raises:
        ArtifactError: an artifact is missing, or is not what train or export wrote.
    """
    base_sha256 = base_model.weights_sha256(folder) if {"base", "adapter"} & set(variants) else ""
    return {variant: _weights(run, config, folder, base_sha256, variant) for variant in variants}


def jobs(
    run: RunFolder,
    config: Config,
    split_id: str,
    questions: list[Question],
    variants: list[str],
    found: dict[str, Weights] | None = None,
) -> Iterator[Job]:
    """A job for each variant.

    Args:
        found: the variants' weights; looked for if not given.

    Raises:
        ArtifactError: an artifact is missing, or is not what export wrote; ModelError: the base cannot be used.
    """
    base_model.quiet_libraries()
    device = base_model.device_of(config.device)
    folder = base_model.resolve(config.model)
    found = found or find_weights(run, config, folder, variants)
    tokenizer = load_tokenizer(folder, revision=config.model.revision, trust_remote_code=config.model.trust_remote_code)
    tokenizer_hash = tokenizer_sha256(tokenizer)
    prompter = Prompter(tokenizer, config.prompt)
    ends = stop_ids(tokenizer, _generation_eos(folder), prompter.eos)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    generation = Generation(config.predict.max_new_tokens, ends, pad)
    execution = _execution(config, device, len(questions))
    shots = few_shots(run, config, questions)
    prompts = [prompter.ids(q.question, chosen) for q, chosen in zip(questions, shots, strict=True)]
    form = prompter.form(questions[0].question, shots[0]) if questions else None
    for variant in variants:
        weights = found[variant]
        lines, manifest = run.prediction(variant)
        yield Job(
            variant,
            weights.backend,
            weights.source,
            generation,
            execution,
            weights.sha256,
            weights.size_bytes,
            [q.id for q in questions],
            prompts,
            folder,
            tokenizer_hash,
            split_id,
            lines,
            manifest,
            _processes(config, device, weights.backend),
            tokenizer,
            form,
        )


def _execution(config: Config, device: str, questions: int) -> Execution:
    """How the work is cut up; on the CPU its automatic sizes are known before a model is loaded."""
    settings = config.predict
    execution = Execution(
        device,
        settings.batch_tokens,
        settings.max_batch,
        settings.slots,
        settings.threads,
        settings.libllama,
        settings.gpu_layers,
    )
    return resolve_batch_size(execution, 0, questions, 1) if device == "cpu" else execution


def few_shots(run: RunFolder, config: Config, questions: list[Question]) -> list[list[tuple[str, str]]]:
    """`prompt.few_shot` training questions with their answers for each question."""
    train = storage.read_records(run.train_jsonl, Question) if config.prompt.few_shot else []
    return few_shot.nearest(questions, train, config.prompt.few_shot)


def _weights(run: RunFolder, config: Config, folder: Path, base_sha256: str, variant: str) -> Weights:
    model = config.model
    if (extra := config.predict.extra.get(variant)) is not None:
        path = Path(extra.path)
        if extra.backend == "endpoint":
            source = Source(path, url=extra.path, model=extra.model)
            return Weights("endpoint", source, storage.sha256_json([extra.path, extra.model]), 0)
        if not path.exists():
            raise ArtifactError("does not exist", f"correct predict.extra.{variant}.path", file=path)
        source = Source(path, load_in_4bit=extra.load_in_4bit, trust_remote_code=model.trust_remote_code)
        if path.is_file():
            return Weights(extra.backend, source, storage.sha256_large(path), path.stat().st_size)
        return Weights(extra.backend, source, base_model.weights_sha256(path), base_model.weights_size(path))
    whole = Source(folder, trust_remote_code=model.trust_remote_code)
    if variant == "base":
        return Weights("transformers", whole, base_sha256, base_model.weights_size(folder))
    if variant == "adapter":
        trained = storage.read_record(run.train_json, TrainManifest)
        sha256 = base_model.weights_sha256(run.adapter)
        if sha256 != trained.adapter_sha256:
            raise ArtifactError("is not what training wrote", "run harness train --force", file=run.adapter)
        source = replace(whole, adapter=run.adapter, load_in_4bit=config.train.load_in_4bit)
        size = base_model.weights_size(folder) + base_model.weights_size(run.adapter)
        return Weights("transformers", source, storage.sha256_json([base_sha256, sha256]), size)
    exported = storage.read_record(run.export_json, ExportManifest).artifacts.get(variant)
    path = run.artifact(variant)
    if exported is None or not path.exists():
        raise ArtifactError("is missing", "run harness export", file=path)
    if base_model.artifact_sha256(path) != exported.sha256:
        raise ArtifactError(
            "is damaged or was changed: it is not what export wrote", "run harness export again", file=path
        )
    backend = "llamacpp" if path.is_file() else "transformers"
    return Weights(backend, Source(path), exported.sha256, exported.size_bytes)


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
