"""Checks that a running server gives the answers that the run measured."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from harness.cli.application import RESULTS, ConfigName, RunName, Settings, SettingsText, app
from harness.cli.selection import announce, select
from harness.cli.terminal import errors, say

Address = Annotated[str, typer.Option("--server", metavar="URL|ollama:NAME", help="The running server.")]
Variant = Annotated[
    str | None, typer.Option("--variant", metavar="NAME", help="The variant whose answers are expected.")
]
Served = Annotated[str | None, typer.Option("--model", metavar="NAME", help="The served model, if there are several.")]
Count = Annotated[int, typer.Option("--questions", metavar="N", help="Held-out questions to ask.", min=1)]
Api = Annotated[
    Literal["completions", "chat"] | None,
    typer.Option(
        "--api", metavar="completions|chat", help="API that clients use; matches the run's prompts by default."
    ),
]


@app.command(rich_help_panel=RESULTS, epilog="Example: harness verify --server ollama:constitution")
def verify(
    server: Address,
    variant: Variant = None,
    questions: Count = 24,
    model: Served = None,
    api: Api = None,
    run: RunName = None,
    config: ConfigName = "tiny",
    settings: Settings = None,
    sets: SettingsText = "",
) -> None:
    """Ask a running server the run's questions as text, and name the cause of any difference; exit 1 if there is one."""
    chosen = select(run, config, None, settings, sets)
    with errors():
        from harness.stages import verify as stage

        resolved, folder = chosen.existing()
        announce("verify", chosen, resolved, folder.name)
        found = stage.run(folder, resolved, server, variant=variant, n=questions, model=model, api=api)
    same = sum(answer.same for answer in found.answers)
    say(f"agreement: {same} of {found.answered} answers are the text of {found.variant}")
    if found.mean_kl is not None:
        say(f"divergence: {found.mean_kl:.2g} nats on average, {found.max_kl:.2g} at most, {found.positions} positions")
    for culprit in found.culprits:
        say(f"{culprit.code}: {culprit.message} ({culprit.questions} of {found.n} questions); {culprit.hint}")
    say("the server answers as measured" if found.passed else "the server does not answer as measured")
    if not found.passed:
        raise typer.Exit(1)
