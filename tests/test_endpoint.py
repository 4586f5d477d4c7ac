"""The endpoint backend against a real OpenAI-compatible server: llama.cpp's, on the loopback interface."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from harness.backends import Execution, Generation, Source, endpoint
from harness.backends.endpoint import KEY, EndpointBackend
from harness.backends.llamacpp import LlamaCppBackend
from harness.config import PROJECT, load
from harness.errors import ModelError
from harness.formats import gguf
from harness.stages import evaluate, predict, split
from harness.storage import RunFolder
from tests.helpers.models import BOS_ID, EOS_ID

GENERATION = Generation(12, (EOS_ID,), EOS_ID)


@pytest.fixture(scope="module")
def file(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("endpoint") / "model.gguf"
    gguf.write(tiny_model, path, "f16")
    return path


@pytest.fixture(scope="module")
def url(file: Path) -> Iterator[str]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.port = str(file), 1024, 2, 0
    params.api_keys, params.verbosity = ["canary-key"], -1
    server = xllamacpp.Server(params)
    yield server.listening_address.rstrip("/") + "/v1"


def test_it_answers_like_llama_cpp_in_process(
    tiny_model: Path, file: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    monkeypatch.setenv(KEY, "canary-key")
    prompts = [[BOS_ID, 70, 71], [BOS_ID, 80, 81, 82, 83], [BOS_ID, 90]]
    served = EndpointBackend(Source(Path(), url=url), GENERATION, Execution(slots=2))
    own = LlamaCppBackend(Source(file), GENERATION, Execution(slots=2, threads=1))
    texts = [c.text for c in served.answer(prompts)]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    answers = own.answer(prompts)
    own.close()
    served.close()
    assert any(texts)
    assert texts == [tokenizer.decode(c.answer_ids, skip_special_tokens=True).strip() for c in answers]


def test_a_wrong_key_or_model_is_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "canary-key")
    with pytest.raises(ModelError, match="does not serve 'other'"):
        EndpointBackend(Source(Path(), url=url, model="other"), GENERATION, Execution())
    with pytest.raises(ModelError, match="cannot be reached") as caught:
        EndpointBackend(Source(Path(), url="http://127.0.0.1:9/v1"), GENERATION, Execution())
    assert "canary" not in str(caught.value)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "canary-key")
    monkeypatch.setattr(endpoint, "BACKOFF_S", 0.01)


def served(url: str, *, chat: bool = False, slots: int = 2, limit: int = 12) -> EndpointBackend:
    return EndpointBackend(
        Source(Path(), url=url, chat=chat), Generation(limit, () if chat else (EOS_ID,), EOS_ID), Execution(slots=slots)
    )


def test_a_chat_is_answered_and_its_tokens_are_counted(url: str) -> None:
    backend = served(url, chat=True)
    prompts: list[Any] = [[{"role": "user", "content": f"What does Article {i} protect?"}] for i in (21, 14, 106)]
    first = backend.answer(prompts)
    assert [c.finish_reason in ("stop", "length") and (c.tokens or 0) > 0 for c in first] == [True] * 3
    assert all((c.prompt_tokens or 0) > 5 for c in first)
    assert [c.text for c in first] == [c.text for c in served(url, chat=True, slots=1).answer(prompts)]


def test_text_is_taken_where_no_tokenizer_is_known(url: str) -> None:
    (found,) = served(url).answer(["Article 21 protects"])
    assert found.text and found.prompt_tokens


@contextmanager
def between(url: str, answer: Callable[[int, dict[str, Any]], tuple[int, bytes] | None]) -> Iterator[str]:
    """A server in front of the real one, which answers itself where `answer(n-th request, body)` does not give None."""
    count = itertools.count()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.forward(None)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found = answer(next(count), json.loads(body))
            if found is None:
                return self.forward(body)
            return self.send(*found)

        def forward(self, body: bytes | None) -> None:
            headers = {"Authorization": self.headers["Authorization"]}
            reply = httpx.request(self.command, url + self.path.removeprefix("/v1"), content=body, headers=headers)
            self.send(reply.status_code, reply.content)

        def send(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_busy_server_is_asked_again(url: str) -> None:
    with between(url, lambda n, _: (429 if n % 2 else 503, b"{}") if n < 4 else None) as busy:
        assert all(c.finish_reason != "error" for c in served(busy).answer(["one", "two"]))


def test_a_server_that_stays_busy_fails_the_question_only(url: str) -> None:
    with between(url, lambda _, body: (500, b'{"error": "down"}') if body["prompt"] == "one" else None) as busy:
        found = served(busy).answer(["one", "two"])
    assert (found[0].finish_reason, found[0].error) == ("error", "500: down")
    assert found[1].finish_reason != "error"


def test_a_server_of_standard_fields_gets_those(url: str) -> None:
    def strict(_: int, body: dict[str, Any]) -> tuple[int, bytes] | None:
        if "top_k" in body:
            return 400, b'{"error": {"message": "Unrecognized request argument supplied: top_k"}}'
        return None

    with between(url, strict) as standard:
        backend = served(standard)
        assert all(c.finish_reason != "error" for c in backend.answer(["one", "two"]))
    assert "standard" in backend.facts.execution["fields"]


def test_requests_in_flight_are_limited(url: str) -> None:
    flying, most, lock = [0], [0], threading.Lock()

    def slow(_: int, body: dict[str, Any]) -> tuple[int, bytes]:
        with lock:
            flying[0] += 1
            most[0] = max(most[0], flying[0])
        time.sleep(0.05)
        with lock:
            flying[0] -= 1
        return 200, json.dumps({"choices": [{"text": body["prompt"], "finish_reason": "stop"}]}).encode()

    with between(url, slow) as counted:
        texts = [c.text for c in served(counted, slots=3).answer([str(i) for i in range(12)])]
    assert texts == [str(i) for i in range(12)]
    assert most[0] == 3


@pytest.mark.parametrize(
    "reply, message",
    [
        ((200, b"<!doctype html><title>Log in</title>"), "answers with a web page"),
        ((401, b"{}"), r"refuses the key \(401\); set the environment variable HARNESS_ENDPOINT_KEY"),
        ((404, b'{"error": {"message": "The model `x` does not exist"}}'), "does not serve"),
        (
            (200, b'{"choices": [{"text": "a", "finish_reason": "length"}], "usage": {"completion_tokens": 3}}'),
            "cuts answers short: one ended after 3 of 12 tokens",
        ),
        (
            (200, b'{"choices": [{"text": "a", "finish_reason": "stop"}], "usage": {"prompt_tokens": 2}}'),
            "cuts prompts short: it read 2 of 4 tokens",
        ),
    ],
)
def test_a_server_that_cannot_be_used_is_one_line(url: str, reply: tuple[int, bytes], message: str) -> None:
    with between(url, lambda *_: reply) as broken, pytest.raises(ModelError, match=message) as caught:
        served(broken).answer([[BOS_ID, 70, 71, 72]])
    assert "canary" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_wrong_key_is_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "another-canary")
    with pytest.raises(ModelError, match="refuses the key") as caught:
        served(url).answer(["one"])
    assert "canary" not in str(caught.value)


def test_ids_that_come_back_are_kept_without_the_end_token(url: str) -> None:
    choice = {"text": "ab", "finish_reason": "stop", "token_ids": [65, 66, EOS_ID], "prompt_token_ids": [BOS_ID, 70]}
    with between(url, lambda *_: (200, json.dumps({"choices": [choice]}).encode())) as vllm:
        (found,) = served(vllm).answer(["x"])
    assert (found.answer_ids, found.prompt_ids, found.text) == ([65, 66], [BOS_ID, 70], "ab")


def test_a_server_that_refuses_every_question_gives_no_result(url: str, tmp_path: Path) -> None:
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps({"question": f"Is it {i}?", "answer": "yes"}) + "\n" for i in range(4)))
    said = b'{"error": {"message": "the context is 4 tokens"}}'
    refuses = [True]
    with between(url, lambda *_: (400, said) if refuses[0] else None) as server:
        plan = evaluate.configure(load("evaluate", ["predict.max_new_tokens=4"]), str(test), [f"s={server}"])
        run = RunFolder("e", tmp_path)
        split.run(run, plan.config)
        with pytest.raises(ModelError, match=r"failed on all 4 questions \(400: the context is 4 tokens\)"):
            predict.run(run, plan.config)
        assert not list(run.prediction("s")[0].parent.glob("*"))
        refuses[0] = False
        assert predict.run(run, plan.config)["s"].finish.get("error", 0) == 0, "they are asked again"


@pytest.mark.slow
def test_a_killed_evaluation_asks_again_only_what_was_in_flight(url: str, tmp_path: Path) -> None:
    """A real process, killed while a real server answers it: what had come is on disk, and is never asked again."""
    slots, before = 3, 7
    test = tmp_path / "test.jsonl"
    rows = [{"id": f"q{i}", "question": f"What does Article {i} protect?", "answer": "life"} for i in range(16)]
    test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked: dict[int, str] = {}
    held = threading.Event()

    def hold(n: int, body: dict[str, Any]) -> None:
        asked[n] = body["prompt"]
        if n >= before:
            held.wait(60)

    with between(url, hold) as server:
        command = [sys.executable, "-m", "harness", "evaluate", "--test", str(test), "--run", "e"]
        command += ["--model", f"s={server}/completions", "--set", f"predict.slots={slots}"]
        command += [
            "--set",
            "predict.max_new_tokens=8",
            "--set",
            "score.resamples=100",
            "--set",
            "compare.resamples=100",
        ]
        environment = os.environ | {"PYTHONPATH": str(PROJECT), KEY: "canary-key"}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        journal = tmp_path / "runs" / "e" / "predictions" / "s.partial"
        until = time.monotonic() + 120
        while not (len(asked) == before + slots and journal.read_bytes().count(b"\n") == 1 + before):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        texts = [asked[n] for n in sorted(asked)]
        answered, in_flight = {*texts[:before]}, {*texts[before:]}
        asked.clear()
        held.set()
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    again = {*asked.values()}
    assert len(asked) == len(rows) - before and not again & answered and in_flight <= again
    lines = (tmp_path / "runs" / "e" / "predictions" / "s.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [row["id"] for row in rows]
    assert not journal.exists() and (tmp_path / "reports" / "e" / "report.html").exists()
