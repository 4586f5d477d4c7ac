"""The command line: one file for each group of verbs. The only place that prints or exits.

Stages are imported inside their verbs, so that `harness --help` loads neither torch nor anything else that is slow.
"""

from __future__ import annotations

import signal
import sys

from harness.cli.application import app
from harness.cli.terminal import INTERRUPTED
from harness.errors import visible

# Importing a group of verbs registers them, in the order of the help.
from harness.cli import start, pipeline, evaluate, results, ask, marks, gate, verify  # isort: skip

__all__ = ["INTERRUPTED", "app", "ask", "evaluate", "gate", "main", "marks", "pipeline", "results", "start", "verify"]


def main() -> None:
    """Entry point of the `harness` command."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    for argument in sys.argv:
        if visible(argument) != argument:
            problem = f"error: the argument {argument!r} holds control characters; give it without them"
            print(problem, file=sys.stderr)
            sys.exit(2)
    app()


def _interrupt(*_: object) -> None:
    # A second signal ends the process at once: nothing on disk depends on a clean end.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise KeyboardInterrupt
