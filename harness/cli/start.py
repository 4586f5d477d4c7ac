"""Checks before a run: can this machine run the config?"""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli.application import START, ConfigName, QaFile, Settings, SettingsText, app, flag
from harness.cli.selection import select
from harness.cli.terminal import errors, say


@app.command(rich_help_panel=START, epilog="Example: harness doctor --config llama3-8b")
def doctor(
    config: ConfigName = "tiny",
    qa: QaFile = None,
    settings: Settings = None,
    measure: Annotated[
        bool, flag("--measure", help="Also forecast how long GGUF files take to answer (half a minute).")
    ] = False,
    as_json: Annotated[bool, flag("--json", help="Print the findings as JSON.")] = False,
    every: Annotated[bool, flag("--verbose", "-v", help="Also list the packages that are fine.")] = False,
    sets: SettingsText = "",
) -> None:
    """Check whether this machine can run a config, and how to fix each problem; exit 2 if it cannot."""
    with errors():
        from harness import doctor

        findings = doctor.run(select(None, config, qa, settings, sets).load(), measure=measure)
    say(doctor.as_json(findings) if as_json else "\n".join(doctor.lines(findings, every=every)))
    failed = [finding.what for finding in findings if finding.status == "fail"]
    if not as_json:
        say(f"{config} cannot run here: fix {', '.join(failed)}" if failed else f"{config} can run here")
    if failed:
        raise typer.Exit(2)
