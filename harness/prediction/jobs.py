"""Builds one prediction job for each variant, with everything that decides its answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from harness import storage
from harness.backends import Execution, Generation, Prompt, Source, cores, resolve_batch_size, threads_on_cpu
from harness.config import Config, Price
from harness.config import Prompt as PromptSettings
from harness.errors import ArtifactError, DeviceError
from harness.models import base_model
from harness.prediction import extras
from harness.prediction.asking import Asker
from harness.prediction.extras import Weights
from harness.prompt import load_tokenizer, prompt_hash
from harness.questions import few_shot
from harness.records import ExportManifest, PromptForm, Question, TrainManifest
from harness.registry import BACKENDS
from harness.storage import RunFolder
from harness.variants import ADAPTER, BASE_FEW_SHOT, UNTUNED, VARIANTS

PROCESSES_ON_CPU = 8
"""At most, unless the config asks for more: each has PyTorch and the model in memory."""
BYTES_PER_PARAMETER = 2
"""Of weights as they are stored."""


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
    """Processes that share the questions."""
    loaded: Any = field(default=None, compare=False, repr=False)
    """The tokenizer, loaded once for all jobs; it stays in the process that made the job."""

    prompt: PromptForm | None = None
    """The form of the prompts."""
    asked: Literal["run", "own"] = "run"
    """As in PredictionManifest."""
    price: Price | None = None
    foreign_adapter: bool = False
    """It was trained elsewhere, and is checked before it answers."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt; 0 where they are not known."""
        return [len(self.ids_of(p)) for p in self.prompts]

    def ids_of(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt; none where the model takes text."""
        found: Any = prompt
        return found if self.tokenizer is not None else []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "loaded": None}

    def open_tokenizer(self) -> Any:
        """The tokenizer that made the prompts, which also decodes the answers; None: the model takes text."""
        if self.tokenizer is None:
            return None
        return self.loaded if self.loaded is not None else load_tokenizer(self.tokenizer)

    @property
    def prompts_sha256(self) -> str:
        """Over all prompt hashes, in order."""
        return storage.sha256_json([prompt_hash(p) for p in self.prompts])

    def key(self, version: str) -> str:
        """Everything that affects the answers: equal keys mean equal predictions."""
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
        cut += [self.execution.libllama, self.execution.gpu_layers]
        return storage.sha256_json([*asked, *cut, storage.code_sha256("harness.stages.predict")])


def find_weights(
    run: RunFolder,
    config: Config,
    folder: Path | None,
    variants: list[str],
    objects: Mapping[str, Any] | None = None,
) -> dict[str, Weights]:
    """Each variant's weights, hashed and checked against the manifest of the stage that wrote them; the base is hashed once.

    Args:
        folder: of the base model; None: no variant needs it.
        objects: variant of the backend `python` -> the function or loaded model that answers.

    Raises:
        ArtifactError: an artifact is missing, or is not what train or export wrote.
    """
    base_sha256 = base_model.weights_sha256(folder) if folder and {*UNTUNED, ADAPTER} & set(variants) else ""
    found = {}
    for variant in variants:
        if (extra := config.predict.extra.get(variant)) is not None:
            found[variant] = extras.weights(config, variant, extra, folder, (objects or {}).get(variant))
        else:
            assert folder is not None
            found[variant] = _weights(run, config, folder, base_sha256, variant)
    return found


def base_folder(config: Config, variants: list[str]) -> Path | None:
    """The folder of the run's model, checked; None if no variant is made from it or uses its tokenizer."""
    by_extra = [config.predict.extra.get(variant) for variant in variants]
    return base_model.resolve(config.model) if any(e is None or extras.needs_run(e) for e in by_extra) else None


def jobs(
    run: RunFolder,
    config: Config,
    split_id: str,
    questions: list[Question],
    variants: list[str],
    found: dict[str, Weights] | None = None,
    *,
    taught: bool = False,
) -> Iterator[Job]:
    """A job for each variant.

    Args:
        found: the variants' weights; looked for if not given.
        taught: the questions are those of the second held-out side, whose answers have separate files.

    Raises:
        ArtifactError: an artifact is missing, or is not what export wrote; ModelError: a model cannot be used.
    """
    base_model.quiet_libraries()
    device = base_model.device_of(config.device)
    folder = base_folder(config, variants)
    found = found or find_weights(run, config, folder, variants)
    asker = Asker(config, questions, folder, lambda prompt: few_shots(run, prompt, questions))
    execution = _execution(config, device, len(questions))
    for variant in variants:
        weights, extra = found[variant], config.predict.extra.get(variant)
        if extra is not None:
            asking = extras.asking(extra, weights, asker)
        else:
            asking = asker.with_examples(config.predict.few_shot) if variant == BASE_FEW_SHOT else asker.by_run
        cut = execution
        if BACKENDS[weights.backend].address == "url":
            parallel = extra.parallel if extra and extra.parallel else config.predict.slots
            cut = replace(execution, batch_tokens=2**31, max_batch=1, slots=parallel)
        lines, manifest = run.taught_prediction(variant) if taught else run.prediction(variant)
        yield Job(
            variant=variant,
            backend=weights.backend,
            source=weights.source,
            generation=asking.generation,
            execution=cut,
            weights_sha256=weights.sha256,
            size_bytes=weights.size_bytes,
            questions=[q.id for q in questions],
            prompts=asking.prompts,
            tokenizer=asking.tokenizer,
            tokenizer_sha256=asking.tokenizer_sha256,
            split_id=split_id,
            lines=lines,
            manifest=manifest,
            processes=_processes(config.predict.processes, weights, cut, len(questions)),
            loaded=asking.loaded,
            prompt=asking.form,
            asked=asking.by,
            price=extra.price if extra else None,
            foreign_adapter=extra is not None and weights.source.adapter is not None,
        )


def _execution(config: Config, device: str, questions: int) -> Execution:
    """How the work is split; on the CPU automatic sizes are known before a model is loaded."""
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


def few_shots(run: RunFolder, prompt: PromptSettings, questions: list[Question]) -> list[list[tuple[str, str]]]:
    """`prompt.few_shot` training questions with their answers for each question; of a model from elsewhere, of what it was trained on."""
    sides = [file for file in (run.train_jsonl, run.trained_on_jsonl) if file.exists()] if prompt.few_shot else []
    train = [question for file in sides for question in storage.iter_records(file, Question)]
    return few_shot.nearest(questions, train, prompt.few_shot)


def _weights(run: RunFolder, config: Config, folder: Path, base_sha256: str, variant: str) -> Weights:
    model = config.model
    whole = Source(folder, trust_remote_code=model.trust_remote_code)
    backend = VARIANTS[variant].backend
    if variant in UNTUNED:
        return Weights(backend, whole, base_sha256, base_model.weights_size(folder))
    if variant == ADAPTER:
        trained = storage.read_record(run.train_json, TrainManifest)
        sha256 = base_model.weights_sha256(run.adapter)
        if sha256 != trained.adapter_sha256:
            raise ArtifactError("is not what training wrote", "run harness train --force", file=run.adapter)
        source = replace(whole, adapter=run.adapter, load_in_4bit=config.train.load_in_4bit)
        size = base_model.weights_size(folder) + base_model.weights_size(run.adapter)
        return Weights(backend, source, storage.sha256_json([base_sha256, sha256]), size)
    exported = storage.read_record(run.export_json, ExportManifest).artifacts.get(variant)
    path = run.artifact(variant)
    if exported is None or not path.exists():
        raise ArtifactError("is missing", "run harness export", file=path)
    if base_model.artifact_sha256(path) != exported.sha256:
        raise ArtifactError(
            "is damaged or was changed: it is not what export wrote", "run harness export again", file=path
        )
    return Weights(backend, Source(path), exported.sha256, exported.size_bytes)


def _processes(asked: int, weights: Weights, execution: Execution, questions: int) -> int:
    """The number of processes for a variant's questions: llama.cpp uses all cores in one, and an endpoint parallelises itself.

    Args:
        asked: `predict.processes`.
        execution: the sizes of batches are known on the CPU.
    Raises:
        DeviceError: more than there are GPUs.
    """
    if not BACKENDS[weights.backend].uses_gpu:
        return 1
    if execution.device == "cpu":
        threads = execution.threads or threads_on_cpu(weights.size_bytes // BYTES_PER_PARAMETER)
        return asked or max(1, min(cores() // threads, -(-questions // execution.max_batch), PROCESSES_ON_CPU))
    import torch

    found = torch.cuda.device_count()
    if asked > found:
        raise DeviceError(
            f"predict.processes is {asked}, and there are {found} GPUs", "set it to 0 for one process on each GPU"
        )
    return asked or found


def installed(backend: str) -> dict[str, str]:
    """Versions of the packages that affect a backend's numbers."""
    found = {}
    for name in BACKENDS[backend].packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found
