"""The order of the stages, and what surrounds each: the lock of its run folder and its entry in run.json."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from harness import provenance, storage
from harness.config import Config
from harness.errors import ArtifactError, ConfigError, IncomparableError
from harness.records import SeedRuns
from harness.storage import RunFolder, check_name
from harness.training.distributed import processes

log = logging.getLogger(__name__)

STAGES = ("split", "train", "export", "predict", "score", "compare", "report")
"""In the order in which each needs the ones before it."""


def until(last: str) -> tuple[str, ...]:
    """The stages up to and including `last`; ConfigError if there is no such stage."""
    if last not in STAGES:
        raise ConfigError(f"no stage {last!r}", f"use one of {', '.join(STAGES)}")
    return STAGES[: STAGES.index(last) + 1]


def run(stage: str, folder: RunFolder, config: Config, *, force: bool = False) -> Any:
    """Runs one stage with its defaults and returns what it returns."""
    return import_module(f"harness.stages.{stage}").run(folder, config, force=force)


def runs_of_seeds(folder: RunFolder, config: Config) -> dict[str, str]:
    """Further seed of `train.seeds` -> the run that holds its training, `RUN-seed-SEED`."""
    return {str(seed): check_name(f"{folder.name}-seed-{seed}") for seed in config.train.seeds[1:]}


def list_seeds(folder: RunFolder, config: Config, further: Mapping[str, str]) -> None:
    """Writes which runs hold further trainings of this one's recipe, for compare; without any the list is removed."""
    with folder.lock():
        if further:
            storage.write_json(folder.seeds_json, SeedRuns(seed=config.train.seed, further=dict(further)))
        else:
            folder.seeds_json.unlink(missing_ok=True)


@dataclass
class Attempt:
    """One call of a stage."""

    manifest: Path | None
    """The file that the stage writes last; None if no other stage reads its output."""
    before: tuple[int, int] | None = None

    @property
    def wrote(self) -> bool:
        """Whether the stage has written its manifest since the call began."""
        return self.manifest is not None and _identity(self.manifest) not in (None, self.before)


def _identity(path: Path) -> tuple[int, int] | None:
    """(inode, time) of a file, which an atomic write changes; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


@contextmanager
def attempt(folder: RunFolder, config: Config, stage: str, command: str) -> Iterator[Attempt]:
    """Holds the run folder while a stage runs; records the stage in run.json if it wrote its manifest.

    A call that was refused, failed, or found everything up to date leaves run.json unchanged and makes no folder. Of several processes of one
    training the first holds the folder and records.

    Args:
        command: the command line, so that others can repeat it.

    Raises:
        BusyError: another process holds the folder.
    """
    manifest = folder.manifest(stage)
    tried = Attempt(manifest, _identity(manifest) if manifest else None)
    if not processes().writes:
        yield tried
        return
    with folder.lock(), provenance.timed() as time:
        yield tried
        if tried.wrote:
            provenance.record(folder, config, stage, command, time)


def report(folder: RunFolder, config: Config, others: Sequence[str], *, force: bool = False) -> Path:
    """The report of a run, with further runs overlaid; those that must not be compared with it are shown without a test.

    Raises:
        ArtifactError: a run does not exist, or has nothing to report yet.
    """
    from harness.gating.baseline import known_spread
    from harness.stages.compare import compare_runs
    from harness.stages.report import run as render

    further, tested, refused = [RunFolder(name).check_exists() for name in others], [], {}
    spread = known_spread() if further else None
    for other in further:
        try:
            tested += compare_runs(folder, other, config, spread=spread)
        except (IncomparableError, ArtifactError) as error:
            refused[other.name] = error.problem
            log.info(f"{other.name} is not compared: {error}")
    return render(folder, config, others=further, tested=tested, refused=refused, force=force)
