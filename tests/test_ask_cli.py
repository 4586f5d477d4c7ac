"""`harness chat`, `harness web` and `harness space` as they are typed, on the embedded model."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import distribution, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

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
    run = ask_run.RunFolder("r", root)
    session = sessions.open_run(run, sessions.config_of(run), in_process=True)
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


@pytest.mark.slow  # its times need a machine without other work
def test_ctrl_c_ends_the_answer_and_not_the_program(root: Path, expected: list[str]) -> None:
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(root)
        os.execve(CHAT[0], CHAT, environment(TERM="xterm", COLUMNS="400", LINES="50"))
    shown = b""

    def until(wanted: str, count: int = 1) -> None:
        nonlocal shown
        while plain(shown).count(wanted) < count:
            assert select.select([terminal], [], [], 60)[0], f"no {wanted!r} in {plain(shown)!r}"
            shown += os.read(terminal, 65536)

    until("> ")
    os.write(terminal, ASKED[0].encode() + b"\n")
    until("loading")
    os.write(terminal, b"\x03")
    until("ended")
    until("> ", 2)
    assert expected[0] not in plain(shown)
    os.write(terminal, b"\x03")
    until("> ", 3)
    os.write(terminal, ASKED[1].encode() + b"\n")
    until(expected[1])
    assert "mean log-probability" in plain(shown)
    until("> ", 4)
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


@pytest.fixture
def packages(folder: Path, tmp_path: Path) -> Path:
    """A folder of packages with nothing in it but what the Space's requirements bring, as links."""
    named = [line.split("==")[0] for line in (folder / "requirements.txt").read_text().split()]
    for name in _closure(named):
        for file in distribution(name).files or []:
            link = tmp_path / file.parts[0]
            if file.parts[0] != ".." and not link.exists():
                link.symlink_to(str(file.locate()).removesuffix(str(Path(*file.parts[1:]))).rstrip("/"))
    return tmp_path


def _closure(names: list[str]) -> set[str]:
    found: set[str] = set()
    while names:
        name = names.pop().lower().replace("_", "-")
        if name not in found:
            found.add(name)
            needed = [Requirement(text) for text in requires(name) or []]
            names += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture
def url(folder: Path, packages: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = subprocess.Popen(
        [sys.executable, "-S", "app.py"],  # without this environment's own packages
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(packages), "GRADIO_SERVER_PORT": str(port)},
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


def test_a_space_started_from_its_folder_alone_answers(url: str, expected: list[str]) -> None:
    from gradio_client import Client

    row: Any = Client(url, verbose=False).predict(ASKED[1], ["gguf_q8_0"], False, api_name="/ask")
    assert expected[1] in [part.get("value") for part in row if isinstance(part, dict)]
    assert "Token F1" in str(row), "the question is an example, whose reference is known"
