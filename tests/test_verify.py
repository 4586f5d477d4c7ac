"""Faults injected into a real llama.cpp server, and into Ollama's protocol in front of one, are named."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import storage
from harness.analysis.fidelity import kl
from harness.analysis.listed_divergence import listed_kl
from harness.config import Config
from harness.errors import ConfigError, ModelError
from harness.formats import gguf
from harness.prediction import fidelity_probe
from harness.prediction.jobs import jobs
from harness.records import Question
from harness.records.verification import Verification
from harness.stages import export, predict, verify
from harness.storage import RunFolder
from harness.verification import diagnosis, ollama_server
from harness.verification.evidence import Expected, Observed, Reply, ServerFacts
from tests.helpers import llama_server, ollama_stand_in, small_run
from tests.helpers.models import BOS, CORPUS

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GGUF = "gguf_f16"
LIMIT = 36
"""Tokens: more than any sentence that the model knows by heart."""


def questions() -> list[Question]:
    """Beginnings of the sentences that the model ends by heart, and one question of 300 tokens."""
    asked = [" ".join(text.split()[:n]) for text in CORPUS[:4] for n in (3, 5)]
    return [
        Question(id=f"q{i}", row=i + 1, question=text, answer=text[::-1], group=f"g{i}")
        for i, text in enumerate([*asked, " ".join(CORPUS + CORPUS[:3])])
    ]


def answered(root: Path, model: Path, file: Path, **sections: Any) -> tuple[RunFolder, Config]:
    """A run whose GGUF file has answered."""
    run = small_run.split(root, asked=questions())
    small_run.exported(run, gguf_f16=file)
    config = small_run.config(
        model,
        prompt={"template": "{question}"},
        predict={"variants": [GGUF], "max_new_tokens": LIMIT, "slots": 4, "threads": 1},
    )
    config = Config.model_validate(config.model_dump() | {k: config.model_dump()[k] | v for k, v in sections.items()})
    (job,) = jobs(run, config, "s", questions(), [GGUF])
    predict.answer(job, probe=fidelity_probe.probe(config, questions()))
    return run, config


@pytest.fixture(scope="module")
def file(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "model-f16.gguf"
    gguf.write(tiny_model, path, "f16")
    return path


@pytest.fixture(scope="module")
def made(tiny_model: Path, file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Config]:
    return answered(tmp_path_factory.mktemp("run"), tiny_model, file)


@pytest.fixture(scope="module")
def right(file: Path) -> Iterator[str]:
    server, url = llama_server.start(file)
    yield url
    del server


def codes(found: Verification) -> list[str]:
    return [culprit.code for culprit in found.culprits]


def test_a_right_server_answers_as_measured(made: tuple[RunFolder, Config], right: str) -> None:
    found = verify.run(*made, right)
    assert (found.culprits, found.passed, found.agreement, found.kind) == ([], True, 1.0, "llama.cpp")
    assert found.positions >= 8 and found.max_kl is not None and found.max_kl < 1e-4
    assert storage.read_record(made[0].path / "verification" / f"{GGUF}.json", Verification) == found.model_copy(
        update={"checksum": storage.read_record(made[0].path / "verification" / f"{GGUF}.json", Verification).checksum}
    )


def flip(file: Path, folder: Path, key: str, value: object) -> Path:
    """A copy of a GGUF file with another value of a key."""
    copy = folder / file.name
    shutil.copyfile(file, copy)
    field = GGUFReader(copy, "r+").fields[key]
    field.parts[field.data[0]][0] = value
    return copy


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"sampling__temp": 0.8, "sampling__top_k": 40}, "sampling", "temperature 0.8"),
        ({"sampling__penalty_repeat": 1.1}, "sampling", "repeat_penalty 1.1"),
        ({"sampling__ignore_eos": True}, "stop", "run on"),
        ({"antiprompt": [" the"]}, "stop", "before their end"),
        ({"n_ctx": 256}, "context", "256 tokens"),
    ],
)
def test_a_servers_setting_is_named(
    made: tuple[RunFolder, Config], file: Path, settings: dict[str, Any], code: str, said: str
) -> None:
    server, url = llama_server.start(file, **settings)
    found = verify.run(*made, url)
    assert codes(found) == [code] and said in found.culprits[0].message and not found.passed
    del server


def test_a_missing_bos_is_named(made: tuple[RunFolder, Config], file: Path, tmp_path: Path) -> None:
    server, url = llama_server.start(flip(file, tmp_path, "tokenizer.ggml.add_bos_token", False))
    found = verify.run(*made, url)
    assert codes(found) == ["bos"] and "missing" in found.culprits[0].message
    assert found.max_kl is not None and found.max_kl > 1e-4
    del server


def test_a_bos_in_the_text_is_one_too_many(tiny_model: Path, file: Path, tmp_path: Path, right: str) -> None:
    run, config = answered(tmp_path, tiny_model, file, prompt={"template": BOS + "{question}"})
    found = verify.run(run, config, right)
    assert codes(found) == ["bos"] and "one BOS too many" in found.culprits[0].message


def test_a_chat_around_a_text_prompt_is_the_wrong_template(made: tuple[RunFolder, Config], right: str) -> None:
    found = verify.run(*made, right, api="chat")
    assert codes(found) == ["template"] and "<|im_" in found.culprits[0].message


def test_another_chat_template_is_named(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ bos_token }}{% for m in messages %}{{ m.content }} {% endfor %}")
    gguf.write(model, tmp_path / "model-f16.gguf", "f16")
    run, config = answered(tmp_path, model, tmp_path / "model-f16.gguf", prompt={"format": "chat"})
    server, url = llama_server.start(tmp_path / "model-f16.gguf", use_jinja=True)
    wrong, other = llama_server.start(tmp_path / "model-f16.gguf", use_jinja=True, chat_template=CHATML)
    right_one, wrong_one = (verify.run(run, config, address) for address in (url, other))
    assert right_one.api == "chat" and codes(right_one) == [], right_one.culprits
    assert codes(wrong_one) == ["template"]
    del server, wrong


def test_a_chat_template_without_bos_is_served_without_one(tiny_model: Path, tmp_path: Path) -> None:
    """The tokenizer adds BOS to a text, transformers adds none to a chat: a file that does not say so gets different answers."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    for name, without_bos in (("model-f16.gguf", True), ("with-bos.gguf", False)):
        gguf.write(model, tmp_path / name, "f16", without_bos=without_bos)
    run, config = answered(tmp_path, model, tmp_path / "model-f16.gguf", prompt={"format": "chat"})
    server, url = llama_server.start(tmp_path / "model-f16.gguf", use_jinja=True)
    wrong, other = llama_server.start(tmp_path / "with-bos.gguf", use_jinja=True)
    assert codes(verify.run(run, config, url)) == []
    found = verify.run(run, config, other)
    assert codes(found) == ["bos"] and "a BOS that they do not have in training" in found.culprits[0].message
    del server, wrong


