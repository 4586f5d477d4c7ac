"""`harness chat`, `harness web` and `harness space` as they are typed, on the embedded model."""

from __future__ import annotations

import json
import os
import pty
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ConfigError
from harness.web import session as sessions
from harness.web import space
from tests.helpers import ask_run

PROJECT = Path(__file__).parents[1]
ASKED = [ask_run.PAIRS[1][0], "Article 21 protects"]
CHAT = [sys.executable, "-m", "harness", "chat", "--run", "r", "--variant", "gguf_q8_0"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("ask")
    ask_run.make(found, max_new_tokens=48)
    return found


@pytest.fixture(scope="module")
def expected(root: Path) -> list[str]:
    session = sessions.open_run(ask_run.RunFolder("r", root), sessions.config_of(ask_run.RunFolder("r", root)))
    found = [list(session.ask("gguf_q8_0", question))[-1].text for question in ASKED]
    session.close()
    return found


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT), **more}


def test_questions_of_a_pipe_are_answered_one_a_line(root: Path, expected: list[str]) -> None:
    done = subprocess.run(
        CHAT, cwd=root, env=environment(), input="\n".join([*ASKED, ""]), capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(f"{text}\n" for text in expected)


def test_ctrl_c_ends_the_answer_and_not_the_program(root: Path, expected: list[str]) -> None:
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(root)
        os.execve(CHAT[0], CHAT, environment(TERM="xterm", COLUMNS="400", LINES="50"))
    shown = b""

    def until(wanted: str, count: int = 1) -> None:
        nonlocal shown
        end = time.monotonic() + 120
        while plain(shown).count(wanted) < count:
            assert time.monotonic() < end, plain(shown)
            shown += os.read(terminal, 65536)

    until("Ctrl-C ends an answer")
    until("> ")
    os.write(terminal, ASKED[0].encode() + b"\n")
    until("loading")
    os.write(terminal, b"\x03")
    until("ended")
    assert expected[0] not in plain(shown)
    os.write(terminal, b"\x03" + ASKED[1].encode() + b"\n")
    until("mean log-probability")
    assert " ".join(expected[1].split())[:60] in " ".join(plain(shown).split())
    os.write(terminal, b"\x04")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def plain(shown: bytes) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode("utf-8", "replace"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chat", "--variant", "a", "--variant", "b", "--variant", "c", "x"], "3 variants do not fit side by side"),
        (["chat", "--run", "r", "--variant", "nope", "x"], "no variant 'nope' to ask in run r; use one of base"),
        (["space", "r", "made", "--hub", "nonsense"], "--hub 'nonsense' is not OWNER/NAME/FILE.gguf"),
        (["web", "--run", "r", "--auth", "me"], "--auth needs a password; set the environment variable HARNESS_WEB"),
    ],
)
def test_mistakes_are_one_line(root: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from harness.cli import app

    monkeypatch.chdir(root)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and said in done.output and done.output.count("\n") == 1
    assert not (root / "made").exists()


# ----------------------------------------------------------------------------------------------------------------- Spaces


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    pytest.importorskip("gradio")
    run = ask_run.RunFolder("r", root)
    made = space.write(run, sessions.config_of(run), root / "space", title="Ask: it's #1", examples=1)
    assert made.variant == "gguf_q8_0", "the smallest"
    return root / "space"


def test_a_space_has_what_the_hub_wants(folder: Path, root: Path) -> None:
    import yaml

    front = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert front["sdk"] == "gradio" and front["title"] == "Ask: it's #1" and (folder / front["app_file"]).is_file()
    requirements = (folder / "requirements.txt").read_text().split()
    assert f"gradio=={front['sdk_version']}" in requirements and all("==" in line for line in requirements)
    published = json.dumps(json.loads((folder / "space.json").read_text()))
    assert ask_run.PAIRS[0][0] in published and ask_run.PAIRS[1][0] not in published
    assert str(root) not in published
    run = ask_run.RunFolder("r", root)
    with pytest.raises(ConfigError, match="is not empty"):
        space.write(run, sessions.config_of(run), folder)
    hub = space.write(run, sessions.config_of(run), root / "hub", variant="gguf_f16", hub="me/model/sub/f16.gguf")
    assert hub.variant == "gguf_f16" and not (root / "hub" / "model.gguf").exists()
    assert json.loads((root / "hub" / "space.json").read_text())["hub"]["filename"] == "sub/f16.gguf"


ALONE = """
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from harness.web import page, space
session = space.open_folder(Path("."), in_process=True)
assert list(session.ask(session.names[0], "x"))[-1].end, "it answers"
known = packages_distributions()
print(sorted({known[top][0].lower().replace("_", "-") for name in sys.modules if (top := name.split(".")[0]) in known}))
"""


def test_a_space_needs_nothing_but_its_requirements(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=folder, env=_without_path(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    imported = set(eval(done.stdout.splitlines()[-1]))  # a list of names, printed above
    named = [line.split("==")[0] for line in (folder / "requirements.txt").read_text().split()]
    # qa-harness: the checkout of which this is a copy is installed here, and has the same package name.
    assert imported - _closure(named) - {"qa-harness"} == set()


def _closure(names: list[str]) -> set[str]:
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    found: set[str] = set()
    while names:
        name = names.pop().lower().replace("_", "-")
        if name not in found:
            found.add(name)
            needed = [Requirement(text) for text in requires(name) or []]
            names += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def _without_path() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=folder,
        env={**_without_path(), "GRADIO_SERVER_PORT": str(port)},
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 120
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert app.poll() is None and time.monotonic() < end, app.stderr and app.stderr.read()
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/"
    app.terminate()
    app.wait(30)


def test_a_space_started_from_its_folder_alone_answers(url: str, folder: Path, expected: list[str]) -> None:
    from gradio_client import Client

    row: Any = Client(url, verbose=False).predict(ASKED[0], ["gguf_q8_0"], False, api_name="/ask")
    assert expected[0] in [part.get("value") for part in row if isinstance(part, dict)]
    assert (folder / "harness" / "__pycache__").is_dir(), "its own copy of the package ran"
