"""The command line: one verb per stage. The only place that prints or exits.

Stages are imported inside their verbs, so that `harness --help` loads neither torch nor anything else that is slow.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from harness.errors import HarnessError, is_interrupt, visible

if TYPE_CHECKING:
    from harness.config import Config
    from harness.storage import RunFolder

app = typer.Typer(
    help="Split, fine-tune, export, answer, score, compare, report and gate question answering models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
baseline_verbs = typer.Typer(help="Keep, show and compare the baseline of the gate.", no_args_is_help=True)
app.add_typer(baseline_verbs, name="baseline")

RunName = Annotated[
    str | None, typer.Option("--run", metavar="NAME", help="Run folder below runs/; the config's name by default.")
]
ConfigName = Annotated[
    str, typer.Option("--config", metavar="NAME|FILE", help="tiny, llama3-8b, notebook-llama3-8b, or a YAML file.")
]
QaFile = Annotated[str | None, typer.Option("--qa", metavar="FILE", help="Questions and answers: JSON, JSONL or CSV.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one config key, e.g. train.max_steps=60."),
]
Force = Annotated[bool, typer.Option("--force", help="Do it again even if nothing changed.")]
BaselineFile = Annotated[
    str, typer.Option("--baseline", metavar="FILE", help="What the gate compares with; meant to be committed.")
]


INTERRUPTED = 130
"""Exit code, as shells have it: 128 and SIGINT's number."""


@app.command()
def split(
    run: RunName = None,
    config: ConfigName = "tiny",
    qa: QaFile = None,
    settings: Settings = None,
    force: Force = False,
    heldout: Annotated[str | None, typer.Option(metavar="SHARE|COUNT", help="Rows to hold out: 0.1 or 200.")] = None,
    dev: Annotated[str | None, typer.Option(metavar="SHARE|COUNT", help="Rows that training may choose by.")] = None,
    test: Annotated[str | None, typer.Option(metavar="FILE", help="Hold out exactly these questions.")] = None,
    trained_on: Annotated[
        str | None, typer.Option(metavar="FILE", help="With --test: what a model was trained on elsewhere.")
    ] = None,
    question_column: Annotated[str | None, typer.Option(metavar="NAME", help="The question's column.")] = None,
    answer_column: Annotated[str | None, typer.Option(metavar="NAME", help="The answer's column.")] = None,
    context_column: Annotated[str | None, typer.Option(metavar="NAME", help="The column put before it.")] = None,
) -> None:
    """Split a QA file into train, dev and held-out questions, near-duplicates on one side."""
    named = {
        "heldout": heldout,
        "dev": dev,
        "test": _quoted(test),
        "trained_on": _quoted(trained_on),
        "columns.question": _quoted(question_column),
        "columns.answer": _quoted(answer_column),
        "columns.context": _quoted(context_column),
    }
    overrides = [*(settings or []), *(f"data.{key}={value}" for key, value in named.items() if value)]
    with _stage("split", run, config, qa, overrides) as (folder, resolved):
        from harness.stages import split as stage

        stage.run(folder, resolved, progress=_say, force=force)


@app.command()
def train(
    run: RunName = None, config: ConfigName = "tiny", qa: QaFile = None, settings: Settings = None, force: Force = False
) -> None:
    """Fine-tune the base model with QLoRA; goes on from the last checkpoint."""
    with _stage("train", run, config, qa, settings) as (folder, resolved):
        from harness.stages import train as stage

        manifest = stage.run(folder, resolved, progress=_say, force=force)
        _say(f"final loss {manifest.final_loss:.3f}, {manifest.epochs:.2f} epochs, {manifest.seconds:.0f} s")


@app.command()
def export(
    run: RunName = None, config: ConfigName = "tiny", qa: QaFile = None, settings: Settings = None, force: Force = False
) -> None:
    """Write merged 16-bit, merged 4-bit and GGUF models; each is opened again and checked."""
    with _stage("export", run, config, qa, settings) as (folder, resolved):
        from harness.stages import export as stage

        for artifact in stage.run(folder, resolved, progress=_say, force=force).artifacts.values():
            _say(
                f"{artifact.path}: {artifact.size_bytes / 1e6:,.1f} MB, {artifact.tensors} tensors, {artifact.seconds:.1f} s"
            )


@app.command()
def predict(
    run: RunName = None,
    config: ConfigName = "tiny",
    qa: QaFile = None,
    settings: Settings = None,
    force: Force = False,
    variant: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only these variants.")] = None,
) -> None:
    """Have every variant answer the held-out questions, greedily, from the same token ids."""
    with _stage("predict", run, config, qa, settings) as (folder, resolved):
        from harness.stages import predict as stage

        stage.run(folder, resolved, progress=_say, force=force, only=variant or None)


