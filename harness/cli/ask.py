"""Asking the variants of a run: in the terminal, on a web page, and as a folder for Hugging Face Spaces."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.application import START, Settings, SettingsText, app, flag
from harness.cli.terminal import errors, say, shown
from harness.errors import visible

if TYPE_CHECKING:
    from harness.config import Config
    from harness.storage import RunFolder
    from harness.web.conversation import Conversation
    from harness.web.session import Session

MOST_SIDE_BY_SIDE = 2
HELP = "Ctrl-C ends an answer, Ctrl-D the program; /new begins a new conversation"
Run = Annotated[str | None, typer.Option("--run", metavar="NAME", help="Run folder below runs/; tiny by default.")]
RunConfig = Annotated[
    str | None, typer.Option("--config", metavar="NAME|FILE", help="The run's recorded config by default.")
]
Memory = Annotated[
    float, typer.Option("--memory", metavar="GIB", min=0, help="Memory for loaded models; 0: 60% of free memory.")
]


def open_session(
    run: str | None, config: str | None, settings: list[str], variants: list[str], memory: float
) -> tuple[RunFolder, Config, Session]:
    """The run, its config, and a session with its variants."""
    from harness.config.loading import run_name
    from harness.storage import RunFolder
    from harness.web import session

    folder = RunFolder(run or run_name(config or "tiny")).check_exists()
    resolved = session.config_of(folder, config, settings)
    return folder, resolved, session.open_run(folder, resolved, only=variants, memory=int(memory * 2**30))


@app.command(
    rich_help_panel=START, epilog='Example: harness chat --variant gguf_q8_0 "What does Article 21 deal with?"'
)
def chat(
    question: Annotated[str | None, typer.Argument(metavar="[QUESTION]", help="Ask one question and exit.")] = None,
    variant: Annotated[
        list[str] | None, typer.Option("--variant", metavar="NAME", help="One variant, or two side by side.")
    ] = None,
    run: Run = None,
    config: RunConfig = None,
    settings: Settings = None,
    memory: Memory = 0,
    sets: SettingsText = "",
) -> None:
    """Ask one variant, or two side by side, and stream the answers; also reads questions from a pipe."""
    with errors():
        from harness.config.loading import split_settings
        from harness.errors import ConfigError
        from harness.variants import tuned
        from harness.web.conversation import Conversation

        names = list(dict.fromkeys(variant or []))
        if len(names) > MOST_SIDE_BY_SIDE:
            raise ConfigError(f"{len(names)} variants do not fit side by side", "name one or two, or use harness web")
        folder, _, session = open_session(run, config, [*(settings or []), *split_settings(sets)], names, memory)
        names = names or [tuned(session.names) or session.names[0]]
        conversation = Conversation(session, names)
        try:
            _talk(conversation, folder.name, question)
        finally:
            session.close()


def _talk(conversation: Conversation, run: str, question: str | None) -> None:
    """Asks one question, the questions from a pipe, or those typed at the prompt."""
    with _Interrupts() as interrupts:
        if question is not None or not sys.stdin.isatty():
            failed = False
            for asked in [question] if question is not None else sys.stdin:
                if asked.strip() and not interrupts.pressed:
                    failed |= not _answer(conversation, asked.strip(), interrupts)
            if interrupts.pressed:
                raise KeyboardInterrupt
            if failed:
                raise typer.Exit(2)
            return
        print(f"chat: run {run}, {' and '.join(conversation.names)}. {HELP}", file=sys.stderr)
        for asked in _typed(interrupts):
            if asked == "/new":
                conversation.forget()
            elif asked:
                _answer(conversation, asked, interrupts)


def _typed(interrupts: _Interrupts) -> Iterator[str]:
    """Yields typed lines until Ctrl-D or /quit; Ctrl-C discards the current line."""
    from rich.console import Console

    console = Console()
    while True:
        interrupts.pressed, interrupts.at_prompt = False, True
        try:
            asked = console.input("[bold]> [/bold]").strip()
        except KeyboardInterrupt:
            console.print()
            continue
        except EOFError:
            console.print()
            return
        finally:
            interrupts.at_prompt = False
        if asked in ("/quit", "/exit"):
            return
        yield asked


class _Interrupts:
    """Handles Ctrl-C in a conversation: the first ends the answer; a second one, or one at the prompt, raises as usual."""

    def __init__(self) -> None:
        self.pressed = self.at_prompt = False

    def __enter__(self) -> _Interrupts:
        self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _press(self, *_: object) -> None:
        if self.pressed or self.at_prompt:
            raise KeyboardInterrupt
        self.pressed = True


def _answer(conversation: Conversation, question: str, interrupts: _Interrupts) -> bool:
    """Streams the answers; returns whether all variants answered."""
    from rich.console import Console

    console = Console()
    show = _show_live if console.is_terminal else _show_plain
    states = shown(lambda: show(conversation, question, interrupts, console)) or {}
    for name, state in states.items():
        if state.error:
            print(f"error: {name}: {visible(state.error)}", file=sys.stderr)
    return all(state.end in ("stop", "length") for state in states.values())


def _show_plain(conversation: Conversation, question: str, interrupts: _Interrupts, console: Any) -> Any:
    """For a pipe: streams one variant's text, or prints several below each other when they are complete."""
    alone, written = len(conversation.names) == 1, 0
    states: dict[str, Any] = {}
    for states in conversation.ask(question, lambda: interrupts.pressed):
        if alone:
            text = next(iter(states.values())).text
            print(visible(text[written:]), end="", flush=True)
            written = len(text)
    if alone:
        print(flush=True)
    else:
        for name, state in states.items():
            print(visible(f"{name}: {state.text}"), flush=True)
    return states


