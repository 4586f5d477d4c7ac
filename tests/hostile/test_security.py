"""What a hostile file, model or server could do, and does not; and what must not be printed.

See docs/security.md for the threat model.
"""

from __future__ import annotations

import ast
import html
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.logged import messages
from tests.hostile.canaries import CANARIES

PROJECT = Path(__file__).parents[2]
SOURCES = sorted((PROJECT / "harness").rglob("*.py"))


class Bomb:
    """Unpickled as code, it makes a file."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


# ---------------------------------------------------------------------------------------------------------- the source


def dangers(tree: ast.AST) -> list[str]:
    """What in a module could run code that comes from data."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [
                name for name in names if name.split(".")[0] in ("dill", "cloudpickle", "joblib", "shelve", "marshal")
            ]
        if isinstance(node, ast.ImportFrom) and node.module == "pickle":
            found.append("from pickle")
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle" and node.attr != "UnpicklingError":
            found.append(ast.unparse(node))
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called in ("eval", "exec", "compile", "os.system", "os.popen") or options.get("shell") == "True":
                found.append(called)
            if called.endswith("torch.load") or (called == "load" and "torch" in ast.unparse(node)):
                found += [] if options.get("weights_only") == "True" else [called]
            if called in ("np.load", "numpy.load"):
                found += [] if options.get("allow_pickle", "False") == "False" else [called]
            if called in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"):
                found += [] if options.get("Loader") in ("_Loader", "yaml.SafeLoader") else [called]
            if options.get("trust_remote_code") == "True" or options.get("autoescape") == "False":
                found.append(f"{called}(...)")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_the_source_runs_no_code_that_comes_from_data(path: Path) -> None:
    assert dangers(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "pickle.loads(data)",
        "from pickle import loads",
        "from joblib import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(t, Loader=yaml.Loader)",
        "eval(t)",
        "subprocess.run(t, shell=True)",
        "f(trust_remote_code=True)",
    ],
)
def test_that_test_sees_it(line: str) -> None:
    assert dangers(ast.parse(line))


def test_the_yaml_loader_is_a_safe_one() -> None:
    import yaml

    from harness.storage.strict_yaml import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)


def test_code_of_a_model_is_not_trusted_unless_asked() -> None:
    from harness.config import Config, load

    assert Config().model.trust_remote_code is False
    shipped = [load(path.stem) for path in (PROJECT / "harness" / "configs").glob("*.yaml")]
    assert not any(config.model.trust_remote_code for config in shipped)


# -------------------------------------------------------------------------------------------------------------- models


def test_code_beside_a_model_is_not_run(tiny_model: Path, tmp_path: Path) -> None:
    from harness.errors import ModelError
    from harness.prompt import load_tokenizer
    from tests.helpers.models import edit_json

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'proof')!r})\nclass E: pass\n")
    edit_json(folder / "tokenizer_config.json", tokenizer_class="E", auto_map={"AutoTokenizer": ["evil.E", "evil.E"]})
    with pytest.raises(ModelError, match="tokenizer cannot be loaded"):
        load_tokenizer(folder)
    edit_json(
        folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.E", "AutoModelForCausalLM": "evil.E"}
    )
    with pytest.raises(ModelError, match="cannot be loaded"):
        loaded(folder)
    assert not (tmp_path / "proof").exists()


def loaded(folder: Path, **source: Any) -> Any:
    from harness.backends import Execution, Generation, Source
    from harness.backends.transformers import TransformersBackend

    return TransformersBackend(Source(folder, **source), Generation(4, (1,), 0), Execution())


def test_a_pickled_model_is_not_opened(tiny_model: Path, tmp_path: Path) -> None:
    from harness.errors import ModelError

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "proof")))
    with pytest.raises(ModelError, match="cannot be loaded"):
        loaded(folder)
    assert not (tmp_path / "proof").exists()


