"""One entry and one class add a metric, a format or a backend: every derived list has it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness import backends, formats, metrics, registry, variants
from harness.analysis import fidelity
from harness.backends import Execution, Generation, Source
from harness.config import Config
from harness.formats import quantize
from harness.registry import BackendFacts, MetricFacts
from harness.report import headline, sections
from harness.stages import compare, score
from tests.helpers import scored_run
from tests.helpers.gguf_files import gguf_types
from tests.helpers.scored_run import CONFIG


class Length(metrics.Metric):
    """A new metric: whether the answer is as long as the reference."""

    name = "length"
    description = "Equal length."

    def score_pair(self, prediction: str, reference: str) -> float:
        return float(len(prediction) == len(reference))


class Echo:
    """A new backend."""

    def __init__(self, source: Source, generation: Generation, execution: Execution):
        self.url = source.url


def test_importing_the_facts_imports_none_of_the_things() -> None:
    heavy = "numpy torch transformers rouge_score pandas evaluate datasets gguf xllamacpp httpx"
    code = (
        "import sys; from harness.config import Config; from harness import backends, formats, metrics; Config()\n"
        f"print([m for m in '{heavy}'.split() if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", registry.METRICS)
def test_the_class_of_a_metric_has_the_name_of_its_entry(name: str) -> None:
    assert metrics.find(name).name == name


@pytest.mark.parametrize("name", variants.exported())
def test_every_format_has_a_writer_and_a_size(name: str) -> None:
    assert callable(formats.find(name))
    assert variants.VARIANTS[name].size_bound > variants.VARIANTS[name].bits / 32


def test_a_metric_is_one_class_and_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    facts = MetricFacts(f"{__name__}:Length", "Same length", summary=True, headline=9, binary=True)
    monkeypatch.setitem(registry.METRICS, "length", facts)
    assert Config().score.metrics[-1] == "length" and Config().gate.metrics[-1] == "length"
    run = scored_run.make(tmp_path, {"base": lambda q: "x", "adapter": lambda q: q.answer})
    config = CONFIG.model_copy(update={"score": CONFIG.score.model_copy(update={"metrics": ["length", "token_f1"]})})
    score.run(run, config)
    found = compare.run(run, config)
    assert found.variants["adapter"].metrics["length"].value == 1
    assert {b.metric for b in found.breakdowns} == {"length", "token_f1"}
    assert next(p for p in found.pairs if p.metric == "length").p_mcnemar is not None
    assert sections.metrics_of(found) == ["token_f1", "length"]
    assert registry.metric_inline("length") == "same length" and headline.primary_metric(found) == "token_f1"


def test_a_gguf_type_is_one_entry_beside_its_quantiser(monkeypatch: pytest.MonkeyPatch) -> None:
    new = replace(variants.VARIANTS["gguf_q4_0"], name="gguf_q1_x", label="GGUF Q1_X", default=True, max_loss=0.5)
    monkeypatch.setitem(variants.VARIANTS, new.name, new)
    monkeypatch.setitem(quantize.FILE_TYPES, "q1_x", quantize.FILE_TYPES["q4_0"])
    config = Config()
    assert new.name in config.export.formats and new.name in config.predict.variants
    assert config.gate.fidelity[new.name] == 0.5
    assert variants.pairs(["base", "adapter", new.name])[-1] == (new.name, "adapter")
    assert fidelity.steps(["merged_16bit", "gguf_q8_0", new.name])[-1] == (new.name, "gguf_q8_0")
    assert formats.find(new.name) is formats.find("gguf_q8_0")
    assert variants.label(new.name) == "GGUF Q1_X" and set(gguf_types()) == set(quantize.FILE_TYPES)


def test_a_backend_is_one_class_and_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BACKENDS, "echo", BackendFacts(f"{__name__}:Echo", address="url"))
    config = Config.model_validate({"predict": {"extra": {"mine": {"backend": "echo", "path": "http://x"}}}})
    assert config.predict.extra["mine"].backend == "echo"
    assert backends.find("echo") is Echo


def test_every_metric_is_said_in_plain_words() -> None:
    assert set(registry.METRICS) <= set(registry.IN_PLAIN_WORDS)
