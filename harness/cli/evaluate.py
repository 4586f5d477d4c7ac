"""Evaluating models trained elsewhere, and exporting results as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.application import RESULTS, START, ConfigName, Force, RunName, Settings, SettingsText, app, flag
from harness.cli.selection import command, select
from harness.cli.terminal import errors, say, shown

WHERE = "A folder or hub name, adapter:FOLDER_OR_HUB, a GGUF file, http(s)://host/v1#model, or replay:FILE.jsonl."
Test = Annotated[str, typer.Option("--test", metavar="FILE", help="The questions, with reference answers.")]
Models = Annotated[list[str], typer.Option("--model", metavar="NAME=WHERE", help=WHERE)]
TrainedOn = Annotated[
    str | None, typer.Option("--trained-on", metavar="FILE", help="The models' training file, to measure leakage.")
]
Base = Annotated[
    str | None, typer.Option("--base", metavar="FOLDER|HUB", help="The base, if not the one that the adapter names.")
]
FewShot = Annotated[
    int | None,
    typer.Option(
        "--few-shot", metavar="K", help="Also evaluate the base with the K nearest training questions in its prompt."
    ),
]
FourBit = Annotated[bool, flag("--4bit", help="Load the base of adapters in 4 bits, as QLoRA trains.")]


@app.command(
    rich_help_panel=START, epilog="Example: harness evaluate --test test.jsonl --model mine=adapter:lora_model"
)
def evaluate(
    test: Test,
    model: Models,
    trained_on: TrainedOn = None,
    base: Base = None,
    four_bit: FourBit = False,
    few_shot: FewShot = None,
    run: RunName = None,
    config: ConfigName = "evaluate",
    settings: Settings = None,
    force: Force = False,
    sets: SettingsText = "",
) -> None:
    """Evaluate existing models on your test file: adapters, models, GGUF files, servers, recorded answers."""
    chosen = select(run or f"evaluate-{Path(test).stem}", config, None, settings, sets)
    with errors():
        from harness.report import terminal
        from harness.stages import evaluate as stage

        resolved = chosen.load()
        # A config named by the user says in which precision it trains the base: evaluate the adapter in the same.
        bits = four_bit or (config != "evaluate" and resolved.train.load_in_4bit)
        plan = stage.configure(
            resolved, test, model, trained_on=trained_on, base=base, load_in_4bit=bits, few_shot=few_shot
        )
        folder = chosen.folder()
        say(f"evaluate: questions {test}, config {config}, run {folder.name}")
        for note in plan.notes:
            say(note)
        comparison = stage.run(folder, plan, command=command(), force=force)
        shown(lambda: terminal.show_comparison(comparison))
        say(f"Report: {folder.report_html} (harness report --run {folder.name} --open)")


@app.command("export-answers", rich_help_panel=RESULTS, epilog="Example: harness export-answers --format xlsx")
def export_answers(
    run: RunName = None,
    config: ConfigName = "tiny",
    format_: Annotated[str, typer.Option("--format", metavar="csv|parquet|xlsx", help="File format.")] = "csv",
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="reports/RUN/answers.* by default.")] = None,
) -> None:
    """Write questions, references, and every model's answers and scores into one table."""
    with errors():
        from harness.report import tables

        folder = select(run, config).folder().check_exists()
        say(f"answers: {tables.export_answers(folder, format_, Path(out) if out else None)}")