def _show_live(conversation: Conversation, question: str, interrupts: _Interrupts, console: Any) -> Any:
    from rich.live import Live

    states: dict[str, Any] = {}
    with Live(console=console, refresh_per_second=12, vertical_overflow="visible") as live:
        live.update(_columns(conversation.names, {}, "loading"))
        for states in conversation.ask(question, lambda: interrupts.pressed):
            live.update(_columns(conversation.names, states, ""))
        live.update(_columns(conversation.names, states, "ended" if interrupts.pressed else ""))
    return states


def _columns(names: list[str], states: dict[str, Any], note: str) -> Any:
    """The answers side by side, each with its speed below; never read as markup."""
    from rich.table import Table
    from rich.text import Text

    from harness.variants import label

    table = Table.grid(expand=True, padding=(0, 2))
    for _ in names:
        table.add_column(ratio=1)
    if len(names) > 1:
        table.add_row(*(Text(visible(label(name)), style="bold") for name in names))
    table.add_row(*(Text(visible(states[name].text if name in states else "")) for name in names))
    table.add_row(*(Text(states[name].summary() or note if name in states else note, style="dim") for name in names))
    return table


PASSWORD = "HARNESS_WEB_PASSWORD"
"""Environment variable with the password of `--auth`; if it is not set, the terminal asks for it."""


@app.command(rich_help_panel=START, epilog="Example: harness web --run tiny")
def web(
    run: Run = None,
    variant: Annotated[
        list[str] | None, typer.Option("--variant", metavar="NAME", help="Variants to offer; all by default.")
    ] = None,
    config: RunConfig = None,
    settings: Settings = None,
    memory: Memory = 0,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0: any free port.")] = 7860,
    share: Annotated[bool, flag("--share", help="Also serve on a public address through Gradio's tunnel.")] = False,
    auth: Annotated[
        str | None, typer.Option("--auth", metavar="NAME", help=f"Visitors log in; the password is in {PASSWORD}.")
    ] = None,
    characters: Annotated[int, typer.Option("--max-characters", min=1, help="Maximum length of a question.")] = 4000,
    per_minute: Annotated[int, typer.Option("--per-minute", min=1, help="Maximum questions from one address.")] = 60,
    parallel: Annotated[int, typer.Option("--parallel", min=1, help="Questions answered at the same time.")] = 2,
    sets: SettingsText = "",
) -> None:
    """Ask the variants on a web page, side by side or blind; keep votes and candidate questions."""
    with errors():
        from harness.config.loading import split_settings
        from harness.web import page

        wanted = [*(settings or []), *split_settings(sets)]
        folder, _, session = open_session(run, config, wanted, variant or [], memory)
        keep = page.Keep(folder.reports / "marks.jsonl", folder.reports / "candidates.jsonl")
        limits = page.Limits(characters=characters, per_minute=per_minute, parallel=parallel)
        serving = page.Serving(port=port, share=share, auth=(auth, _password()) if auth else None)
        try:
            serve(page.Page(session, f"Ask {folder.name}", keep, limits), serving)
        finally:
            session.close()


def serve(page: Any, serving: Any) -> None:
    """Serves a page until Ctrl-C, and prints its address."""
    from harness.web.page import serve, wait

    blocks, local, public = serve(page, serving)
    say(f"web: {', '.join(page.session.names)} at {local} (this machine only); Ctrl-C ends it")
    if public:
        say(f"web: PUBLIC: anybody who knows {public} can ask{'' if serving.auth else ', without a password'}")
    try:
        wait()
    except KeyboardInterrupt:
        say("web: ended")
    finally:
        blocks.close(verbose=False)


def _password() -> str:
    import getpass
    import os

    from harness.errors import ConfigError

    found = os.environ.get(PASSWORD, "")
    if not found and sys.stdin.isatty():
        found = getpass.getpass("Password for visitors: ")
    if not found:
        raise ConfigError("--auth needs a password", f"set the environment variable {PASSWORD}")
    return found


@app.command(rich_help_panel=START, epilog="Example: harness space tiny space/")
def space(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder below runs/.")],
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder to create; must be empty or missing.")],
    variant: Annotated[
        str | None, typer.Option("--variant", metavar="NAME", help="GGUF variant; the smallest by default.")
    ] = None,
    hub: Annotated[
        str | None,
        typer.Option(
            "--hub", metavar="OWNER/NAME/FILE.gguf", help="Download the GGUF from the hub instead of copying it."
        ),
    ] = None,
    title: Annotated[str | None, typer.Option("--title", metavar="TEXT", help="Title of the Space.")] = None,
    examples: Annotated[
        int, typer.Option("--examples", metavar="N", min=0, help="Held-out questions to publish with it.")
    ] = 0,
    config: RunConfig = None,
) -> None:
    """Write a folder to push to Hugging Face Spaces: the web page with one GGUF of a run."""
    with errors():
        from pathlib import Path

        from harness.storage import RunFolder
        from harness.web import session, space

        found = RunFolder(run).check_exists()
        made = space.write(
            found,
            session.config_of(found, config),
            Path(folder),
            variant=variant,
            hub=hub,
            title=title,
            examples=examples,
        )
        say(
            f"space: {made.variant}, {made.size_bytes / 2**20:,.0f} MiB in {folder}; try it: cd {folder} && python app.py"
        )
        say(f"push it: hf upload YOUR_NAME/SPACE {folder} --repo-type space")
