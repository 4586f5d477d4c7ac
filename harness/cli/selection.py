"""What a verb works on: the config, the run folder, and the first line that says what was chosen."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.cli.terminal import WITHIN_RUN, errors, say

if TYPE_CHECKING:
    from harness.config import Config
    from harness.stages.pipeline import Attempt
    from harness.storage import RunFolder


ASKING = ("run", "split", "train", "predict")
"""Verbs whose first line describes the prompt."""


@dataclass(frozen=True)
class Selection:
    """The options that choose a run and its config."""

    run: str | None
    config: str
    qa: str | None = None
    settings: list[str] = field(default_factory=list)

    def load(self) -> Config:
        """The config; ConfigError if it does not fit the schema."""
        from harness.config import load
        from harness.config.loading import renamed

        if new := renamed(self.config):
            say(f"note: config {self.config} is now named {new}")
        return load(self.config, self.settings, qa=self.qa)

    def folder(self) -> RunFolder:
        """The run folder, which need not exist; ConfigError if its name cannot be used."""
        from harness.config.loading import run_name
        from harness.storage import RunFolder

        return RunFolder(self.run or run_name(self.config))

    def existing(self) -> tuple[Config, RunFolder]:
        """The config and the folder of a run that exists; ConfigError or ArtifactError otherwise."""
        return self.load(), self.folder().check_exists()

    def options(self, run: str) -> list[str]:
        """The same as arguments of a command."""
        chosen = ["--run", run, "--config", self.config, *(["--qa", self.qa] if self.qa else [])]
        return [*chosen, *(part for setting in self.settings for part in ("--set", setting))]


def select(
    run: str | None, config: str, qa: str | None = None, settings: list[str] | None = None, text: str = ""
) -> Selection:
    """A `Selection` from the options; `text` holds several settings, as make passes them."""
    from harness.config.loading import split_settings

    return Selection(run, config, qa, [*(settings or []), *split_settings(text)])


def announce(verb: str, chosen: Selection, config: Config, run: str) -> None:
    """Prints the first line: every choice, explicit or default."""
    from harness.models.base_model import expected_device

    if WITHIN_RUN not in os.environ:
        device = expected_device(config.device)
        files = [config.data.training_file, config.data.test and f"test file {config.data.test}"]
        asked = ", ".join(filter(None, files))
        how = f", prompt: {_prompt(config)}" if verb in ASKING else ""
        say(
            f"{verb}: config {chosen.config}, questions {asked}, model {config.model.path}, device {device}, run {run}{how}"
        )
        if verb in ("run", "split", "train") and _is_foreign(config):
            say(
                f"note: {config.model.path} is the embedded model, which knows only the Constitution of India: for answers on your "
                "subject add --config smollm2-135m (a CPU will do), or llama3-8b and its like (a GPU)"
            )


def _is_foreign(config: Config) -> bool:
    """Whether the embedded model gets questions other than the embedded ones."""
    from harness.config import PROJECT, Data, Model

    files = [file for file in (config.data.training_file, config.data.test) if file is not None]
    embedded_model, embedded = (os.path.abspath(PROJECT / str(each)) for each in (Model().path, Data().qa))
    return os.path.abspath(config.model.path) == embedded_model and any(os.path.abspath(f) != embedded for f in files)


def _prompt(config: Config) -> str:
    """The form of the prompt, and the reason for it."""
    from harness.errors import HarnessError
    from harness.models import base_model
    from harness.prompt import describe

    try:
        folder = base_model.cached(config.model)
    except HarnessError:  # reported by the stage that needs the model
        folder = None
    return describe(config.prompt, folder)


def command() -> str:
    """The command line as it is recorded."""
    return os.environ.get(WITHIN_RUN) or shlex.join(["harness", *sys.argv[1:]])


@contextmanager
def stage(verb: str, chosen: Selection, *, first: bool = False) -> Iterator[tuple[RunFolder, Config, Attempt]]:
    """Loads the config, prints the first line, locks the run folder, and records what the stage wrote.

    Args:
        first: the verb may start a run; any other needs one that exists.
    """
    with errors():
        from harness.stages import pipeline

        resolved, folder = chosen.load(), chosen.folder()
        if not first:
            folder.check_exists()
        announce(verb, chosen, resolved, folder.name)
        with pipeline.attempt(folder, resolved, verb, command()) as attempt:
            yield folder, resolved, attempt
