"""Streamed answers: the session, its pool of models, the stream of a server, and what is kept."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import storage
from harness.backends import server_sent_events
from harness.backends.pieces import Piece
from harness.errors import ConfigError, DeviceError, HarnessError, ModelError
from harness.prediction.jobs import jobs
from harness.questions import dataset
from harness.records import Mark, Prediction
from harness.stages import predict
from harness.web import keeping, rendering
from harness.web import session as sessions
from harness.web.conversation import Conversation
from harness.web.pool import Cancelled, Pool
from harness.web.session import Growing, Session
from tests.helpers import ask_run, small_run

# ------------------------------------------------------------------------------------------------- the embedded model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return ask_run.make(tmp_path_factory.mktemp("ask"), max_new_tokens=32)


@pytest.fixture(scope="module")
def session(made: Any) -> Iterator[Session]:
    opened = sessions.open_run(*made, in_process=True)
    yield opened
    opened.close()
    import torch

    torch.set_grad_enabled(True)  # which the backend switches off for the process


@pytest.mark.parametrize("variant", ["base", "gguf_q8_0"])
def test_a_streamed_answer_is_what_predict_writes(made: Any, session: Session, variant: str) -> None:
    run, config = made
    predict.answer(next(iter(jobs(run, config, "s", ask_run.questions(), [variant]))))
    written = {p.id: p for p in storage.iter_records(run.prediction(variant)[0], Prediction)}
    longest = 0
    for question in ask_run.questions():
        states = list(session.ask(variant, question.question))
        last, prediction = states[-1], written[question.id]
        longest = max(longest, last.tokens)
        assert (last.text, last.end, last.tokens) == (
            prediction.text,
            prediction.finish_reason,
            len(prediction.answer_ids),
        )
        assert last.logprob is not None and last.logprob < 0
        assert all(last.text.startswith(state.text) for state in states)
    assert longest > 8, "an answer of some length was streamed"


def test_a_stopped_answer_leaves_the_model_usable(session: Session) -> None:
    for variant in ("base", "gguf_q8_0"):
        whole = list(session.ask(variant, "The President of India"))[-1]
        answers: Any = session.ask(variant, "The Supreme Court")
        next(answers)
        answers.close()
        assert not list(session.ask(variant, "The Supreme Court", is_cancelled=lambda: True))
        assert list(session.ask(variant, "The President of India"))[-1].text == whole.text


def test_a_question_beyond_the_context_is_one_line_and_the_model_stays(session: Session) -> None:
    [state] = session.ask("gguf_q8_0", "word " * 5000)
    assert state.end == "error" and "shorten it" in (state.error or "") and "\n" not in (state.error or "")
    assert "gguf_q8_0" in session.pool.loaded


def test_two_answer_side_by_side(session: Session) -> None:
    conversation = Conversation(session, ["gguf_f16", "gguf_q8_0"])
    last = list(conversation.ask("The President of India", lambda: False))[-1]
    assert list(last) == conversation.names and all(state.end and state.text for state in last.values())
    assert conversation.turns["gguf_f16"] == [("The President of India", last["gguf_f16"].text)]
    # A prompt of plain text has no place for earlier turns.
    assert not session.takes_turns("gguf_f16")
    assert session.prompt("gguf_f16", "x", [("a", "b")]) == session.prompt("gguf_f16", "x")


def test_unknown_variants_are_named(made: Any) -> None:
    with pytest.raises(ConfigError, match="no variant 'nope' to ask in run r; use one of base, gguf_f16, gguf_q8_0"):
        sessions.open_run(*made, only=["nope"])


def test_the_config_is_the_one_that_the_run_recorded(tmp_path: Path) -> None:
    run = small_run.split(tmp_path)
    config = small_run.config(tmp_path / "model", predict={"max_new_tokens": 7})
    storage.write_json(run.run_json, {"config": config.model_dump(mode="json")})
    assert sessions.config_of(run).predict.max_new_tokens == 7
    assert sessions.config_of(run, None, ["predict.max_new_tokens=9"]).predict.max_new_tokens == 9
    storage.write_json(run.run_json, {"config": {"retired": 1}})
    with pytest.raises(ConfigError, match="recorded by another version; name the config: --config"):
        sessions.config_of(run)


# ------------------------------------------------------------------------------------------------------------- chats

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_earlier_turns_are_in_the_prompt_of_a_chat_and_the_oldest_are_dropped(tmp_path: Path) -> None:
    model = shutil.copytree(ask_run.MODEL, tmp_path / "model")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    run = small_run.split(tmp_path)
    config = small_run.config(model, prompt={"format": "chat"}, predict={"max_new_tokens": 4})
    opened = sessions.open_run(run, config, in_process=True)
    tokenizer = opened.job("base").open_tokenizer()
    assert opened.takes_turns("base")

    def text(turns: list[tuple[str, str]]) -> str:
        prompt: Any = opened.prompt("base", "And then?", turns)
        return tokenizer.decode(prompt, skip_special_tokens=True)

    assert text([("First?", "Yes.")]).endswith(
        "<user>First?</user><assistant>Yes.</assistant><user>And then?</user><assistant>"
    )
    long = [("word " * 90, f"answer {i}") for i in range(9)]
    last = list(opened.ask("base", "And then?", long))[-1]
    assert last.end in ("stop", "length"), last.error
    opened.close()


# -------------------------------------------------------------------------------------------------------------- the pool


class Model:
    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def pool() -> Any:
    sizes = {"a": 4, "b": 4, "c": 4, "huge": 11}
    found = Pool(10, sizes.__getitem__, lambda _: Model())
    yield found
    found.close()


def test_the_least_recently_used_gives_way(pool: Pool) -> None:
    models = {}
    for name in ("a", "b", "a"):
        with pool.borrow(name) as models[name]:
            pass
    with pool.borrow("c"):
        assert pool.loaded == ["a", "c"] and models["b"].closed and not models["a"].closed
    with pytest.raises(DeviceError, match="raise --memory"), pool.borrow("huge"):
        pass


def test_what_is_in_use_is_waited_for_not_freed(pool: Pool) -> None:
    got = threading.Event()

    def use() -> None:
        with pool.borrow("c"):
            got.set()

    with pool.borrow("a") as a, pool.borrow("b") as b:
        thread = threading.Thread(target=use)
        thread.start()
        assert not got.wait(0.3) and not a.closed and not b.closed
        with pytest.raises(Cancelled), pool.borrow("a", lambda: True):
            pass
    thread.join(5)
    assert got.is_set() and a.closed and not b.closed


def test_a_model_that_failed_is_reloaded(pool: Pool) -> None:
    with pytest.raises(ModelError), pool.borrow("a") as first:
        raise ModelError("gone")
    with pool.borrow("a") as second:
        assert second is not first and first.closed
    with pytest.raises(ConfigError), pool.borrow("a"):
        raise ConfigError("the question is too long")
    with pool.borrow("a") as third:
        assert third is second


# -------------------------------------------------------------------------------------------------------------- servers


def events(*values: Any) -> list[str]:
    return [line for value in values for line in (": comment", f"data: {json.dumps(value)}", "")] + ["data: [DONE]"]


def test_the_stream_of_either_route_is_read() -> None:
    completions = events(
        {"choices": [{"text": "The ", "logprobs": {"token_logprobs": [-0.5]}, "finish_reason": None}]},
        {"choices": [{"text": "end", "finish_reason": None}]},
        {"choices": [{"text": "", "finish_reason": "length"}]},
        {"choices": [], "usage": {}},
    )
    assert list(server_sent_events.pieces(completions)) == [
        Piece(text="The ", logprob=-0.5),
        Piece(text="end"),
        Piece(end="length"),
    ]
    chat = events(
        {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
        {"choices": [{"delta": {"content": "Yes"}, "logprobs": {"content": [{"logprob": -1}]}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    )
    assert list(server_sent_events.pieces(chat)) == [Piece(text="Yes", logprob=-1.0), Piece(end="stop")]
    assert list(server_sent_events.pieces(events({"error": {"message": "no\nmemory"}})))[-1].error == "no memory"
    assert list(server_sent_events.pieces(chat[:4]))[-1].error == "the server broke off"


@settings(max_examples=50)
@given(st.lists(st.one_of(st.text(), st.text().map(lambda t: f"data:{t}"), st.just("data: {}"))))
def test_any_stream_ends_or_is_refused(lines: list[str]) -> None:
    try:
        found = list(server_sent_events.pieces(lines))
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    assert found[-1].end and not any(piece.end for piece in found[:-1])


class Broken(BaseHTTPRequestHandler):
    """A server that says two words and then breaks off; the first request is refused for a field."""

    refused = False

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._send(json.dumps({"data": [{"id": "m"}]}).encode(), "application/json")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "top_k" in body:
            type(self).refused = True
            self.send_error(400)
            return
        lines = events({"choices": [{"text": "two "}]}, {"choices": [{"text": "words"}]})[:-1]
        self._send("\n".join([*lines, ""]).encode(), "text/event-stream")

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_a_server_that_breaks_off_or_is_gone_says_so(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    run = small_run.split(tmp_path)
    config = small_run.config(
        tmp_path,
        predict={"variants": [], "extra": {"served": {"backend": "endpoint", "path": url, "tokenizer": "own"}}},
    )
    opened = sessions.open_run(run, config)
    last = list(opened.ask("served", "Who?"))[-1]
    assert (last.text, last.end, last.error) == ("two words", "error", "the server broke off") and Broken.refused
    server.shutdown()
    server.server_close()
    last = list(opened.ask("served", "Who?"))[-1]
    assert last.end == "error" and "does not answer" in (last.error or "")


# ----------------------------------------------------------------------------------------------------------------- kept


def test_a_candidate_can_be_trained_on_and_a_mark_has_its_form(tmp_path: Path) -> None:
    file = tmp_path / "reports" / "candidates.jsonl"
    known = ask_run.questions()[3]
    for row in (
        keeping.candidate(known.question, known, "a\ud800 reference\u2028line", {"base": "<b>"}),
        keeping.candidate("Who is it?", None, "Nobody.", {}),
    ):
        keeping.append(file, row)
    keeping.append(file, keeping.candidate("Who is it?", None, "Nobody.", {"base": "Kept twice."}))
    rows = dataset.load(file)
    assert [row.answer for row in rows] == ["a? reference\u2028line", "Nobody.", "Nobody."]
    assert rows[0].extra["model_answers"] == {"base": "<b>"} and not any(row.references for row in rows)
    marks = tmp_path / "marks.jsonl"
    keeping.append(marks, keeping.mark(known, "s", ["gguf_q8_0", "base"], ["<b>", ""], 2, "x" * 5000))
    [mark] = storage.read_records(marks, Mark)  # as `harness marks add` reads it
    assert (mark.kind, mark.split_id, mark.id, mark.prefers, len(mark.note)) == ("vote", "s", known.id, "other", 1000)
    assert (mark.variant, mark.answer, mark.other, mark.other_answer) == ("gguf_q8_0", "<b>", "base", "")
    elsewhere = keeping.vote_elsewhere("Who is it?", ["a", "b"], ["x", "y"], 1)
    assert (elsewhere["question"], elsewhere["vote"]) == ("Who is it?", 1)


def test_lines_of_many_writers_stay_whole(tmp_path: Path) -> None:
    file = tmp_path / "marks.jsonl"
    file.write_text('{"cut off')
    threads = [
        threading.Thread(target=lambda i=i: [keeping.append(file, {"i": i, "t": "x" * 5000}) for _ in range(20)])
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = file.read_text().splitlines()
    assert len(lines) == 81 and all(json.loads(line)["t"] for line in lines[1:])
    with pytest.raises(HarnessError, match="cannot be written"):
        keeping.append(tmp_path / "marks.jsonl" / "below", {})


# ------------------------------------------------------------------------------------------------------------ rendering


@settings(max_examples=50)
@given(st.text(), st.text())
def test_nothing_but_the_marks_of_differences_is_markup(answer: str, reference: str) -> None:
    found = rendering.judged(Growing(answer, tokens=1, end="stop"), reference, {"token_f1": None})
    plain = re.sub(r"</?(?:ins|del)>|<div class=\"facts\">|</div>", "", found)
    assert "<" not in plain and ">" not in plain and '"' not in plain
    assert not re.search("[\x00-\x08\u202a-\u202e\u2066-\u2069]", found)


def test_differences_are_marked() -> None:
    assert rendering.differences("the Governor", "the President") == "the <del>President</del> <ins>Governor</ins>"
    assert rendering.differences("x " * 5000, "y") == "too long to be compared word by word"
