"""The web page: the variants of a run asked side by side, with votes and candidates. Needs Gradio (the extra `web`).

Answers are put in text fields, and everything else that came from a model or a file goes through `harness.web.rendering`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from harness import variants
from harness.errors import ConfigError, HarnessError, visible
from harness.web import keeping, rendering
from harness.web.conversation import side_by_side
from harness.web.session import Growing, Session
from harness.web.visitors import MOST_VARIANTS, Asked, Limits, Visitors, draw_two

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

try:
    import gradio as gr
except ImportError:
    raise ConfigError("harness web needs Gradio", "pip install 'qa-harness[web]'") from None

EXAMPLES = 30
"""Held-out questions to choose from."""
REFRESH_S = 0.1
"""Between two states of the page."""
OWN_ORIGIN = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self'; frame-ancestors 'self' "
    "https://huggingface.co"
)
"""Content-Security-Policy: the page may only contact its own server; Spaces show it in a frame."""
BLIND = ("Answer A", "Answer B")
NOBODY = "nobody"
Row = list[Any]
"""An update of all parts of the page that an answer fills."""


@dataclass(frozen=True)
class Keep:
    """Where votes and candidates are written; None: the page does not offer them."""

    marks: Path | None = None
    """Votes on held-out questions; those on others go into `votes.jsonl` beside it."""
    candidates: Path | None = None


class Page:
    """The page's behaviour; `build` gives its form."""

    def __init__(self, session: Session, title: str, keep: Keep, limits: Limits):
        self.session, self.title, self.keep, self.limits = session, title, keep, limits
        self.visitors = Visitors(limits)
        step = max(1, len(session.heldout) // EXAMPLES)
        self.examples = [q.question for q in session.heldout[::step]][:EXAMPLES]

    def ask(self, question: str, names: list[str], blind: bool, request: gr.Request) -> Iterator[Row]:
        """Streams the answers to the page."""
        question = str(question or "")
        names = list(dict.fromkeys(str(name) for name in names or []))
        if refusal := self.visitors.refusal(question, names, self.session.names, _address(request)):
            yield self._row(refusal)
            return
        if blind and len(names) < 2:
            yield self._row("Choose at least two variants to compare them blind.")
            return
        asked = Asked(question.strip(), draw_two(names) if blind else names, blind=blind)
        stop = self.visitors.begin(_visitor(request))
        try:
            yield self._shown(asked, "Loading ...", known=True)
            answers = side_by_side(self.session, asked.names, asked.question, stop.is_set)
            with closing(cast("Any", answers)):
                shown = 0.0
                for name, state in answers:
                    asked.answers[name] = state
                    if (now := time.monotonic()) - shown >= REFRESH_S:
                        shown = now
                        yield self._shown(asked, "Answering ...")
            asked.done = all(name in asked.answers and asked.answers[name].end for name in asked.names)
            yield self._shown(asked, "" if asked.done else "Stopped.")
        finally:
            stop.set()

    def choose(self, question: str) -> tuple[str, str]:
        """(question, reference) of an example."""
        found = self.session.known(str(question or ""))
        return (found.question, found.answer) if found else ("", "")

    def stop(self, request: gr.Request) -> None:
        """Stops the visitor's answers."""
        self.visitors.stop(_visitor(request))

    def vote(self, asked: Asked, vote: keeping.Vote, note: str) -> Row:
        """Keeps a blind vote and shows the names."""
        if not (asked.blind and asked.done):
            return self._shown(asked, "Ask in blind mode first; one vote a question.")
        assert self.keep.marks is not None
        known = self.session.known(asked.question)
        said = (asked.names, [asked.answers[name].text for name in asked.names], vote, str(note or ""))
        try:
            if known:
                keeping.append(self.keep.marks, keeping.mark(known, self.session.split_id, *said))
            else:
                file = self.keep.marks.with_name("votes.jsonl")
                keeping.append(file, keeping.vote_elsewhere(asked.question, *said))
        except HarnessError as error:
            return self._shown(asked, f"The vote was not kept: {error}")
        asked = replace(asked, blind=False)
        a, b = map(variants.label, asked.names)
        return self._shown(asked, f"Vote kept. A was {a}, B was {b}.")

    def remember(self, asked: Asked, reference: str) -> tuple[str, Asked]:
        """Keeps a question with its answers as a candidate, once."""
        reference = str(reference or "").strip()
        if problem := self._not_kept(asked, reference):
            return rendering.notice(problem), asked
        assert self.keep.candidates is not None
        answers = {name: state.text for name, state in asked.answers.items() if not state.error}
        known = self.session.known(asked.question)
        try:
            keeping.append(self.keep.candidates, keeping.candidate(asked.question, known, reference, answers))
        except HarnessError as error:
            return rendering.notice(f"The candidate was not kept: {error}"), asked
        return rendering.notice(f"Kept as a candidate in {self.keep.candidates.name}."), replace(asked, kept=True)

    def _not_kept(self, asked: Asked, reference: str) -> str:
        """The reason why a question cannot be kept as a candidate; empty if it can."""
        if asked.blind:
            return "Vote first: the names are hidden."
        if not asked.done:
            return "Ask a question first."
        if asked.kept:
            return "This question is kept already."
        if not reference:
            return "Write the reference answer first."
        if len(reference) > self.limits.characters:
            return f"The reference is longer than {self.limits.characters:,} characters. Shorten it."
        return ""

    # ------------------------------------------------------------------------------------------------------------ the rows

    def _row(self, message: str) -> Row:
        """A message; everything else stays unchanged."""
        return [rendering.notice(message), *[gr.skip()] * (3 * MOST_VARIANTS + 3)]

    def _shown(self, asked: Asked, message: str, *, known: bool = False) -> Row:
        """The page with these answers.

        Args:
            known: put the reference of a held-out question into its field.
        """
        columns, texts, facts = [], [], []
        found = self.session.known(asked.question)
        for i in range(MOST_VARIANTS):
            name = asked.names[i] if i < len(asked.names) else None
            state = asked.answers.get(name or "", Growing())
            columns.append(gr.update(visible=name is not None))
            label = BLIND[i] if asked.blind and name else visible(variants.label(name or ""))
            texts.append(gr.update(value=visible(self._text(asked, state)), label=label))
            if asked.blind or not asked.answers:
                facts.append("")
            elif state.end in ("stop", "length") and found:
                scores = self.session.scores(found, state.text)
                facts.append(rendering.judged(state, found.answer, scores))
            else:
                facts.append(rendering.facts(state))
        reference = gr.update(value=found.answer if found else "") if known else gr.skip()
        voting = gr.update(visible=asked.blind and asked.done)
        return [rendering.notice(message), *columns, *texts, *facts, reference, voting, asked]

    def _text(self, asked: Asked, state: Growing) -> str:
        if not state.error:
            return state.text
        # The message of an error names the variant.
        return "[This variant failed.]" if asked.blind else f"{state.text}\n[{state.error}]".strip()


def build(page: Page) -> gr.Blocks:
    """The page's form."""
    with gr.Blocks(title=visible(page.title), analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(f"<h1>{rendering.text(page.title)}</h1>")
        asked = gr.State(Asked())
        if page.examples:
            example = gr.Dropdown(page.examples, value=None, label="Held-out questions", elem_id="examples")
        question = gr.Textbox(label="Question", lines=3, max_lines=10, elem_id="question", autofocus=True)
        names = gr.CheckboxGroup(
            [(visible(variants.label(name)), name) for name in page.session.names],
            value=_first_choice(page.session.names),
            label="Variants",
            elem_id="variants",
        )
        blind = gr.Checkbox(
            False, label="Blind: two of them, names hidden", elem_id="blind", visible=page.keep.marks is not None
        )
        with gr.Row():
            ask = gr.Button("Ask", variant="primary", elem_id="ask")
            stop = gr.Button("Stop", elem_id="stop")
        notice = gr.HTML("", elem_id="notice")
        columns, texts, facts = _columns()
        with gr.Group(visible=False, elem_id="voting") as voting:
            note = gr.Textbox(label="Note (optional)", elem_id="note")
            with gr.Row():
                votes = [
                    gr.Button(label, elem_id=f"vote-{i}")
                    for i, label in ((1, "A is better"), (2, "B is better"), (0, "Neither"))
                ]
        with gr.Accordion("Reference and candidate", open=True, visible=page.keep.candidates is not None):
            reference = gr.Textbox(label="Reference answer", lines=2, elem_id="reference")
            remember = gr.Button("Keep as a candidate", elem_id="keep")
        row = [notice, *columns, *texts, *facts, reference, voting, asked]
        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        asking: dict[str, Any] = {
            "fn": page.ask,
            "inputs": [question, names, blind],
            "outputs": row,
            "show_progress": "hidden",
            "concurrency_limit": page.limits.parallel,
            "concurrency_id": "ask",
        }
        ask.click(**asking, api_name="ask")
        question.submit(**asking, api_visibility="private")
        stop.click(page.stop, queue=False, **hidden)
        blocks.unload(page.stop)
        if page.examples:
            example.input(page.choose, example, [question, reference], **hidden)
        for button, vote in zip(votes, (1, 2, 0), strict=True):
            button.click(_voting(page, vote), [asked, note], row, **hidden)
        remember.click(page.remember, [asked, reference], [notice, asked], **hidden)
    return blocks.queue(default_concurrency_limit=8, max_size=page.limits.waiting, api_open=False)


def _first_choice(names: list[str]) -> list[str]:
    """The base and its fine-tuned variant, or the first two variants."""
    pair = [name for name in names if name in (variants.BASE, variants.tuned(names))]
    return pair if len(pair) == 2 else names[:2]


def _columns() -> tuple[list[Any], list[Any], list[Any]]:
    """Places for the answers: columns, text fields and the facts below them."""
    columns, texts, facts = [], [], []
    with gr.Row():
        for i in range(MOST_VARIANTS):
            with gr.Column(visible=False, min_width=260) as column:
                texts.append(gr.Textbox(interactive=False, lines=4, max_lines=30, elem_id=f"answer-{i}"))
                facts.append(gr.HTML("", elem_id=f"facts-{i}"))
            columns.append(column)
    return columns, texts, facts


def _voting(page: Page, vote: keeping.Vote) -> Callable[[Asked, str], Row]:
    def keep(asked: Asked, note: str) -> Row:
        return page.vote(asked, vote, note)

    return keep


def _address(request: gr.Request) -> str:
    return request.client.host if request.client else NOBODY


def _visitor(request: gr.Request) -> str:
    return request.session_hash or NOBODY


# --------------------------------------------------------------------------------------------------------------- serving


@dataclass(frozen=True)
class Serving:
    """Where and for whom the page is served."""

    host: str = "127.0.0.1"
    port: int = 7860
    """0: any free port."""
    share: bool = False
    """Serve on a public address through Gradio's tunnel."""
    auth: tuple[str, str] | None = None
    """(name, password) that visitors must give."""


def serve(page: Page, serving: Serving = Serving()) -> tuple[gr.Blocks, str, str]:
    """Starts the server in separate threads; returns the page, its address, and the public one (empty without `share`).

    Raises:
        ConfigError: the port is in use.
    """
    from gradio.themes import Default
    from starlette.middleware import Middleware

    blocks = build(page)
    try:
        _, local, public = blocks.launch(
            server_name=serving.host,
            server_port=serving.port or _free_port(serving.host),
            share=serving.share,
            auth=serving.auth,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            enable_monitoring=False,
            max_file_size="1kb",
            theme=Default(font="system-ui", font_mono="monospace"),
            css=rendering.CSS,
            app_kwargs={"middleware": [Middleware(OwnOrigin)], "docs_url": None, "redoc_url": None},
        )
    except OSError as error:
        raise ConfigError(f"port {serving.port} cannot be used ({error})", "give another --port") from None
    return blocks, local, public or ""


class OwnOrigin:
    """ASGI middleware: adds the Content-Security-Policy to every response."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes on, with the header."""

        async def with_header(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", OWN_ORIGIN.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, with_header if scope["type"] == "http" else send)


def _free_port(host: str) -> int:
    import socket

    with socket.socket() as found:
        found.bind((host, 0))
        return found.getsockname()[1]


def wait(seconds: float | None = None) -> None:
    """Waits for an interrupt."""
    threading.Event().wait(seconds)
