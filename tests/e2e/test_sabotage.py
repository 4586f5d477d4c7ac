"""The gate against real faults, on what the embedded default answered with each (benchmarks/sabotage.py; tests/golden/sabotage/), scored, compared and gated again.

The baseline is the run without a fault and the scores of two further seeds; a changed metric needs no new training here.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.sabotage import CASES, GOLDEN, quantise_to_another_type
from harness import storage
from harness.config import Config, load
from harness.formats import gguf, llama
from harness.gating import baseline
from harness.prompt import Prompter, load_tokenizer, prompt_hash
from harness.records import GateResult, PredictionSet, Question
from harness.stages import compare, gate, predict, score
from harness.storage import RunFolder
from tests.helpers import scored_run, small_run

PROJECT = Path(__file__).parents[2]
MODEL = PROJECT / "data" / "tiny-llama3"
TEMPLATE = "You are an expert on the Constitution of India.\n\n### Question:\n{question}\n\n### Answer:\n"
"""The prompt of the kept answers."""
SETTINGS = [
    f"model.path={MODEL}",
    f"prompt.template={json.dumps(TEMPLATE)}",
    "score.metrics=[exact_match_normalized, token_f1, rougeL]",
    "score.resamples=100",
    "compare.resamples=1000",
]
VERDICTS = {
    "learning_rate": "regression",
    "shuffled_answers": "regression",
    "eos_unlabelled": "regression",
    "no_adapter": "regression",
    "double_bos_unseen": "inconclusive",  # little effect on this model: 7 to 12 of 359 answers change, and no score by a point
    "double_bos": "incomparable",
    "template": "incomparable",
    "batch": "pass",
    "slicing": "pass",
}

pytestmark = pytest.mark.e2e


class Bench:
    """The held-out questions, the answers that are kept, and a baseline of the run without a fault."""

    def __init__(self, root: Path):
        self.root, self.config, self.baseline = root, load("tiny", SETTINGS), root / "baseline.json"
        lines = gzip.decompress((GOLDEN / "questions.jsonl.gz").read_bytes()).splitlines()
        self.questions = [Question.model_validate_json(line) for line in lines]
        self.tokenizer = load_tokenizer(MODEL)

    def run(
        self, name: str, config: Config | None = None, prompts: Callable[[Prompter, str], list[int]] = Prompter.ids
    ) -> RunFolder:
        """A run with the answers that a case gave, asked in these prompts."""
        config = config or self.config
        prompter = Prompter(self.tokenizer, config.prompt.template)
        asked = {question.id: prompts(prompter, question.question) for question in self.questions}
        kept = golden("tiny") | golden(name)
        run = scored_run.make(self.root, {}, name=name, asked=self.questions)
        for variant, found in kept.items():
            answer_of = {question.id: answer for question, answer in zip(self.questions, found["answers"], strict=True)}
            scored_run.predict(
                run,
                variant,
                self.questions,
                lambda q, answer_of=answer_of: {
                    "text": answer_of[q.id][0],
                    "finish_reason": answer_of[q.id][1],
                    "prompt_ids": asked[q.id],
                    "prompt_hash": prompt_hash(asked[q.id]),
                },
                weights_sha256=found["weights_sha256"],
                cost=scored_run.COST.model_copy(update={"size_bytes": found["size_bytes"]}),
            )
        storage.write_json(run.predict_json, PredictionSet(fingerprint="f", variants=list(kept)))
        score.run(run, config)
        compare.run(run, config)
        return run

    def gate(self, run: RunFolder, config: Config | None = None) -> GateResult:
        return gate.run(run, config or self.config, baseline_file=self.baseline)

    def save(self, run: str, *further: str) -> None:
        first, *others = (baseline.snapshot(RunFolder(name, self.root), self.config) for name in (run, *further))
        baseline.save(self.baseline, baseline.with_trainings(first, others), self.config, confirm=lambda _: True)


def golden(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((GOLDEN / f"{name}.json.gz").read_bytes()))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("sabotage"))
    for name in ("tiny", "seed_1", "seed_2"):
        bench.run(name)
    bench.save("tiny", "seed_1", "seed_2")
    right = baseline.read(bench.baseline).variants["merged_16bit"].means["exact_match_normalized"]
    assert right == pytest.approx(0.610, abs=0.001), (
        "the kept answers are to other questions: tests/golden/sabotage/README.md"
    )
    return bench


def asked(name: str, config: Config) -> tuple[Config, Callable[[Prompter, str], list[int]]]:
    """A case's config and prompts."""
    changed = Config.model_validate(config.model_dump())
    for setting in CASES[name].settings:
        if setting.startswith("prompt."):
            changed = load("tiny", [*SETTINGS, setting])
    doubled = name == "double_bos"
    return changed, (lambda prompter, question: prompter.bos + prompter.ids(question)) if doubled else Prompter.ids