@app.command()
def score(
    run: RunName = None, config: ConfigName = "tiny", qa: QaFile = None, settings: Settings = None, force: Force = False
) -> None:
    """Score the answers; never generates."""
    with _stage("score", run, config, qa, settings) as (folder, resolved):
        from harness.stages import score as stage

        stage.run(folder, resolved, progress=_say, force=force)


@app.command()
def compare(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN_A RUN_B]", help="Two runs to compare with each other.")
    ] = None,
    run: RunName = None,
    config: ConfigName = "tiny",
    qa: QaFile = None,
    settings: Settings = None,
    force: Force = False,
) -> None:
    """Compare the variants of a run, or two runs, question by question."""
    from harness.report import terminal

    if runs and len(runs) == 2:
        with _errors():
            from harness.config import load
            from harness.stages import compare as stage
            from harness.storage import RunFolder

            terminal.show_pairs(stage.compare_runs(RunFolder(runs[0]), RunFolder(runs[1]), load(config, settings)))
        return
    if runs:
        _fail("give two runs, or none and --run", 2)
    with _stage("compare", run, config, qa, settings) as (folder, resolved):
        from harness.stages import compare as stage
        from harness.training import wandb_log

        comparison = stage.run(folder, resolved, progress=_say, force=force)
        terminal.show_comparison(comparison)
        if done := wandb_log.log_evaluation(folder, resolved, comparison):
            _say(done)


@app.command()
def report(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN...]", help="Further runs to overlay.")] = None,
    run: RunName = None,
    config: ConfigName = "tiny",
    qa: QaFile = None,
    settings: Settings = None,
    force: Force = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Render report.html and report.md from what the other stages wrote."""
    first, *others = runs or [run]
    with _stage("report", first, config, qa, settings) as (folder, resolved):
        from harness.errors import ArtifactError, IncomparableError
        from harness.stages import report as stage
        from harness.stages.compare import compare_runs
        from harness.storage import RunFolder

        further, tested, refused = [RunFolder(r) for r in others if r], [], {}
        for other in further:
            try:
                tested += compare_runs(folder, other, resolved)
            except (
                IncomparableError,
                ArtifactError,
            ) as error:  # their curves can be laid over one another all the same
                refused[other.name] = error.problem
                _say(f"{other.name} is not compared: {error}")
        path = stage.run(folder, resolved, others=further, tested=tested, refused=refused, progress=_say, force=force)
        _say(f"report: {path}")
    if open_:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


@app.command()
def gate(
    run: RunName = None,
    config: ConfigName = "tiny",
    qa: QaFile = None,
    settings: Settings = None,
    file: BaselineFile = "reports/baseline.json",
    strict: Annotated[bool, typer.Option("--strict", help="Too few questions to tell fails as well (exit 4).")] = False,
) -> None:
    """Fail (exit 1) if the run has become worse than the baseline, by more than the margin and more than chance."""
    import os
    import shlex
    from pathlib import Path

    with _stage("gate", run, config, qa, settings) as (folder, resolved):
        from harness.report import gate_outputs
        from harness.stages import gate as stage

        chosen = [
            "--run",
            folder.name,
            "--config",
            config,
            *(["--qa", qa] if qa else []),
            *(a for s in settings or [] for a in ("--set", s)),
        ]
        result = stage.run(
            folder, resolved, baseline_file=Path(file), strict=strict, selection=shlex.join(chosen), progress=_say
        )
        for line in gate_outputs.lines(result):
            _say(line)
        if os.environ.get("GITHUB_ACTIONS") == "true":
            for line in gate_outputs.workflow_commands(result):
                _say(line)
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
    file: BaselineFile = "reports/baseline.json",
    force: Annotated[bool, typer.Option("--force", help="Save over a better one without asking.")] = False,
) -> None:
    """Make a run's scores the baseline; asks before it lowers one. Further runs tell how much of a difference is a training's luck."""
    from pathlib import Path

    def confirm(better: list[str]) -> bool:
        if force or not sys.stdin.isatty():
            return force
        for line in better:
            _say(f"better in {file}: {line}")
        return typer.confirm("save all the same?")

    with _errors():
        from harness.config import load
        from harness.gating import baseline
        from harness.storage import RunFolder

        resolved = load(config, settings, qa=qa)
        first, *others = (
            baseline.snapshot(RunFolder(name), resolved) for name in [run or Path(config).stem, *(further or [])]
        )
        new = baseline.with_trainings(first, others) if others else first
        saved = baseline.save(Path(file), new, resolved, confirm=confirm)
        for line in baseline.describe(saved):
            _say(line)
        _say(f"baseline: {file}, {Path(file).stat().st_size / 1e3:,.0f} kB; commit it")


@baseline_verbs.command("show")
def baseline_show(file: BaselineFile = "reports/baseline.json") -> None:
    """Print what the baseline holds and where it comes from."""
    with _errors():
        from pathlib import Path

        from harness.gating import baseline

        for line in baseline.describe(baseline.read(Path(file))):
            _say(line)


@baseline_verbs.command("diff")
def baseline_diff(
    run: RunName = None,
    config: ConfigName = "tiny",
    qa: QaFile = None,
    settings: Settings = None,
    file: BaselineFile = "reports/baseline.json",
) -> None:
    """Print what changed since the baseline, and what it did to each score; decides nothing."""
    with _errors():
        from pathlib import Path

        from harness.config import load
        from harness.gating import baseline
        from harness.stages import gate as stage
        from harness.storage import RunFolder

        resolved = load(config, settings, qa=qa)
        old = baseline.read(Path(file))
        new = baseline.snapshot(RunFolder(run or Path(config).stem), resolved)
        for line in baseline.changes(old, new):
            _say(f"changed: {line}")
        for check in stage.difference(old, new, resolved):
            _say(f"{check.variant} {check.metric}: {check.message}")


@app.command()
def demo(
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="[QUESTION...]", help="Held-out ones if there are none.")
    ] = None,
    run: RunName = None,
    config: ConfigName = "tiny",
    settings: Settings = None,
) -> None:
    """Ask the variants of a run and show their answers side by side."""
    with _stage("demo", run, config, None, settings) as (folder, resolved):
        from harness.report import terminal
        from harness.stages import demo as stage

        terminal.show_answers(list(stage.run(folder, resolved, questions or [])))


@app.command()
def doctor(
    config: ConfigName = "tiny",
    qa: QaFile = None,
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Tell whether this machine can run a config, and how to hint what is missing; exit 2 if it cannot."""
    with _errors():
        from harness import doctor
        from harness.config import load

        findings = doctor.run(load(config, settings, qa=qa))
    _say(doctor.as_json(findings) if as_json else "\n".join(map(str, findings)))
    failed = [finding.what for finding in findings if finding.status == "fail"]
    if not as_json:
        _say(f"{config} cannot run here: hint {', '.join(failed)}" if failed else f"{config} can run here")
    if failed:
        raise typer.Exit(2)


