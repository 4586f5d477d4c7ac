"""People's marks on the answers, and the judge model."""

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
    """Import marks and votes, compute the metric `human` from them, and report how far each metric agrees with people."""
    chosen = select(run, config, None, settings)
    with errors():
        from harness.report import terminal
        from harness.stages import marks as stage

        resolved, folder = chosen.existing()
        with folder.lock():
            result = stage.add(folder, resolved, [Path(file) for file in files])
        shown(lambda: terminal.show_marks(result))
        say(f"marks: {folder.marks_json}; harness report --run {folder.name} shows them")


@app.command(
    rich_help_panel=RESULTS, epilog="Example: harness judge --model http://localhost:8000/v1#my-judge --limit 100"
)
def judge(
    model: Annotated[
        str, typer.Option("--model", metavar="URL#NAME", help="A chat server's address up to /v1, and its model.")
    ],
    run: RunName = None,
    config: ConfigName = "tiny",
    settings: Settings = None,
    left: Annotated[str | None, typer.Option(metavar="VARIANT", help="The shipped variant by default.")] = None,
    right: Annotated[str | None, typer.Option(metavar="VARIANT", help="The base by default.")] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Only the first N questions that differ.", min=1)
    ] = None,
) -> None:
    """Ask a judge model which of two answers is better, in both orders; shown only with its agreement with people's marks."""
    chosen = select(run, config, None, settings)
    with errors():
        from harness.report import marks_section
        from harness.stages import judge as stage

        resolved, folder = chosen.existing()
        url, _, name = model.partition("#")
        with folder.lock():
            result = stage.run(folder, resolved, url, name or None, left=left, right=right, limit=limit)
        say(marks_section.judge(result))
        say(f"judge: {folder.judge_json}")
