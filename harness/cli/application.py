"""The application that verbs are added to, and the options that they share."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from harness.cli.terminal import show_log

START = "Start here"
PIPELINE = "Pipeline, in this order"
RESULTS = "Results"
MAKE_TARGETS = {"eval": "run", "all": "run", "test": "doctor", "setup": "doctor"}
"""Targets of the Makefile that are not verbs, and the closest verb."""


class Verbs(TyperGroup):
    """The verbs, with a hint for names that are make targets."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer's; for an unknown name that is a make target, the error names the verb."""
        try:
            return super().resolve_command(ctx, args)
        except Exception as error:
            if args and args[0] in MAKE_TARGETS and hasattr(error, "message"):
                hint = f"{args[0]!r} is a make target; the verb is: harness {MAKE_TARGETS[args[0]]}"
                setattr(error, "message", hint)  # noqa: B010 - Click's UsageError, which typer brings along in some versions
            raise


app = typer.Typer(
    cls=Verbs,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)


@app.callback()
def show_help_or_version(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    """Split, fine-tune, export, answer, score, compare, report and gate question answering models.

    Try it out: [bold]harness run[/bold]. With your own questions: [bold]harness run --qa FILE[/bold]. Which config fits this machine:
    [bold]harness doctor --config NAME[/bold].
    """
    show_log()
    if version:
        from harness import __version__

        typer.echo(f"qa-harness {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


def flag(*names: str, **options: Any) -> Any:
    """A switch without a value."""
    return typer.Option(*names, metavar="", **options)


RunName = Annotated[
    str | None, typer.Option("--run", metavar="NAME", help="Run folder below runs/; the config's name by default.")
]
ConfigName = Annotated[
    str, typer.Option("--config", metavar="NAME|FILE", help="tiny, llama3-8b, notebook-llama3-8b, or a YAML file.")
]
QaFile = Annotated[
    str | None, typer.Option("--qa", metavar="FILE", help="Questions and answers: JSON, JSONL, CSV, parquet or xlsx.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one config key, e.g. train.max_steps=60."),
]
SettingsText = Annotated[str, typer.Option("--sets", metavar="TEXT", hidden=True, help="Several --set in one text.")]
Force = Annotated[bool, flag("--force", help="Do it again even if nothing changed.")]
BaselineFile = Annotated[str, typer.Option("--baseline", metavar="FILE", help="The gate's baseline; commit this file.")]
