"""What a new user sees: the first line, the first prompt, a note where the default does not fit, and the doctor's findings on the shipped configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.cli.selection import _is_foreign
from harness.config import CONFIGS, load
from harness.doctor import known_models, training_time
from harness.doctor.checks import _model, _prompt, _sizes
from harness.prompt import Prompter, load_tokenizer
from harness.questions.rows import Row
from harness.records import PromptForm
from harness.report.provenance_section import ways_of_asking
from harness.training.plan import Shape
from tests.helpers.qa_files import make

READY = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in ("tiny", "evaluate"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "medical.json").write_text(json.dumps(make(30)))
    return tmp_path


def split(*settings: str) -> Any:
    options = [word for setting in settings for word in ("--set", setting)]
    return CliRunner().invoke(app, ["split", "--qa", "medical.json", "--run", "mine", *options])


# ------------------------------------------------------------------------------------------------- the default, elsewhere


def test_another_file_is_asked_and_scored_without_the_law() -> None:
    config, own = load("tiny", qa="medical.json"), load("tiny")
    assert config.score.normalizer == "plain" and own.score.normalizer == "legal"
    assert "citation_f1" in own.score.metrics and "citation_f1" not in config.score.scored()
    assert "citation_f1" not in config.gate.metrics
    assert config.prompt.template == "Question: {question}\nAnswer: "
    assert _is_foreign(config) and not _is_foreign(own)
    assert not _is_foreign(load("smollm2-135m", qa="medical.json"))


def test_split_says_what_was_chosen_and_shows_the_first_prompt_once(folder: Path) -> None:
    first = split()
    assert first.exit_code == 0, first.output
    opening, note, *_ = first.stdout.splitlines()
    assert opening.endswith("prompt: text 'Question: {question} Answer:' (auto: the tokenizer has no chat template)")
    assert note.startswith("note: ") and "knows only the Constitution of India" in note
    kept = json.loads((folder / "runs/mine/split/prompt.json").read_text())["prompt"]
    assert "first prompt (text, " in first.stdout and kept["opening"] + kept["first"] in first.stdout
    train = (folder / "runs/mine/split/train.jsonl").read_text().splitlines()
    assert kept["first"] == f"Question: {json.loads(train[0])['question']}\nAnswer: "
    assert "first prompt" not in split().stdout
    assert "Say: " in split("prompt.template='Say: {question}'").stdout


def test_split_without_the_model_here_says_when_the_prompt_is_shown(folder: Path) -> None:
    result = split("model.path=hub:nobody/absent")
    assert result.exit_code == 0, result.output
    assert "first prompt is shown when hub:nobody/absent is here" in result.stdout


def test_chat_on_a_tokenizer_without_a_template_is_refused_at_once(folder: Path) -> None:
    result = split("prompt.format=chat")
    assert result.exit_code == 2
    assert "the tokenizer has no chat template; use an instruction-tuned model" in result.stderr


# ------------------------------------------------------------------------------------------------------ the ready configs


@pytest.mark.parametrize("name", READY)
def test_the_doctor_knows_the_size_and_the_gate_of_each_ready_config(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    config = load(name)
    gated = config.model.path.startswith(("meta-llama/", "google/", "mistralai/"))
    _, (finding,) = _model(config)
    assert "downloaded on the first use" in finding.value
    assert ("neither HF_TOKEN is set" in finding.value and "accept its licence on" in finding.hint) == gated
    shape, lengths = _sizes(config, None, [Row("q", 1, "Who?", "He.")])
    assert shape is not None and lengths
    said = f"{shape.projections + shape.vocabulary * shape.hidden:,}"
    billions = {"smollm2-135m": 0.135, "llama3.2-3b-instruct": 3.2, "qwen3-4b": 4.0, "gemma3-4b": 3.9, "phi4-mini": 3.8}
    expected = billions.get(name, 7.2 if "mistral" in name else 8.0)
    assert shape.projections + shape.embeddings == pytest.approx(expected * 1e9, rel=0.08), said


def test_a_token_is_said_to_be_set_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = known_models.gate(load("llama3.1-8b-instruct").model)
    assert found is not None and "a token is set" in found[0] and "hf_secret" not in "".join(found)
    assert known_models.gate(load("qwen3-4b").model) is None


def test_the_prompt_is_checked_against_the_tokenizer(tiny_model: Path) -> None:
    chat = load("tiny", [f"model.path={tiny_model}", "prompt.format=chat"])
    assert (_prompt(chat, tiny_model).status, _prompt(chat, None).status) == ("fail", "ok")
    assert "instruction-tuned" in _prompt(chat, tiny_model).hint
    text = _prompt(load("tiny", [f"model.path={tiny_model}"]), tiny_model)
    assert text.status == "ok" and "the tokenizer has no chat template" in text.value


ROWS = [Row(str(at), at, "x" * 200, "y" * 180) for at in range(4082)]


def seconds(config: str, device: str, *cards: str) -> float:
    """Seconds of a step in the doctor's output."""
    chosen = load(config, ["device=auto"])
    shape = known_models.shape(chosen.model)
    found = training_time.finding(chosen, shape, ROWS, device, [{"name": card} for card in cards])
    assert found is not None
    return float(found.value.rpartition("tokens, ")[2].partition(" s each")[0])


def test_the_training_time_is_near_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert seconds("llama3-8b", "cuda", "NVIDIA H200") == pytest.approx(0.076, rel=0.5)  # docs/speed.md
    assert seconds("smollm2-135m", "cuda", "NVIDIA H100 80GB HBM3") == pytest.approx(0.076, rel=0.5)
    assert 5 <= seconds("smollm2-135m", "cpu") <= 10
    assert seconds("llama3-8b", "cuda", "Tesla T4") > 10 * seconds("llama3-8b", "cuda", "NVIDIA H200")


def test_an_unknown_card_and_a_run_without_training_get_no_number() -> None:
    config = load("llama3-8b")
    shape = known_models.shape(config.model)
    found = training_time.finding(config, shape, ROWS, "cuda", [{"name": "Some Card"}])
    assert found is not None and found.value == "not estimated: the speed of Some Card is not listed"
    judged = load("llama3-8b", ["data.test=test.json", "data.trained_on=train.json"])
    assert training_time.finding(judged, shape, ROWS, "cpu", []) is None
    assert training_time.finding(config, None, ROWS, "cpu", []) is None
    assert isinstance(shape, Shape)


# -------------------------------------------------------------------------------------------------------------- the report


def test_the_report_names_each_way_of_asking_once(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    ours: PromptForm = Prompter(tokenizer, "Q: {question}\nA:").form("Who?")
    other = Prompter(tokenizer, "{question}").form("Who?")
    found = ways_of_asking({"base": ours, "adapter": ours, "mine": other})
    assert found == [("base, adapter", ours), ("mine", other)]
