"""Who is asked what: one job per variant, with everything that decides its answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from harness import storage
from harness.backends import Execution, Generation, Prompt, Source, resolve_batch_size
from harness.config import Config, Price
from harness.errors import ArtifactError, DeviceError
from harness.models import base_model
from harness.prediction import extras
from harness.prediction.asking import Asker
from harness.prompt import prompt_hash
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
    prompts: list[Prompt]
    tokenizer: Path | None
    """None: the model takes text."""
    tokenizer_sha256: str
    split_id: str
    lines: Path
    manifest: Path
    processes: int = 1
    """That share the questions."""
    template: str = ""
    asked: Literal["run", "own"] = "run"
    """As in PredictionManifest."""
    price: Price | None = None
    foreign_adapter: bool = False
    """It was trained elsewhere, and is checked before it is asked."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt; 0 where they are not known."""
        return [len(p) if self.tokenizer is not None else 0 for p in self.prompts]

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
            *([True] if self.source.chat else []),
        ]
        cut = [self.execution.device, self.execution.batch_tokens, self.execution.max_batch, self.execution.slots]
        return storage.sha256_json([*asked, *cut, storage.source_sha256(*SOURCES)])


def jobs(
    run: RunFolder,
    config: Config,
    split_id: str,
    questions: list[Question],
    variants: list[str],
    objects: Mapping[str, Any] | None = None,
) -> Iterator[Job]:
    """A job for each variant, made one by one: hashing an artifact takes a while.

    Args:
        objects: variant of the backend `python` -> the function or loaded model that answers.
    Raises:
        ArtifactError: an artifact is missing, or is not what export wrote; ModelError: a model cannot be used.
    """
    base_model.quiet_libraries()
    device = base_model.device_of(config.device)
    asker = Asker(config, questions)
    settings = config.predict
    execution = Execution(device, settings.batch_tokens, settings.max_batch, settings.slots, settings.threads)
    if device == "cpu":
        execution = resolve_batch_size(execution, 0, len(questions), 1)
    for variant in variants:
        extra = config.predict.extra.get(variant)
        if extra is None:
            backend, source, weights, size = _source(run, config, asker.folder, variant)
            asking = asker.by_run
        else:
            source, weights, size, asking = extras.resolve(config, variant, extra, asker, (objects or {}).get(variant))
            backend = extra.backend
        cut = execution
        if backend == "endpoint":
            parallel = extra.parallel if extra and extra.parallel else settings.slots
            cut = replace(execution, batch_tokens=2**31, max_batch=1, slots=parallel)
        lines, manifest = run.prediction(variant)
        yield Job(
            variant=variant,
            backend=backend,
            source=source,
            generation=asking.generation,
            execution=cut,
            weights_sha256=weights,
            size_bytes=size,
            questions=[q.id for q in questions],
            prompts=asking.prompts,
            tokenizer=asking.tokenizer,
            tokenizer_sha256=asking.tokenizer_sha256,
            split_id=split_id,
            lines=lines,
            manifest=manifest,
            processes=_processes(config, device, backend),
            template=asking.template,
            asked=asking.by,
            price=extra.price if extra else None,
            foreign_adapter=extra is not None and source.adapter is not None,
        )


def _source(run: RunFolder, config: Config, folder: Path, variant: str) -> tuple[str, Source, str, int]:
    """(backend, source, hash of the weights, their bytes) of a variant that the run made."""
    model = config.model
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
