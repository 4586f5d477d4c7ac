"""The stages, one verb each, and `run`, which runs all of them in order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.application import (
    PIPELINE,
    START,
    ConfigName,
    Force,
    QaFile,
    RunName,
    Settings,
    SettingsText,
    app,
    flag,
)
from harness.cli.selection import Selection, announce, command, select, stage
from harness.cli.terminal import WITHIN_RUN, errors, fail, say, say_raw, shown

if TYPE_CHECKING:
    from harness.config import Config
    from harness.records import Comparison
    from harness.storage import RunFolder

Heldout = Annotated[str | None, typer.Option(metavar="SHARE|COUNT", help="Rows to hold out: 0.1 or 200.")]
Variants = Annotated[list[str] | None, typer.Option("--variant", metavar="NAME", help="Only these variants.")]
Gpus = Annotated[int, typer.Option(metavar="N", help="Train on N GPUs of this host; the steps stay the same.", min=0)]
SECONDS_TO_END = 30
"""Time for interrupted training to save its state."""


@app.command(rich_help_panel=START, epilog="Example: harness run --qa my_questions.csv --set train.max_steps=60")
def run(
    until: Annotated[
        str, typer.Option(metavar="STAGE", help="Stop after split, train, export, predict, score or compare.")
    ] = "report",
    run: RunName = None,
    config: ConfigName = "tiny",
    qa: QaFile = None,
    settings: Settings = None,
    force: Force = False,
    gpus: Gpus = 0,
    seeds: Annotated[
        int, typer.Option("--seeds", min=0, max=100, help="Train with N seeds and compare their mean.")
    ] = 0,
    sets: SettingsText = "",
) -> None:
    """Run all stages: split, train, export, predict, score, compare, report. Skips stages that are up to date."""
    chosen = select(run, config, qa, settings, sets)
    with errors():
        from harness.stages import pipeline

        resolved, folder = chosen.load(), chosen.folder()
        if seeds:
            listed = [resolved.train.seed + at for at in range(seeds)]
            chosen = replace(chosen, settings=[*chosen.settings, f"train.seeds={listed}"])
            resolved = chosen.load()
        announce("run", chosen, resolved, folder.name)
        for name in pipeline.until(until):
            if name == "compare":
                _further_seeds(folder, resolved, chosen, force, gpus)
            # The decision ends the whole output: it is printed once.
            _stage_of_run(name, folder, resolved, chosen, force, gpus, decision=until == "compare")
        if until == "split":
            _show_first_prompt(folder, resolved)
        if until == "report":
            _show_end(folder, resolved)


def _show_end(folder: RunFolder, resolved: Config) -> None:
    """The last lines: the decision, the file to ship, and how to open the report; the page goes to the tracker."""
    from harness import storage
    from harness.records import Comparison
    from harness.report import terminal
    from harness.training import evaluation_log

    comparison = storage.read_record(folder.comparison_json, Comparison)
    chosen = comparison.shipping.variant if comparison.shipping else None
    place = (folder.adapter if chosen == "adapter" else folder.artifact(chosen)) if chosen else None
    file = str(place) if place and place.exists() else ""
    page = f"{folder.report_html} (harness report --run {folder.name} --open)"
    if done := evaluation_log.log_page(folder, resolved, comparison):
        say(done)
    shown(lambda: terminal.show_decision(comparison, file=file, report=page))


def _stage_of_run(
    name: str, folder: RunFolder, resolved: Config, chosen: Selection, force: bool, gpus: int, *, decision: bool = False
) -> None:
    from harness.stages import pipeline

    if name == "train":
        _train_alone(folder, resolved, chosen, force, gpus)
        return
    with pipeline.attempt(folder, resolved, name, command()) as attempt:
        result = pipeline.run(name, folder, resolved, force=force)
    if name == "compare":
        _show_comparison(folder, resolved, result, log=attempt.wrote, decision=decision)


def _further_seeds(folder: RunFolder, resolved: Config, chosen: Selection, force: bool, gpus: int) -> None:
    """Trains and scores the recipe with the further seeds of the config, each in a separate run, and lists them for compare."""
    from harness.stages import pipeline
    from harness.storage import RunFolder
    from harness.variants import UNTUNED

    further = pipeline.runs_of_seeds(folder, resolved)
    variants = [name for name in resolved.predict.variants if name not in UNTUNED]
    for seed, name in further.items():
        settings = [f"train.seed={seed}", "train.seeds=[]", f"predict.variants={json.dumps(variants)}"]
        settings += ["predict.fidelity_questions=0"]
        one = replace(chosen, run=name, settings=[*chosen.settings, *settings])
        config, other = one.load(), RunFolder(name, folder.root)
        say(f"run: seed {seed}, run {name}")
        for verb in pipeline.until("score"):
            _stage_of_run(verb, other, config, one, force, gpus)
    pipeline.list_seeds(folder, resolved, further)


def _train_alone(folder: RunFolder, resolved: Config, chosen: Selection, force: bool, gpus: int) -> None:
    """The verb `train` in a separate process: training needs it (see `harness.stages.train`), and its memory is free afterwards."""
    from harness.stages import train as stage

    if not force and stage.current(folder, resolved):
        say("train: unchanged")
        return
    start = ["-m", "harness.training.launch", str(gpus)] if gpus else ["-m", "harness"]
    arguments = ["train", *chosen.options(folder.name), *(["--force"] if force else [])]
    environment = {**os.environ, WITHIN_RUN: command()}
    child = subprocess.Popen([sys.executable, *start, *arguments], env=environment)
    try:
        code = child.wait()
    except BaseException:
        # Ctrl-C reaches both processes; any other signal only this one.
        try:
            child.wait(SECONDS_TO_END if sys.stdin.isatty() else 1)
        except subprocess.TimeoutExpired:
            child.terminate()
            child.wait()
        raise
    if code:
        raise typer.Exit(code if code > 0 else 128 - code)


@app.command(rich_help_panel=PIPELINE, epilog="Example: harness split --qa my_questions.csv --heldout 0.2")
def split(
    run: RunName = None,
    config: ConfigName = "tiny",
    qa: QaFile = None,
    settings: Settings = None,
    force: Force = False,
    heldout: Heldout = None,
    dev: Annotated[
        str | None, typer.Option(metavar="SHARE|COUNT", help="Rows for choosing a recipe: 0.1, 200, or 0.")
    ] = None,
    test: Annotated[str | None, typer.Option(metavar="FILE", help="Hold out exactly these questions.")] = None,
    question_column: Annotated[str | None, typer.Option(metavar="NAME", help="The question's column.")] = None,
    answer_column: Annotated[str | None, typer.Option(metavar="NAME", help="The answer's column.")] = None,
    context_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column with a passage to put before the question.")
    ] = None,
) -> None:
    """1. Split a QA file into training, dev and held-out questions, near-duplicates on one side."""
    columns = {"question": question_column, "answer": answer_column, "context": context_column}
    # JSON strings, so that YAML reads a name like `1` or `yes` as text.
    named = [f"data.columns.{key}={json.dumps(name)}" for key, name in columns.items() if name is not None]
    named += [f"data.test={json.dumps(test)}"] if test else []
    named += [f"data.{key}={size}" for key, size in (("heldout", heldout), ("dev", dev)) if size]
    overrides = [*(settings or []), *named]
    with stage("split", select(run, config, qa, overrides), first=True) as (folder, resolved, _):
        from harness.stages import split as stage_

        stage_.run(folder, resolved, force=force)
        _show_first_prompt(folder, resolved)


def _show_first_prompt(folder: RunFolder, resolved: Config) -> None:
    from harness.prediction import first_prompt

    if text := first_prompt.show(folder, resolved):
        say(f"split: {text}")


@app.command(rich_help_panel=PIPELINE, epilog="Example: harness train --config llama3-8b --set train.epochs=2")
def train(
    run: RunName = None, config: ConfigName = "tiny", qa: QaFile = None, settings: Settings = None, force: Force = False
) -> None:
    """2. Fine-tune the base model with QLoRA; resumes from the last checkpoint."""
    with stage("train", select(run, config, qa, settings)) as (folder, resolved, _):
        from harness.stages import train as stage_

        manifest = stage_.run(folder, resolved, force=force)
        loss = "" if manifest.final_loss is None else f"final loss {manifest.final_loss:.3f}, "
        say(f"{loss}{manifest.epochs:.2f} epochs, {manifest.seconds:.0f} s")


@app.command(rich_help_panel=PIPELINE, epilog="Example: harness export --set export.formats=[merged_16bit,gguf_q4_k_m]")
def export(
    run: RunName = None, config: ConfigName = "tiny", qa: QaFile = None, settings: Settings = None, force: Force = False
) -> None:
    """3. Write merged 16-bit, merged 4-bit and GGUF models; reload and check each file."""
    with stage("export", select(run, config, qa, settings)) as (folder, resolved, _):
        from harness.stages import export as stage_

        for artifact in stage_.run(folder, resolved, force=force).artifacts.values():
            size = f"{artifact.size_bytes / 1e6:,.1f} MB, {artifact.tensors} tensors, {artifact.seconds:.1f} s"
            say(f"{artifact.path}: {size}")


@app.command(rich_help_panel=PIPELINE, epilog="Example: harness predict --variant adapter --variant gguf_q4_k_m")
def predict(
    run: RunName = None,
    config: ConfigName = "tiny",
    qa: QaFile = None,
    settings: Settings = None,
    force: Force = False,
    variant: Variants = None,
) -> None:
    """4. Have every variant answer the held-out questions, greedily, from the same token ids."""
    with stage("predict", select(run, config, qa, settings)) as (folder, resolved, _):
        from harness.stages import predict as stage_

        stage_.run(folder, resolved, force=force, only=variant or None)


@app.command(rich_help_panel=PIPELINE, epilog="Example: harness score --set score.metrics=[token_f1,rougeL]")
def score(
    run: RunName = None, config: ConfigName = "tiny", qa: QaFile = None, settings: Settings = None, force: Force = False
) -> None:
    """5. Score the stored answers; generates nothing."""
    with stage("score", select(run, config, qa, settings)) as (folder, resolved, _):
        from harness.stages import score as stage_

        stage_.run(folder, resolved, force=force)


@app.command(rich_help_panel=PIPELINE, epilog="Example: harness compare my-run another-run")
def compare(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN_A RUN_B]", help="Two runs to compare with each other.")
    ] = None,
    run: RunName = None,
    config: ConfigName = "tiny",
    qa: QaFile = None,
    settings: Settings = None,
    force: Force = False,
    every: Annotated[bool, flag("--all", help="Two runs: show every metric, not only the primary one.")] = False,
    as_json: Annotated[bool, flag("--json", help="Two runs: print as JSON.")] = False,
    markdown: Annotated[bool, flag("--markdown", help="Two runs: print as Markdown.")] = False,
) -> None:
    """6. Compare the variants of a run, or two runs question by question: B against A."""
    chosen = select(run, config, qa, settings)
    if runs and len(runs) == 2:
        with errors():
            _compare_two(runs[0], runs[1], chosen.load(), every=every, as_json=as_json, markdown=markdown)
        return
    if runs:
        fail("give two runs, or none and --run", 2)
    if every or as_json or markdown:
        fail("--all, --json and --markdown are for two runs: harness compare RUN_A RUN_B", 2)
    with stage("compare", chosen) as (folder, resolved, attempt):
        from harness.stages import compare as stage_

        comparison = stage_.run(folder, resolved, force=force)
        _show_comparison(folder, resolved, comparison, log=attempt.wrote)


def _compare_two(first: str, second: str, config: Config, *, every: bool, as_json: bool, markdown: bool) -> None:
    from harness.gating import baseline
    from harness.report import terminal, two_runs
    from harness.report.page import plain
    from harness.stages import compare as stage_
    from harness.storage import RunFolder

    a, b = (RunFolder(name).check_exists() for name in (first, second))
    pairs = stage_.compare_runs(b, a, config, spread=baseline.known_spread())
    if as_json:
        say_raw(two_runs.as_json(pairs, b.name, a.name))
        return
    chosen = pairs if every else two_runs.main_pairs(pairs)
    if markdown:
        say_raw(two_runs.as_markdown(chosen, b.name, a.name, plain))
        return
    say(two_runs.summary(pairs, b.name, a.name))
    shown(lambda: terminal.show_pairs(chosen))


def _show_comparison(
    folder: RunFolder, resolved: Config, comparison: Comparison, *, log: bool, decision: bool = True
) -> None:
    from harness.report import terminal
    from harness.training import evaluation_log

    shown(lambda: terminal.show_comparison(comparison, decision=decision))
    if log and (done := evaluation_log.log_evaluation(folder, resolved, comparison)):
        say(done)


@app.command(rich_help_panel=PIPELINE, epilog="Example: harness report --open")
def report(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN...]", help="Further runs to overlay.")] = None,
    run: RunName = None,
    config: ConfigName = "tiny",
    qa: QaFile = None,
    settings: Settings = None,
    force: Force = False,
    open_: Annotated[bool, flag("--open", help="Open the page in a browser.")] = False,
    title: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Printed above the report; kept until changed.")
    ] = None,
    note: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A few sentences below the title; kept until changed.")
    ] = None,
    sets: SettingsText = "",
) -> None:
    """7. Render report.html and report.md from what the other stages wrote."""
    first, *others = runs or [run]
    with stage("report", select(first, config, qa, settings, sets)) as (folder, resolved, _):
        from harness.stages import pipeline
        from harness.stages.report import set_title

        set_title(folder, title, note)
        path = pipeline.report(folder, resolved, [name for name in others if name], force=force)
        if others:
            say(f"report: {path}")
        else:
            _show_end(folder, resolved)
    if open_:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