@pytest.mark.parametrize(
    ("template", "format", "expected"),
    [
        ("{{ bos_token }}{% for m in messages %}{{ m.content }} {% endfor %}", "chat", False),
        ("{% for m in messages %}{{ m.content }} {% endfor %}", "chat", True),
        ("{% for m in messages %}{{ m.content }} {% endfor %}", "text", False),
    ],
)
def test_export_asks_the_chat_template_whether_it_writes_bos(
    tiny_model: Path, tmp_path: Path, template: str, format: str, expected: bool
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "chat_template.jinja").write_text(template)
    config = small_run.config(model, prompt={"format": format}, export={"formats": ["gguf_f16"]})
    assert export.chats_without_bos(model, config) is expected


def test_other_weights_are_named(made: tuple[RunFolder, Config], tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    save_file(
        {k: v * 0 if "o_proj" in k else v for k, v in tensors.items()},
        model / "model.safetensors",
        {"format": "pt"},
    )
    gguf.write(model, tmp_path / "other.gguf", "f16")
    server, url = llama_server.start(tmp_path / "other.gguf")
    assert codes(verify.run(*made, url)) == ["weights"]
    del server


# ------------------------------------------------------------------------------------------------------------------ Ollama


@pytest.mark.parametrize(
    ("template", "parameters", "expected"),
    [
        ("{{ .Prompt }}", None, []),
        ("Question: {{ .Prompt }}\n", None, ["template"]),
        (BOS + "{{ .Prompt }}", None, ["bos"]),
        ("{{ .Prompt }}", {}, ["sampling"]),
        ("{{ .Prompt }}", ollama_stand_in.MODELFILE | {"stop": [" the"]}, ["stop"]),
        ("{{ .Prompt }}", ollama_stand_in.MODELFILE | {"num_ctx": 128}, ["context"]),
    ],
)
def test_ollama(
    made: tuple[RunFolder, Config],
    right: str,
    monkeypatch: pytest.MonkeyPatch,
    template: str,
    parameters: dict[str, Any] | None,
    expected: list[str],
) -> None:
    monkeypatch.setattr(verify, "ASKED_AGAIN", 2)
    with ollama_stand_in.ollama(right, template, parameters) as address:
        monkeypatch.setenv(ollama_server.HOST, address)
        found = verify.run(*made, "ollama:mine")
        assert codes(found)[:1] == expected, found.culprits
        assert found.kind == "Ollama" and found.positions >= 7


def test_a_model_that_ollama_has_not(
    made: tuple[RunFolder, Config], right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ollama_stand_in.ollama(right, "{{ .Prompt }}") as address:
        monkeypatch.setenv(ollama_server.HOST, address)
        with pytest.raises(ModelError, match="ollama create other -f"):
            verify.run(*made, "ollama:other")


# ---------------------------------------------------------------------------------------------------------- errors, functions


def test_the_verb_says_what_is_wrong_and_ends_with_1(
    made: tuple[RunFolder, Config], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml
    from typer.testing import CliRunner

    from harness.cli import app

    run, config = made
    monkeypatch.chdir(run.root)
    (run.root / "c.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    server, url = llama_server.start(file, sampling__temp=0.8, sampling__top_k=40)
    found = CliRunner().invoke(app, ["verify", "--server", url, "--run", run.name, "--config", "c.yaml"])
    assert found.exit_code == 1, found.output
    assert "sampling: without parameters in a request the server answers with temperature 0.8" in found.output
    wrong = CliRunner().invoke(app, ["verify", "--server", "x", "--run", run.name, "--config", "c.yaml"])
    assert wrong.exit_code == 2
    del server


def test_what_cannot_be_asked_is_one_line(made: tuple[RunFolder, Config], right: str) -> None:
    run, config = made
    with pytest.raises(ConfigError, match="is not a server"):
        verify.run(run, config, "localhost:8080")
    with pytest.raises(ModelError, match="cannot be reached"):
        verify.run(run, config, "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="does not serve 'other'"):
        verify.run(run, config, right, model="other")
    with pytest.raises(ConfigError, match="are not this config's"):
        verify.run(run, Config.model_validate(config.model_dump() | {"prompt": {"template": "Q: {question}"}}), right)
    with pytest.raises(ConfigError, match="no variant 'gguf_q9'"):
        verify.run(run, config, right, variant="gguf_q9")


@given(st.lists(st.integers(0, 9), max_size=6))
def test_different_prompts_are_distinguished(ids: list[int]) -> None:
    assert diagnosis.prompt_fault(ids, ids, 0) is None
    assert diagnosis.prompt_fault(ids, [0, *ids], 0) == ("double" if ids[:1] == [0] else "added")
    assert diagnosis.prompt_fault([0, *ids], ids, 0) == "missing"
    assert diagnosis.prompt_fault([*ids, 1], [*ids, 2], 0) == "template"


def test_a_few_flips_are_chance_and_many_are_not() -> None:
    assert not diagnosis.too_many(0, 24, 0.0)
    assert not diagnosis.too_many(2, 24, 0.0) and diagnosis.too_many(4, 24, 0.0)
    assert not diagnosis.too_many(4, 24, 0.2)


def test_the_count_of_prompt_tokens_shows_a_bos_where_nothing_else_does() -> None:
    def pair(more: int) -> tuple[Expected, Observed]:
        return Expected("q", [0, 5, 6], [7], "x", True), Observed(
            {"plain": Reply("x", prompt_tokens=3 + more, tokens=2)}
        )

    facts = ServerFacts("OpenAI-compatible", "m")
    for more, expected in ((0, []), (1, ["bos"]), (-1, ["bos"]), (7, ["template"])):
        found = diagnosis.diagnose(facts, [pair(more)] * 3, bos=0, max_new_tokens=8)
        assert [c.code for c in found] == expected


@settings(max_examples=50)
@given(
    st.lists(st.floats(-8, 8), min_size=4, max_size=30),
    st.lists(st.floats(-8, 8), min_size=30, max_size=30),
    st.integers(1, 4),
)
def test_a_listed_divergence_is_a_lower_bound(ours: list[float], theirs: list[float], count: int) -> None:
    p, q = (np.array(v[: len(ours)]) - np.logaddexp.reduce(v[: len(ours)]) for v in (ours, theirs))
    listed = {int(i): float(q[i]) for i in np.argsort(-q)[:count]}
    assert 0 <= listed_kl(p, listed) <= kl(p[None], q[None])[0] + 1e-6
    assert listed_kl(p, {int(i): float(p[i]) for i in np.argsort(-p)[:count]}) < 1e-9


def test_ollamas_parameters_are_read() -> None:
    text = 'num_ctx                        4096\nstop                           "<|end|>"\nstop   "x"\ntemperature 0.5'
    assert ollama_server.parameters(text) == {"num_ctx": 4096, "stop": ["<|end|>", "x"], "temperature": 0.5}