# ---------------------------------------------------------------------------------------------------------- plumbing


def main() -> None:
    """Entry point of the `harness` command."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    for argument in sys.argv:
        if visible(argument) != argument:
            print(
                f"error: the argument {argument!r} holds characters that are no text; give it without them",
                file=sys.stderr,
            )
            sys.exit(2)
    app()


def _interrupt(*_: object) -> None:
    # A second one ends the process at once: nothing that is on disk depends on a clean end.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise KeyboardInterrupt


@contextmanager
def _stage(
    verb: str, run: str | None, config: str, qa: str | None, settings: list[str] | None
) -> Iterator[tuple[RunFolder, Config]]:
    """Loads the config, says what was chosen, holds the run folder, and records how the stage ended."""
    with _errors():
        from pathlib import Path

        from harness import provenance
        from harness.config import load
        from harness.models.base_model import expected_device
        from harness.storage import RunFolder
        from harness.training.distributed import processes

        resolved = load(config, settings, qa=qa)
        folder = RunFolder(run or Path(config).stem)
        _say(
            f"{verb}: config {config}, questions {resolved.data.qa}, model {resolved.model.path}, device {expected_device(resolved.device)}, run {folder.name}"
        )
        if not processes().writes:
            yield folder, resolved
            return
        with folder.lock(), provenance.recorded(folder, resolved, verb, sys.argv[1:]):
            yield folder, resolved


@contextmanager
def _errors() -> Iterator[None]:
    """Turns the errors a user can hint into one line and an exit code; anything else is a bug and keeps its traceback."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if is_interrupt(error):
            _fail("interrupted; the same command goes on where it stopped", INTERRUPTED)
        if isinstance(error, HarnessError):
            _fail(str(error), error.exit_code)
        if isinstance(error, OSError) and error.errno is not None:
            _fail(
                f"{error.filename or 'the system'}: {error.strerror}; check the path, its permissions and the free space",
                2,
            )
        raise


def _fail(message: str, code: int) -> None:
    from harness.training.distributed import processes

    if not processes().writes:
        if code == INTERRUPTED:
            raise typer.Exit(code)
        # The writer most likely says the same, upon which this process is ended.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(2)
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(code)


def _quoted(text: str | None) -> str | None:
    """A text as YAML has it, whatever it is made of."""
    import json

    return None if text is None else json.dumps(text, ensure_ascii=False)


def _say(message: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # one of several processes of a training speaks
        print(visible(message), flush=True)
