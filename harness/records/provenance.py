"""Where a result comes from: what run.json records of a run, and what a comparison and a baseline keep of it.

Every key may be missing, since files of earlier versions lack some, and unknown keys are kept. Keys are in alphabetical order, which is that of the
files and of the report. Values are checked and never converted, so that a file that is read and written again keeps its bytes.
"""

from __future__ import annotations

from pydantic import ConfigDict, JsonValue, with_config
from typing_extensions import TypedDict

from harness.records.base import Parameters

RecordedConfig = dict[str, JsonValue]
"""A resolved config as it was recorded: section -> settings. Plain JSON, not `harness.config.Config`: another version of the harness may have
written it, with other keys."""
OPEN = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


@with_config(OPEN)
class GitState(TypedDict, total=False):
    """The checkout of the harness; empty outside one."""

    commit: str
    dirty: bool
    """There were changes that were not committed."""


@with_config(OPEN)
class Machine(TypedDict, total=False):
    """The machine, without anything that names the host or its user."""

    cores: int | None
    platform: str
    processor: str
    python: str


@with_config(OPEN)
class StageTimes(TypedDict, total=False):
    """The last time that a stage wrote its output."""

    command: str
    """The command line that repeats it."""
    ended: str
    """ISO 8601, like `started`."""
    seconds: int | float
    """Wall time."""
    started: str
    status: str
    """`done`; earlier versions wrote others too."""


@with_config(OPEN)
class SplitIdentity(TypedDict, total=False):
    """Fields of `SplitManifest` that identify the questions."""

    n_groups_heldout: int
    n_groups_train: int
    n_heldout: int
    n_train: int
    seed: int
    source: str
    source_sha256: str
    split_id: str


@with_config(OPEN)
class VariantIdentity(TypedDict, total=False):
    """Fields of `PredictionManifest` that identify a model and how it was asked."""

    asked: str
    backend: str
    backend_version: str
    execution: Parameters
    findings: list[dict[str, str]]
    """As JSON: `code` and `message` of each `Finding`."""
    generation: Parameters
    prompts_sha256: str
    tokenizer_sha256: str
    warnings: list[str]
    weights_sha256: str


@with_config(OPEN)
class Provenance(TypedDict, total=False):
    """The content of `runs/<run>/run.json`; in a comparison also `commands`, `split` and `variants`."""

    commands: list[str]
    """The commands that reproduce the run, in order."""
    config: RecordedConfig
    git: GitState
    harness: str
    """Version of the harness."""
    machine: Machine
    packages: dict[str, str]
    """Package -> installed version."""
    run: str
    schema_version: int
    seeds: dict[str, int]
    """Stage -> seed."""
    split: SplitIdentity
    stages: dict[str, StageTimes]
    """Stage -> when it ran, of those that wrote their output."""
    variants: dict[str, VariantIdentity]
