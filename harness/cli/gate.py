"""The quality gate and its baseline."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.application import (
    RESULTS,
    BaselineFile,
    ConfigName,
    QaFile,
    RunName,
    Settings,
    SettingsText,
    app,
    flag,
)
from harness.cli.selection import select, stage
from harness.cli.terminal import errors, say

DEFAULT = "reports/baseline.json"
baseline_verbs = typer.Typer(help="Keep, show and compare the baseline of the gate.", no_args_is_help=True)
app.add_typer(baseline_verbs, name="baseline", rich_help_panel=RESULTS)


@app.command(rich_help_panel=RESULTS, epilog="Example: harness gate --strict")
def gate(
    run: RunName = None,
    config: ConfigName = "tiny",
    qa: QaFile = None,
    settings: Settings = None,
    file: BaselineFile = DEFAULT,
    strict: Annotated[
        bool, flag("--strict", help="Also fail if there are too few questions to decide (exit 4).")
    ] = False,
    must_improve: Annotated[
        bool, flag("--must-improve", help="Fail unless every variant is surely better than base.")
    ] = False,
    sets: SettingsText = "",
) -> None:
    """Fail (exit 1) if the run is worse than the baseline, by more than the margin and more than chance."""
    chosen = select(run, config, qa, settings, sets)
    with stage("gate", chosen) as (folder, resolved, _):
        from harness.report import gate_outputs
        from harness.stages import gate as stage_

        selection = shlex.join(chosen.options(folder.name))
        result = stage_.run(
            folder,
            resolved,
            baseline_file=Path(file),
            strict=strict,
            must_improve=must_improve,
            selection=selection,
        )
        for line in gate_outputs.lines(result):
            say(line)
        if os.environ.get("GITHUB_ACTIONS") == "true":
            for line in gate_outputs.workflow_commands(result):
                say(line)
    if result.exit_code:
        raise typer.Exit(result.exit_code)


@baseline_verbs.command("save")
def baseline_save(
    further: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN...]", help="The same recipe trained with other seeds.")
    ] = None,
    run: RunName = None,
    config: ConfigName = "tiny",
    qa: QaFile = None,
    settings: Settings = None,
    file: BaselineFile = DEFAULT,
    force: Annotated[bool, flag("--force", help="Replace a better baseline without asking.")] = False,
    forget_best: Annotated[
        bool, flag("--forget-best", help="Do not compare later runs with the best means saved so far.")
    ] = False,
    sets: SettingsText = "",
) -> None:
    """Make a run's scores the baseline; asks before it lowers one. Further runs measure the variance between training seeds."""

    def confirm(better: list[str]) -> bool:
        if force or not sys.stdin.isatty():
            return force
        for line in better:
            say(f"better in {file}: {line}")
        return typer.confirm("save anyway?")

    chosen = select(run, config, qa, settings, sets)
    with errors():
        from harness.gating import baseline
        from harness.storage import RunFolder

        resolved = chosen.load()
        folders = [chosen.folder(), *map(RunFolder, further or [])]
        first, *others = (baseline.snapshot(folder.check_exists(), resolved) for folder in folders)
        new = baseline.with_trainings(first, others) if others else first
        saved = baseline.save(Path(file), new, resolved, confirm=confirm, forget_best=forget_best)
        for line in baseline.describe(saved):
            say(line)
        say(f"baseline: {file}, {Path(file).stat().st_size / 1e3:,.0f} kB; commit it")


@baseline_verbs.command("show")
def baseline_show(file: BaselineFile = DEFAULT) -> None:
    """Print the baseline's contents and origin."""
    with errors():
        from harness.gating import baseline

        for line in baseline.describe(baseline.read(Path(file))):
            say(line)


@baseline_verbs.command("diff")
def baseline_diff(
    run: RunName = None,
    config: ConfigName = "tiny",
    qa: QaFile = None,
    settings: Settings = None,
    file: BaselineFile = DEFAULT,
) -> None:
    """Print what changed since the baseline, and the change of each score, without a verdict."""
    chosen = select(run, config, qa, settings)
    with errors():
        from harness.gating import baseline, differences, likeness

        resolved = chosen.load()
        old = baseline.read(Path(file))
        new = baseline.snapshot(chosen.folder().check_exists(), resolved)
        for line in likeness.changes(old, new):
            say(f"changed: {line}")
        for check in differences.difference(old, new, resolved):
            say(f"{check.variant} {check.metric}: {check.message}")
