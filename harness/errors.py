"""What can go wrong, and how to fix it.

Every error the library raises on purpose is one of these; only the command line prints them and exits.

    HarnessError                the user can fix it                           exit 2
    ├── ConfigError             a config file, a key or a --set
    ├── DataError               a QA file or one of its rows
    ├── ModelError              a base model, adapter or model file that cannot be used
    ├── ArtifactError           an output of an earlier stage that is missing, damaged or of another run
    ├── StorageError            no space, no permission, not a folder
    ├── BusyError               another process holds the run folder
    ├── DeviceError             the config needs a device that is not here
    ├── TrainingError           training had to stop (loss not finite)
    └── IncomparableError       two results that must not be compared         exit 3

Anything else that reaches the command line is a bug and keeps its traceback.
"""

from __future__ import annotations

import re
from pathlib import Path

ADDRESS = re.compile(r"(?<=:/)(?P<slash>/?)(?P<user>[^/?#\s'\"]+@)?(?P<place>[^\s?#'\"]*)(?P<query>\?[^\s'\"]*)?")
"""What follows the scheme of an address: user and password, host and path, parameters. In an address that was turned into a path one slash is missing."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move a terminal's cursor, reverse its text, or cannot be written at all; line breaks and tabs are not among it."""


def visible(text: str) -> str:
    """A text as a terminal may show it: control characters as escapes."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def redacted(text: str) -> str:
    """A text without what may be a secret in an address."""
    return ADDRESS.sub(
        lambda f: f"{f['slash']}{'***@' if f['user'] else ''}{f['place']}{'?***' if f['query'] else ''}", text
    )


def is_interrupt(error: BaseException | None) -> bool:
    """Whether an error is an interrupt, or came up while one was on its way out.

    Clean-up that was itself interrupted raises its own errors: shutil.rmtree of Python 3.11 closes a descriptor twice.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


class HarnessError(Exception):
    """One line that says what is wrong, and one clause that says how to fix it.

    Args:
        problem: what is wrong, naming the key, row or value.
        hint: what the user can do about it, as an imperative clause.
        file: the file it is about, put in front.
        row: the row (counted from 1) or line of that file.
    """

    exit_code = 2

    def __init__(self, problem: str, hint: str = "", *, file: Path | str | None = None, row: int | None = None):
        self.problem, self.hint, self.file, self.row = problem, hint, file, row
        where = "" if file is None else f"{file}: " if row is None else f"{file}, row {row}: "
        # Problems quote file contents at times; an error stays one line, whatever they hold.
        line = f"{where}{problem}; {hint}" if hint else f"{where}{problem}"
        super().__init__(visible(redacted(" ".join(line.split()))))


class ConfigError(HarnessError):
    """A config file, key, value or --set that does not fit the schema."""


class DataError(HarnessError):
    """A QA file that cannot be read, or a row that cannot be used."""


class ModelError(HarnessError):
    """A base model, adapter or model file that cannot be used."""


class ArtifactError(HarnessError):
    """An output of an earlier stage that is missing, damaged, or was not written by this run."""


class StorageError(HarnessError):
    """No space, no permission, or a path that is not what it should be."""


class BusyError(HarnessError):
    """Another process holds the run folder."""


class DeviceError(HarnessError):
    """The config needs a device that this machine does not have."""


class TrainingError(HarnessError):
    """Training had to stop; the last good checkpoint is kept."""


class IncomparableError(HarnessError):
    """Two results differ in split, prompts, metric signatures or generation parameters."""

    exit_code = 3
