"""Verbs that show a run without changing it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from harness.cli.application import RESULTS, ConfigName, RunName, Settings, SettingsText, app, flag
from harness.cli.selection import announce, select
from harness.cli.terminal import errors, say, say_raw, shown


@app.command(rich_help_panel=RESULTS, epilog='Example: harness demo "What does Article 21 deal with?"')
def demo(
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="[QUESTION...]", help="Held-out questions by default.")
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

        resolved, folder = chosen.existing()
        announce("demo", chosen, resolved, folder.name)
        answers = list(stage.run(folder, resolved, questions or []))
        shown(lambda: terminal.show_answers(answers))


@app.command(rich_help_panel=RESULTS, epilog="Example: harness runs --json")
def runs(as_json: Annotated[bool, flag("--json", help="Print as JSON.")] = False) -> None:
    """List every run here: model, last stage, date, main metric, decision, gate."""
    with errors():
        from harness.report import runs as listing
        from harness.report import terminal

        found = listing.rows()
        if as_json:
            say_raw(json.dumps([asdict(row) for row in found], indent=2, ensure_ascii=False))
        elif found:
            shown(lambda: terminal.show_runs(found))
        else:
            say("no runs yet: harness run starts one")


@app.command(rich_help_panel=RESULTS, epilog="Example: harness history --open")
def history(open_: Annotated[bool, flag("--open", help="Open the page in a browser.")] = False) -> None:
    """Draw quality over time, from the committed baselines and the runs here: reports/history.html."""
    with errors():
        from harness.stages import history as stage

        path = stage.run()
    if open_:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


@app.command(rich_help_panel=RESULTS, epilog="Example: harness card --run my-run")
def card(
    run: RunName = None,
    config: ConfigName = "tiny",
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="Also upload it as that Hub model's card.")
    ] = None,
) -> None:
    """Write a model card for the Hugging Face Hub: numbers with intervals, formats, limits. Uploads nothing unless asked."""
    with errors():
        from harness import storage
        from harness.report import card as cards
        from harness.stages import report as stage

        folder = select(run, config).folder().check_exists()
        made = cards.card(stage.read(folder))
        storage.write_text(folder.card_md, str(made))
        say(f"card: {folder.card_md}")
        if push is not None:
            say(f"uploaded: {cards.push(made, push)}")