def test_every_case_has_its_answers_and_its_test() -> None:
    assert {*VERDICTS, "seed_1", "seed_2", "wrong_type"} == set(CASES)
    for name in ("tiny", *CASES):
        assert all(len(found["answers"]) == 359 for found in golden(name).values()), name
    assert sum(file.stat().st_size for file in GOLDEN.iterdir()) < 300_000


@pytest.mark.parametrize("name", VERDICTS)
def test_the_gate_sees_it(bench: Bench, name: str) -> None:
    result = bench.gate(bench.run(name, *asked(name, bench.config)))
    assert result.verdict == VERDICTS[name], result.reason
    assert result.exit_code == {"regression": 1, "incomparable": 3, "pass": 0, "inconclusive": 0}[result.verdict]
    if result.verdict == "incomparable":
        assert [line.partition(":")[0] for line in result.differs] == ["prompts"]


def test_must_improve_sees_the_one_variant_whose_training_was_not_applied(bench: Bench) -> None:
    """The negative control, on what a real untrained model answered."""
    result = gate.run(bench.run("no_adapter"), bench.config, baseline_file=bench.baseline, must_improve=True)
    found = {check.variant: check.verdict for check in result.checks if check.kind == "must_improve"}
    assert found.pop("adapter") == "regression" and set(found.values()) == {"pass"}


@pytest.mark.parametrize("seed, other", [("seed_1", "seed_2"), ("seed_2", "seed_1")])
def test_another_seed_does_not_fail(bench: Bench, seed: str, other: str) -> None:
    """A seed that is not in the baseline, which has only the other."""
    bench.save("tiny", other)
    try:
        result = bench.gate(RunFolder(seed, bench.root))
        assert (result.verdict, result.exit_code) == ("inconclusive", 0), result.reason
    finally:
        bench.save("tiny", "seed_1", "seed_2")


def test_a_file_of_another_type_is_seen_before_its_scores_fall(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live, on the base model: q4_0 under the name of q8_0. The answers of the fine-tuned one lost 1.7 points, which 359 questions leave undecided."""
    variants = ["merged_16bit", "gguf_q8_0"]
    chosen = {
        "predict.variants": variants,
        "export.formats": variants,
        "predict.max_new_tokens": 4,
        "predict.fidelity_questions": 12,
        "gate.alarms": {},
    }
    config = load("tiny", [*SETTINGS, *(f"{key}={json.dumps(value)}" for key, value in chosen.items())])
    asked = bench.questions[:12]
    results = []
    monkeypatch.setattr(llama, "plan", llama.plan)  # put back afterwards
    run = small_run.split(tmp_path, asked=asked)
    for name in ("right", "wrong"):
        file = tmp_path / f"{name}.gguf"
        gguf.write(MODEL, file, "q8_0")
        shutil.rmtree(run.merged_16bit, ignore_errors=True)
        small_run.exported(run, merged_16bit=MODEL, gguf_q8_0=file)
        for stage in (predict, score, compare):
            stage.run(run, config)
        if name == "right":
            baseline.save(tmp_path / "b.json", baseline.snapshot(run, config), config, confirm=lambda _: True)
            quantise_to_another_type()
        results.append(gate.run(run, config, baseline_file=tmp_path / "b.json"))
    found = [{check.name: check.verdict for check in result.checks} for result in results]
    assert [checks["divergence/gguf_q8_0"] for checks in found] == ["pass", "regression"]
    assert [result.exit_code for result in results] == [0, 1]
