"""Semantic similarity: the message without package or model, the score of given embeddings, and, where it is installed, the real package."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from harness import cli, storage
from harness.config import Config
from harness.errors import ConfigError, ModelError
from harness.metrics import find, semantic
from harness.metrics.semantic import SemanticSimilarity
from harness.records import Comparison, ScoreManifest
from harness.stages import compare, score
from tests.helpers import scored_run

VECTORS = {"north": (1.0, 0.0), "north-east": (0.6, 0.8), "east": (0.0, 1.0), "south": (-1.0, 0.0)}


class Compass:
    """Replaces SentenceTransformer: texts are directions, and each requested batch is recorded."""

    asked: list[list[str]]

    def __init__(self, path: str, **options: Any):
        assert options["device"] == "cpu"
        self.asked = Compass.asked = []

    def double(self) -> Compass:
        return self

    def eval(self) -> Compass:
        return self

    def encode(self, texts: list[str], **options: Any) -> np.ndarray:
        assert options["normalize_embeddings"] and options["batch_size"] > 1
        self.asked.append(texts)
        return np.array([VECTORS.get(text, (0.0, 1.0)) for text in texts])


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of a model; the faked package loads a Compass."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Compass))
    monkeypatch.setattr(semantic, "version", lambda name: "6.2.0")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def no_package(name: str) -> str:
    raise PackageNotFoundError(name)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_it_is_off_by_default_and_on_with_a_model(tmp_path: Path, model: Path) -> None:
    run = scored_run.make(tmp_path, {"base": lambda q: q.answer, "adapter": lambda q: "nothing"})
    score.run(run, scored_run.CONFIG)
    assert "semantic_similarity" not in storage.read_record(run.score("base")[1], ScoreManifest).metrics
    config = Config.model_validate(
        {"score": {"resamples": 100, "semantic_model": str(model)}, "compare": {"resamples": 100}}
    )
    score.run(run, config)
    value = storage.read_record(run.score("base")[1], ScoreManifest).metrics["semantic_similarity"]
    assert (value.value, value.signature) == (1, find("semantic_similarity", model=str(model)).signature)
    compare.run(run, config)
    assert "semantic_similarity" in {p.metric for p in storage.read_record(run.comparison_json, Comparison).pairs}


@pytest.mark.parametrize("fault", ["package", "model", "damaged"])
def test_without_package_or_model_one_line_says_so_before_anything_is_scored(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    run = scored_run.make(tmp_path, {"base": lambda q: q.answer})
    monkeypatch.chdir(tmp_path)
    path, said = str(model), "sentence-transformers is not installed"
    if fault == "package":
        monkeypatch.setattr(semantic, "version", no_package)
    elif fault == "model":
        path, said = "./nowhere", "nowhere: is not a folder"
    else:
        monkeypatch.setattr(sys.modules["sentence_transformers"], "SentenceTransformer", lambda *_, **__: 1 / 0)
        said = "is not a sentence-transformers model that can be loaded (ZeroDivisionError"
    result = CliRunner().invoke(cli.app, ["score", "--run", run.name, "--set", f"score.semantic_model={path}"])
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0] and "Traceback" not in result.output
    assert not run.scores.exists()


def test_a_name_that_no_hub_gives_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def offline(name: str, **_: Any) -> str:
        asked.append(name)
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    for name, full in (("owner/model", "owner/model"), ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")):
        with pytest.raises(
            ModelError, match=rf"{name}: is not a folder, and cannot be fetched .*ConnectionError.*score.semantic_model"
        ):
            SemanticSimilarity(name)
        assert asked[-1] == full


def test_the_metric_without_a_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs score\.semantic_model"):
        Config.model_validate({"score": {"metrics": ["semantic_similarity"]}})
    with pytest.raises(ConfigError, match="has no model"):
        find("semantic_similarity").score_one("a", ["b"])


# ------------------------------------------------------------------------------------------------------------- scores


def test_scores_by_hand(model: Path) -> None:
    metric = SemanticSimilarity(str(model))
    # Cosines 1, 0.6, 0 and -1, which is clipped.
    assert [metric.score_one("north", [other]) for other in VECTORS] == [1, 0.6, 0, 0]
    assert metric.score_one("north", ["east", "north-east", "south"]) == 0.6
    assert metric.score_one(" north\n", ["north"]) == 1
    assert (metric.score_one("", ["north"]), metric.score_one(" ", [""]), metric.score_one("north", [])) == (0, 1, None)


def test_each_text_is_embedded_once_and_in_batches(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = SemanticSimilarity(str(model))
    metric.score_all(["north", "east", "north", ""], [["south"], ["east"], ["south", "north-east"], ["x"]])
    assert Compass.asked == [["east", "north", "north-east", "south", "x"]]
    metric.score_all(["north"], [["west"]])
    assert Compass.asked[1:] == [["west"]]
    monkeypatch.setattr(semantic, "KEPT", 2)
    assert metric.score_all(["north"], [["north-east"]]) == [0.6]
    assert list(metric._known) == ["north", "north-east"]


def test_the_signature_names_the_package_and_the_model(model: Path) -> None:
    before = SemanticSimilarity(str(model)).signature
    assert "lib:sentence-transformers-6.2.0|model:" in before
    (model / ".cache").mkdir()
    (model / ".cache" / "download.lock").write_text("")
    assert SemanticSimilarity(str(model)).signature == before
    (model / "model.safetensors").write_bytes(b"others")
    assert SemanticSimilarity(str(model)).signature != before


@pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="the extra `semantic` is not installed")
def test_the_real_package(tmp_path: Path) -> None:
    """A small random BERT: a text has one embedding whatever it is batched with, and equals itself."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = "[PAD] [UNK] [CLS] [SEP] [MASK] article the president of india governor state life and liberty".split()
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path / "bert")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    SentenceTransformer(modules=[Transformer(str(tmp_path / "bert")), Pooling(32)], device="cpu").save(
        str(tmp_path / "model")
    )
    predictions = [" ".join(words[5 : 5 + n]) for n in range(1, 10)] * 5
    references = [[" ".join(words[14 - n :])] for n in range(1, 10)] * 5
    together = SemanticSimilarity(str(tmp_path / "model")).score_all(predictions, references)
    alone = SemanticSimilarity(str(tmp_path / "model"))
    assert [alone.score_one(p, r) for p, r in zip(predictions, references, strict=True)] == together
    assert all(score is not None and 0 <= score < 1 for score in together[:8])
    assert alone.score_one("the president", ["the president"]) == 1
