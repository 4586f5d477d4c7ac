"""What train and export write."""

from __future__ import annotations

from typing import Literal, Required

from typing_extensions import TypedDict

from harness.records.base import SCHEMA_VERSION, Manifest, Name, Record, RelativePath, SchemaVersion
from harness.records.prompting import PromptForm


class HistoryPoint(Record):
    """A line of `history.jsonl`: what was logged at one optimiser step. Absent values were not measured then."""

    step: int
    epoch: float
    seconds: float
    """Since training began."""
    loss: float | None = None
    dev_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens: int | None = None
    """Tokens trained on so far, prompts included, padding not."""
    tokens_per_second: float | None = None


class SeedRuns(Manifest):
    """`seeds.json`: the runs that hold further trainings of this run's recipe, each with another seed."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    seed: int
    """Of this run's own training."""
    further: dict[str, Name]
    """Seed -> run, in the order in which they were asked for."""


class TrainedBase(TypedDict, total=False):
    """The base model that was trained on."""

    path: str
    weights_sha256: Required[str]
    tokenizer_sha256: str
    parameters: int


class TrackerFacts(TypedDict, total=False):
    """The tracker, whichever was chosen."""

    tracker: str
    """Its name."""
    mode: str
    """`disabled`, `offline` or `online`."""
    run_id: str | None
    url: str | None
    """Of online runs."""
    error: str | None
    """Why it failed; None: it did not."""


class PlanFacts(TypedDict, total=False):
    """How devices split their rows of a step: `harness.training.plan.Plan`."""

    rows: int
    tokens: int
    checkpointing: bool
    packed: bool
    graphs: bool
    peak_bytes: int
    devices: int


class TrainManifest(Manifest):
    """`train.json`, written last."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    fingerprint: str
    split_id: str
    engine: Literal["unsloth", "peft"]
    device: str
    base: TrainedBase
    adapter_sha256: str
    trainable_parameters: int
    trainable_share: float
    steps: int
    epochs: float
    rows: int
    prompt: PromptForm | None = None
    """How the questions were put."""
    rows_cut: int
    """Rows whose answer was cut at the maximum length."""
    rows_without_labels: int
    """Rows with no labelled token, which do not train."""
    labelled_token_share: float
    tokens: int
    final_loss: float | None
    """Mean of the last twenty logged losses, since that of one batch is noisy."""
    final_dev_loss: float | None
    history_sha256: str = ""
    """Of history.jsonl as this training left it."""
    wandb: TrackerFacts
    """Of the tracker, whichever was chosen."""
    seconds: float
    peak_memory_bytes: int
    resumed_from: int = 0
    """The step of the checkpoint that training resumed from; 0: from the start."""
    plan: PlanFacts = {}
    """Empty in files of earlier versions."""


class HowToRun(Record):
    """One way of loading or serving a format elsewhere."""

    tool: str
    """`llama-server`, `Ollama`, `vLLM` or `transformers`."""
    language: Literal["shell", "python"]
    lines: list[str]
    """To be typed in the folder that `runs/` is in."""
    note: str = ""
    """What must be installed or done."""


class Artifact(Record):
    """One exported format, as written and checked."""

    format: str
    """`adapter`, `merged_16bit`, `merged_4bit`, `gguf_f16`, ..."""
    path: RelativePath
    """Relative to the run folder."""
    sha256: str
    """Of the file, or of the sorted list of (name, sha256) of a folder."""
    size_bytes: int
    """Of the weights on disk."""
    tensors: int
    seconds: float
    checks: list[str]
    """What was verified after writing, in words."""
    command: str = ""
    """GGUF: the line that serves it with llama.cpp, from the run folder."""
    ways: list[HowToRun] = []
    """How it is run elsewhere with the same prompt, end tokens and greedy decoding; empty in files of earlier versions."""


class ExportManifest(Manifest):
    """`export.json`, written last."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    fingerprint: str
    artifacts: dict[Name, Artifact]
    seconds: float