def test_an_adapter_cannot_name_another_base(tiny_model: Path, tmp_path: Path) -> None:
    """transformers would load whichever base an adapter names, from the hub or from any path."""
    from harness.errors import ModelError
    from tests.helpers.small_run import save_adapter

    adapter = save_adapter(tmp_path / "adapter", tiny_model)
    with pytest.raises(ModelError, match=r"has no config\.json"):
        loaded(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(tmp_path / "nowhere")})
    )
    backend = loaded(tiny_model, adapter=adapter)
    assert backend.answer([[0, 1, 2]])[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    "settings",
    [
        {"r": None},
        {"r": 0},
        {"r": "8"},
        {"lora_alpha": []},
        {"peft_type": "EVIL"},
        {"auto_mapping": {"x": "y"}, "use_dora": True},
    ],
)
def test_a_hostile_adapter_config_is_refused(tiny_model: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    from harness.errors import ModelError
    from harness.formats.merged import write_16bit
    from tests.helpers.models import edit_json
    from tests.helpers.small_run import save_adapter

    adapter = save_adapter(tmp_path / "adapter", tiny_model)
    edit_json(adapter / "adapter_config.json", **settings)
    with pytest.raises(ModelError):
        write_16bit(tiny_model, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------------------- the network


def test_llama_cpp_listens_to_nobody_else(tiny_model: Path, tmp_path: Path) -> None:
    import psutil

    from harness.backends import Execution, Generation, Source
    from harness.backends.llamacpp import LlamaCppBackend
    from harness.formats import gguf

    gguf.write(tiny_model, tmp_path / "m.gguf", "f16")
    before = len(psutil.Process().net_connections(kind="unix"))
    backend = LlamaCppBackend(Source(tmp_path / "m.gguf"), Generation(4, (511,), 511), Execution(slots=1))
    try:
        listening = [
            c.laddr.ip for c in psutil.Process().net_connections(kind="inet") if c.status == psutil.CONN_LISTEN
        ]
        assert backend.answer([[5, 6]])[0].finish_reason != "error"
        assert not listening and not psutil.Process().net_connections(kind="unix")[before:]
    finally:
        backend.close()


# --------------------------------------------------------------------------------------------------------- checkpoints


PICKLES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "adapter_model.bin")


def test_no_pickle_of_a_checkpoint_is_run(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer keeps its state in files of torch: they are read as tensors and plain values, and code in them is refused."""
    import torch

    from harness.stages import train
    from harness.training import checkpoints
    from harness.training.checkpoints import is_readable, seal
    from tests.helpers import small_run
    from tests.helpers.training import Stop, config, interrupt_at

    torch.set_grad_enabled(True)
    settings, run = config(tiny_model, max_steps=3, save_every=1, eval_rows=0), small_run.split(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(Stop):
        interrupt_at(patched, 2)
        train.run(run, settings)
    (checkpoint,) = run.checkpoints.glob("checkpoint-*")
    assert is_readable(checkpoint)
    for name in PICKLES:
        for write in (torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb))):
            hostile = shutil.copytree(checkpoint, tmp_path / "hostile")
            write(Bomb(tmp_path / "proof"), hostile / name)
            seal(hostile)
            assert is_readable(hostile) == (name == "training_args.bin"), (
                "the training's arguments are written and never read"
            )
            shutil.rmtree(hostile)

    for name in PICKLES:
        torch.save(Bomb(tmp_path / "proof"), checkpoint / name)
    seal(checkpoint)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "is_readable", lambda _: True)
        with pytest.raises(Exception, match="weights_only"):
            train.run(run, settings)
    with messages() as logged:
        assert train.run(run, settings).resumed_from == 0
    assert f"skipping {checkpoint.name}, which is damaged" in logged
    assert not (tmp_path / "proof").exists()


# ------------------------------------------------------------------------------------------------------------- secrets

QUICK = [word for key in ("score", "compare") for word in ("--set", f"{key}.resamples=100")]
WORKS = ["score", "compare", "report", "baseline save", "gate", "report --force", "baseline show", "baseline diff"]
ADDRESS = "http://canaryUser:canaryPassword@host"
FAILS = [
    ["predict", "--set", f"predict.extra={{x: {{backend: endpoint, path: '{ADDRESS}/v1'}}}}"],
    ["predict", "--set", "predict.extra={x: {backend: endpoint, path: 'http://host/v1?key=canary'}}"],
    ["predict", "--set", f"predict.extra={ADDRESS}"],
    ["predict", "--set", f"description={ADDRESS}: ["],
    ["split", "--qa", f"{ADDRESS}/qa.json"],
    ["split", "--config", f"{ADDRESS}/c.yaml"],
    ["split", "--run", ADDRESS],
    ["train", "--set", f"model.path={ADDRESS}/model"],
    ["train", "--set", "model.path=owner/model", "--set", "device=cpu"],
    ["baseline", "show", "--baseline", f"{ADDRESS}/b.json"],
    ["baseline", "diff", "--baseline", f"{ADDRESS}/b.json"],
]
"""Each has the proxy's address and the keys in its environment."""
CHILD = """
import json, sys
from typer.testing import CliRunner
from harness import cli
outcomes = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["harness", *words]
    result = CliRunner().invoke(cli.app, words)
    bug = result.exception is not None and not isinstance(result.exception, SystemExit)
    outcomes.append([result.exit_code, result.output, result.stderr, repr(result.exception) if bug else ""])
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any], str]:
    """Verbs that work and verbs that fail, in an environment full of secrets: (folder, [code, output, errors, bug] of each, stderr of the process)."""
    from tests.helpers import scored_run

    folder = tmp_path_factory.mktemp("secrets")
    scored_run.make(folder, {"base": lambda _: "nothing", "adapter": lambda q: q.answer}, name="tiny")
    # An earlier use of wandb leaves the address of its service, and the folder of tables, in the environment.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = {**inherited, **CANARIES, "WANDB_MODE": "offline", "PYTHONPATH": str(PROJECT), "HOME": str(folder)}
    verbs = [[*verb.split(), *(QUICK if verb != "baseline show" else [])] for verb in WORKS] + FAILS
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(verbs)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_the_verbs_did_what_they_should(outcomes: Any) -> None:
    folder, results, _ = outcomes
    for verb, result in zip([*WORKS, *FAILS], results, strict=True):
        code, _, errors, bug = result
        assert not bug and code == (0 if verb in WORKS else 2), (verb, result)
        assert verb in WORKS or errors.startswith("error: "), (verb, result)
    assert {".wandb", ".html", ".xml", ".md", ".json", ".jsonl"} <= {p.suffix for p in folder.rglob("*") if p.is_file()}


def test_no_secret_is_printed_or_written(outcomes: Any) -> None:
    """Over training, export and prediction: tests/e2e."""
    folder, results, stderr = outcomes
    assert "canary" not in (json.dumps(results) + stderr).lower()
    for path in folder.rglob("*"):
        if path.is_file():
            assert b"canary" not in path.read_bytes().lower(), path


def test_trust_in_code_is_recorded_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In run.json, comparison.json and the report, by the resolved config."""
    from typer.testing import CliRunner

    from harness import cli
    from tests.helpers import scored_run

    monkeypatch.chdir(tmp_path)
    scored_run.make(tmp_path, {"base": lambda q: q.answer}, name="tiny")
    for verb in ("score", "compare", "report"):
        options = [*QUICK, "--set", "model.trust_remote_code=true", "--set", "wandb.enabled=false"]
        assert CliRunner().invoke(cli.app, [verb, *options]).exit_code == 0
    for path in ("runs/tiny/run.json", "reports/tiny/comparison.json"):
        assert '"trust_remote_code": true' in Path(path).read_text()
    page = html.unescape(Path("reports/tiny/report.html").read_text())
    assert re.search(r"trust_remote_code\s*(<[^>]*>\s*)*true", page, re.IGNORECASE)


def test_a_secret_in_an_address_is_not_repeated() -> None:
    from harness.errors import HarnessError

    outcomes = str(
        HarnessError(
            "http://me:secret@host/v1?key=secret#x is bad", "ask \x1b[2Jhttps://s@h", file="https://a:secret@h@i/x"
        )
    )
    assert outcomes == "https://***@i/x: http://***@host/v1?*** is bad; ask \\x1b[2Jhttps://***@h"


# ----------------------------------------------------------------------------------------------------- a hostile server

ANSWERS = {
    "not JSON": b"<html>",
    "a list": b"[]",
    "no data": b"{}",
    "data of another kind": b'{"data": 5}',
    "models without names": b'{"data": [{}, 5]}',
    "a length that is none": b'{"data": [{"id": "m", "max_model_len": "x"}]}',
    "nested for ever": b"[" * 100_000,
    "without end": b'{"data": [{"id": "m"}], "x": "' + b"x" * 17_000_000 + b'"}',
    "not UTF-8": b"\xff\xfe",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """A server on the loopback interface that answers what the test sets: `server.models`, `server.answer`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.say(self.server.models)  # type: ignore[attr-defined]

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.say(self.server.answer)  # type: ignore[attr-defined]

        def say(self, body: bytes) -> None:
            with suppress(OSError):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    served: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def endpoint(server: Any) -> Any:
    from harness.backends import Execution, Generation, Source
    from harness.backends.endpoint import EndpointBackend

    return EndpointBackend(
        Source(Path(), url=f"http://127.0.0.1:{server.server_port}/v1"), Generation(4, (1,), 0), Execution(slots=1)
    )


@pytest.mark.parametrize("name", ANSWERS)
def test_a_hostile_server_is_an_error_and_no_answer(server: Any, name: str) -> None:
    from harness.errors import ModelError

    server.models = ANSWERS[name]
    with pytest.raises(ModelError):
        endpoint(server)
    server.models, server.answer = b'{"data": [{"id": "m"}]}', ANSWERS[name]
    with closing(endpoint(server)) as backend:
        if name == "not JSON":
            with pytest.raises(ModelError, match="answers with a web page"):
                backend.answer([[1, 2, 3]])
        else:
            (completion,) = backend.answer([[1, 2, 3]])
            assert completion.finish_reason == "error" and not completion.text


@pytest.mark.parametrize("key", ["canary\nkey", "canary\u2019s", "canary\0"])
def test_a_key_that_no_header_can_carry_is_not_repeated(monkeypatch: pytest.MonkeyPatch, server: Any, key: str) -> None:
    from harness.errors import ConfigError

    if "\0" in key:
        monkeypatch.setattr(os, "environ", {**os.environ, "HARNESS_ENDPOINT_KEY": key})
    else:
        monkeypatch.setenv("HARNESS_ENDPOINT_KEY", key)
    with pytest.raises(ConfigError, match="HARNESS_ENDPOINT_KEY holds characters") as caught:
        endpoint(server)
    assert "canary" not in str(caught.value)
