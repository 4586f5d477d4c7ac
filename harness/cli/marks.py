"""What people say of the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.application import RESULTS, ConfigName, RunName, Settings, app
from harness.cli.selection import select
from harness.cli.terminal import errors, say, shown

marks_verbs = typer.Typer(no_args_is_help=True, help="People's marks on the answers, saved by the report's page.")
app.add_typer(marks_verbs, name="marks", rich_help_panel=RESULTS)


@marks_verbs.command("add", epilog="Example: harness marks add ~/Downloads/tiny-marks.jsonl")
def marks_add(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="marks.jsonl, as the report saved it.")],
    run: RunName = None,
    config: ConfigName = "tiny",
    settings: Settings = None,
) -> None:
    """Check marks and votes, make the metric `human` of them, and say how far each metric agrees with people."""
    chosen = select(run, config, None, settings)
    with errors():
        from harness.report import terminal
        from harness.stages import marks as stage

        resolved, folder = chosen.load(), chosen.folder().check_exists()
        with folder.lock():
            result = stage.add(folder, resolved, [Path(file) for file in files], progress=say)
        shown(lambda: terminal.show_marks(result))
        say(f"marks: {folder.marks_json}; harness report --run {folder.name} shows them")
