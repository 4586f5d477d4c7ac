"""Hub models that cannot be had, each in one line with its hint; a local server replaces the hub, and huggingface_hub raises its own errors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.fake_hub import fake_hub
from tests.helpers.models import save_model

PROJECT = Path(__file__).parent.parent
# One process asks for all the models at once; each line of its output is (model, folder or error).
ASK = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from harness.models import base_model
from harness.config import Model
from harness.errors import HarnessError
base_model.quiet_libraries()
import huggingface_hub.errors
def ask(name):
    path, _, revision = name.partition("@")
    try:
        return str(base_model.resolve(Model(path=path, revision=revision or None)))
    except HarnessError as error:
        return f"error {error.exit_code}: {error}"
with ThreadPoolExecutor(len(sys.argv)) as pool:
    print(json.dumps(dict(zip(sys.argv[1:], pool.map(ask, sys.argv[1:])))))
"""
ELSEWHERE = "download it where there is a network and give its folder as model.path (of an adapter: --base)"
CASES = {
    "gated/model": "is gated; accept its licence on the hub and log in with `hf auth login`",
    "not-accepted/model": "is gated; accept its licence on the hub and log in with `hf auth login`",
    "private/model": "is not on the hub, or private; check the name, or log in with `hf auth login`",
    "missing/model": "is not on the hub, or private; check the name, or log in with `hf auth login`",
    "no-revision/model@v9": "has no revision 'v9'; correct model.revision",
    "no-config/model": "has no config.json; use a model in the format of transformers, not GGUF alone",
    "forbidden/model": f"cannot be reached (the hub answers with 403); try again later, or {ELSEWHERE}",
    "down/model": f"cannot be reached (the hub answers with 503); try again later, or {ELSEWHERE}",
    "slow/model": f"cannot be reached (the hub does not answer in time); run the same command to resume, or {ELSEWHERE}",
    "quantised/model": "is already quantised; use the 16-bit model: merging and exporting need its full weights",
    "truncated/model": f"cannot be downloaded (the connection breaks off); run the same command to resume, or {ELSEWHERE}",
}


@dataclass
class Hub:
    """The error of each model in one process, and what it asked the hub for."""

    outcomes: dict[str, str]
    asked: list[str]
    home: Path


def ask(*names: str, home: Path, **environment: str) -> dict[str, str]:
    settings = {
        **os.environ,
        "HF_HOME": str(home),
        "HF_HUB_ETAG_TIMEOUT": "4",
        "HF_HUB_DOWNLOAD_TIMEOUT": "4",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", ASK, *names], capture_output=True, text=True, cwd=PROJECT, env=settings, timeout=240
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder, home = save_model(tmp_path_factory.mktemp("served")), tmp_path_factory.mktemp("home")
    with fake_hub(folder) as (url, asked):
        yield Hub(ask("good/model", *CASES, home=home, HF_ENDPOINT=url), asked, home)


def test_a_hub_model_is_downloaded_and_checked(hub: Hub) -> None:
    folder = Path(hub.outcomes["good/model"])
    assert folder.is_relative_to(hub.home) and {"config.json", "model.safetensors", "tokenizer.json"} <= {
        p.name for p in folder.iterdir()
    }


@pytest.mark.parametrize("name", CASES)
def test_what_the_hub_refuses_is_one_line(hub: Hub, name: str) -> None:
    assert hub.outcomes[name] == f"error 2: {name.partition('@')[0]}: {CASES[name]}"


def test_a_quantised_model_is_refused_before_its_weights_are_downloaded(hub: Hub) -> None:
    files = [path for path in hub.asked if "/quantised/model/resolve/" in path]
    assert files and all(path.endswith("/config.json") for path in files)


def test_a_hub_that_does_not_answer_is_asked_once(hub: Hub) -> None:
    assert [path for path in hub.asked if "/slow/" in path] == ["GET /api/models/slow/model"]


def test_a_downloaded_model_needs_no_network(hub: Hub) -> None:
    """Neither with HF_HUB_OFFLINE nor without a hub; and what is only partly there is not taken for a model."""
    asked = "good/model", "missing/model", "truncated/model"
    offline, refused = (
        ask(*asked, home=hub.home, HF_HUB_OFFLINE="1"),
        ask(*asked, home=hub.home, HF_ENDPOINT=closed_port()),
    )
    assert offline["good/model"] == refused["good/model"] == hub.outcomes["good/model"]
    absent = f"error 2: missing/model: cannot be reached (HF_HUB_OFFLINE is set) and is not complete in the cache; unset it, or {ELSEWHERE}"
    assert offline["missing/model"] == absent
    assert (
        refused["missing/model"] == f"error 2: missing/model: cannot be reached (no connection to the hub); {ELSEWHERE}"
    )
    assert offline["truncated/model"].startswith("error 2: truncated/model: ") and refused[
        "truncated/model"
    ].startswith("error 2: truncated/model: ")


def test_the_command_line_ends_with_that_line(tmp_path: Path) -> None:
    rows = [{"question": f"What is {i}{'abcdefghijkl'[i] * 30}?", "answer": "xyz"[i % 3] * i} for i in range(1, 12)]
    (tmp_path / "qa.json").write_text(json.dumps(rows))
    settings = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": closed_port()}

    def harness(verb: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "harness",
            verb,
            "--qa",
            "qa.json",
            "--set",
            "model.path=owner/model",
            "--set",
            "device=cpu",
        ]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=settings, timeout=120)

    assert harness("split").returncode == 0
    done = harness("train")
    assert done.returncode == 2
    assert done.stderr == f"error: owner/model: cannot be reached (no connection to the hub); {ELSEWHERE}\n"


def closed_port() -> str:
    """An address on which no server listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
