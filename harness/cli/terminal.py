"""Printing, and how a verb ends: one line for an error that a user can fix, and an exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import typer

from harness.errors import HarnessError, is_interrupt, visible

INTERRUPTED = 130
"""Exit code by shell convention: 128 + SIGINT."""
WITHIN_RUN = "HARNESS_WITHIN_RUN"
"""Set by `harness run` for the verb that it starts: the command to record. That verb prints no first line and does not report interrupts."""
T = TypeVar("T")


def say(message: str) -> None:
    """Prints one line from rank 0; ignores a closed pipe."""
    if os.environ.get("RANK", "0") == "0":
        shown(lambda: print(visible(message), flush=True))


class _Lines(logging.Handler):
    """Prints each message of the library as a line."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def show_log() -> None:
    """Prints what the library logs from here on."""
    logger = logging.getLogger("harness")
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines())
    logger.setLevel(logging.INFO)
    logger.propagate = False


def say_raw(text: str) -> None:
    """Prints text unescaped, for output that another program reads."""
    shown(lambda: print(text, flush=True))


def shown(show: Callable[[], T]) -> T | None:
    """Calls what prints; a reader that is gone (`harness report | head -1`) is not an error, and the work is finished without it."""
    try:
        return show()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return None


@contextmanager
def errors() -> Iterator[None]:
    """Turns the errors a user can fix into one line and an exit code; anything else is a bug and keeps its traceback."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if is_interrupt(error):
            fail("interrupted; run the same command to resume", INTERRUPTED)
        if isinstance(error, HarnessError):
            fail(str(error), error.exit_code)
        if isinstance(error, OSError) and error.errno is not None:
            place = error.filename or "the system"
            fail(f"{place}: {error.strerror}; check the path, its permissions and the free space", 2)
        raise


def fail(message: str, code: int) -> NoReturn:
    """Ends the verb with a line on stderr."""
    from harness.training.distributed import processes

    if not processes().writes:
        if code == INTERRUPTED:
            raise typer.Exit(code)
        # Rank 0 most likely reports the same error and ends this process.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(2)
    if code != INTERRUPTED or WITHIN_RUN not in os.environ:
        print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(code)
