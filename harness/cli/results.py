"""Looking at a run without changing it."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli.application import RESULTS, ConfigName, RunName, Settings, SettingsText, app
from harness.cli.selection import announce, select
from harness.cli.terminal import errors, shown


@app.command(rich_help_panel=RESULTS, epilog='Example: harness demo "What does Article 21 deal with?"')
def demo(
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="[QUESTION...]", help="Held-out ones if there are none.")
    ] = None,
    run: RunName = None,
    config: ConfigName = "tiny",
    settings: Settings = None,
    sets: SettingsText = "",
) -> None:
    """Ask the variants of a run and show their answers side by side; writes nothing."""
    chosen = select(run, config, None, settings, sets)
    with errors():
        from harness.report import terminal
        from harness.stages import demo as stage

        resolved, folder = chosen.load(), chosen.folder().check_exists()
        announce("demo", chosen, resolved, folder.name)
        answers = list(stage.run(folder, resolved, questions or []))
        shown(lambda: terminal.show_answers(answers))
