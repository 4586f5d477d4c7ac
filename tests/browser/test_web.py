"""The web page in a real browser, on GGUF files of the embedded model."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import storage
from harness.records import Mark
from harness.web import session as sessions
from tests.helpers import ask_run

gradio = pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
from harness.web import page as pages  # noqa: E402 - needs Gradio

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install it or set CHROMIUM"),
]
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
LIMIT = 2000
PRESIDENT = ask_run.PAIRS[1][0]


class Served:
    """The page on a free port, with all that it writes."""

    def __init__(self, root: Path):
        self.run, config = ask_run.make(root, max_new_tokens=160)
        self.session = sessions.open_run(self.run, config, only=ask_run.GGUFS)
        self.keep = pages.Keep(root / "marks.jsonl", root / "candidates.jsonl")
        limits = pages.Limits(characters=LIMIT, per_minute=100, parallel=2)
        self.page = pages.Page(self.session, "Ask <b>r</b>", self.keep, limits)
        self.blocks, self.url, self.public = pages.serve(self.page, pages.Serving(port=0))

    def close(self) -> None:
        self.blocks.close(verbose=False)
        self.session.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    found = Served(tmp_path_factory.mktemp("web"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def opened(browser: Any, served: Served) -> Iterator[Any]:
    """The page; a script error, or a request to any other server, fails the last test."""
    trouble: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith((served.url, "data:", "blob:")) else trouble.append(request.url),
    )
    page.goto(served.url)
    page.wait_for_selector("#question textarea")
    yield page
    page.close()
    assert not trouble


@pytest.fixture
def view(opened: Any) -> Any:
    """The page, for questions that are not blind."""
    opened.uncheck("#blind input")
    return opened


def ask(page: Any, question: str, *, wait: bool = True) -> None:
    page.fill("#question textarea", question)
    page.evaluate("window.seen = []")
    page.evaluate(
        """() => { const look = () => { const field = document.querySelector('#answer-0 textarea');
        if (field && window.seen.at(-1) !== field.value) window.seen.push(field.value);
        requestAnimationFrame(look) }; look() }"""
    )
    page.click("#ask")
    if wait:
        wait_for_answers(page)


def wait_for_answers(page: Any) -> None:
    """Waits until all have answered."""
    said = "document.querySelector('#notice').innerText.trim()"
    page.wait_for_function(f"['Loading ...', 'Answering ...'].includes({said}) || window.seen.length > 1")
    page.wait_for_function(f"!['Loading ...', 'Answering ...'].includes({said})", timeout=60_000)


def notice(page: Any) -> str:
    return page.inner_text("#notice").strip()


def answers(page: Any) -> list[str]:
    return [page.input_value(f"#answer-{i} textarea") for i in (0, 1)]


def test_a_stream_grows_to_what_the_session_answers(view: Any, served: Served) -> None:
    ask(view, PRESIDENT)
    expected = [list(served.session.ask(name, PRESIDENT))[-1] for name in ask_run.GGUFS]
    assert answers(view) == [state.text for state in expected]
    grown = [text for text in view.evaluate("window.seen") if text]
    assert len(grown) >= 3 and all(late.startswith(early) for early, late in itertools.pairwise(grown))
    facts = view.inner_text("#facts-1")
    assert f"mean log-probability {expected[1].logprob:.2f}" in facts and "tokens/s" in facts
    assert "Token F1" in facts and view.locator("#facts-1 del, #facts-1 ins").count() >= 1
    assert view.input_value("#reference textarea") == ask_run.PAIRS[1][1]
    ask(view, "A question that nobody wrote down")
    assert "Token F1" not in view.inner_text("#facts-1") and view.input_value("#reference textarea") == ""


def test_a_blind_vote_is_kept_before_the_names_are_shown(view: Any, served: Served) -> None:
    view.check("#blind input")
    ask(view, PRESIDENT)
    shown = view.inner_text("main" if view.locator("main").count() else "body")
    assert "Answer A" in shown and "Answer B" in shown and "tokens/s" not in shown
    assert served.keep.marks is not None and not served.keep.marks.exists()
    view.fill("#note textarea, #note input", "clearer <b>")
    view.click("#vote-2")
    view.wait_for_function("document.querySelector('#notice').innerText.includes('Vote kept')")
    [mark] = storage.read_records(served.keep.marks, Mark)
    assert (mark.id, mark.prefers, mark.note) == ("q1", "other", "clearer <b>")
    assert [mark.answer, mark.other_answer] == answers(view)
    labels = {"gguf_f16": "GGUF F16", "gguf_q8_0": "GGUF Q8_0"}
    a, b = labels[mark.variant], labels[mark.other or ""]
    assert notice(view) == f"Vote kept. A was {a}, B was {b}."
    assert not view.locator("#vote-2").is_visible()


def test_a_candidate_is_kept_with_a_reference_only(view: Any, served: Served) -> None:
    ask(view, "A new question")
    view.click("#keep")
    view.wait_for_function("document.querySelector('#notice').innerText.includes('Write the reference')")
    view.fill("#reference textarea", "The right answer.")
    view.click("#keep")
    view.wait_for_function("document.querySelector('#notice').innerText.includes('Kept as a candidate')")
    assert served.keep.candidates is not None
    [kept] = map(json.loads, served.keep.candidates.read_text().splitlines())
    assert (kept["question"], kept["answer"]) == ("A new question", "The right answer.")
    assert list(kept["model_answers"].values()) == answers(view)


def test_hostile_text_stays_text(view: Any) -> None:
    ask(view, ask_run.PAIRS[3][0])
    assert not notice(view), notice(view)
    assert view.evaluate("window.pwned") is None
    assert view.locator("#facts-0 img, #facts-0 script, #answer-0 img, h1 b").count() == 0
    facts = view.inner_text("#facts-0")
    # Words of the reference, each struck out separately.
    for word in ("<img", "${1+1}", "{{1+1}}", "\\u202etxt.exe\\u2066", "\\x1b[2J"):
        assert word in facts, facts
    assert "\u202e" not in facts


def test_what_is_too_long_or_empty_is_refused_in_one_line(view: Any) -> None:
    view.evaluate("window.seen = []")
    for question, said in (
        ("x" * 100_000, f"The question has 100,000 characters; {LIMIT:,} are the limit. Shorten it."),
        ("   ", "Write a question first."),
        ("word " * 390, "shorten it"),
    ):
        ask(view, question, wait=False)
        place = "#answer-0 textarea" if said == "shorten it" else "#notice"
        view.wait_for_function(
            "([place, said]) => { const n = document.querySelector(place); return n && (n.value ?? n.innerText).includes(said) }",
            arg=[place, said],
        )


def test_a_killed_model_says_so_and_the_page_lives_on(view: Any, served: Served) -> None:
    ask(view, "Article 21 protects")
    before = answers(view)
    workers = [
        child for child in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(child.cmdline())
    ]
    assert workers
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
    ask(view, "Article 21 protects")
    assert all("stopped answering" in text and "ask again" in text for text in answers(view))
    ask(view, "Article 21 protects")
    assert answers(view) == before


def test_twenty_at_once_wait_in_line_and_all_are_answered(served: Served) -> None:
    from gradio_client import Client

    questions = [f"Article {i} deals with" for i in range(20)]
    expected = {q: list(served.session.ask("gguf_q8_0", q))[-1].text for q in questions[:3]}

    def answer(i: int) -> str:
        # One visitor each, since a visitor's second question stops the first.
        client = Client(served.url, verbose=False)
        row = client.predict(questions[i], ["gguf_q8_0"], False, api_name="/ask")
        texts = [part["value"] for part in row if isinstance(part, dict) and "value" in part and part.get("label")]
        return texts[0]

    with ThreadPoolExecutor(20) as threads:
        found = list(threads.map(answer, range(20)))
    assert all(found) and found[:3] == [expected[q] for q in questions[:3]]


def test_only_the_loopback_interface_listens(served: Served) -> None:
    here = psutil.Process()
    listening = [
        c.laddr.ip
        for process in (here, *here.children(recursive=True))
        for c in process.net_connections()
        if c.status == psutil.CONN_LISTEN
    ]
    assert served.url.startswith("http://127.0.0.1:") and not served.public
    assert listening and set(listening) == {"127.0.0.1"}


def test_the_rate_is_limited_for_each_address() -> None:
    visitors = pages.Visitors(pages.Limits(per_minute=3))
    asked = [visitors.refusal("x", ["a"], ["a"], "10.0.0.1") for _ in range(4)]
    assert asked[:3] == [""] * 3 and asked[3].startswith("3 questions a minute are the limit. Wait ")
    assert not visitors.refusal("x", ["a"], ["a"], "10.0.0.2")


def test_a_password_is_asked_for(served: Served) -> None:
    import httpx

    blocks, url, _ = pages.serve(served.page, pages.Serving(port=0, auth=("me", "secret")))
    try:
        assert httpx.post(f"{url}login", data={"username": "me", "password": "wrong"}).status_code == 400
        assert "Held-out questions" not in httpx.get(url).text
        assert httpx.post(f"{url}login", data={"username": "me", "password": "secret"}).status_code == 200
    finally:
        blocks.close(verbose=False)


def test_memory_stays_flat(served: Served) -> None:
    workers = [
        child for child in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(child.cmdline())
    ]

    def asked(n: int) -> int:
        for i in range(n):
            assert list(served.session.ask("gguf_q8_0", f"Article {i}"))[-1].end
        return sum(process.memory_info().rss for process in (psutil.Process(), *workers))

    first = asked(6)
    assert asked(12) < first + (8 << 20)
