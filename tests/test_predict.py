"""The predict stage: what each variant is asked, when an earlier answer is kept, and what an interruption or a failure leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from harness import backends, storage
from harness.backends import Completion, Execution, Facts, Generation, Source, batches
from harness.backends.replay import ReplayBackend
from harness.config import Config
from harness.errors import ArtifactError, ConfigError, ModelError
from harness.prediction.jobs import Job
from harness.prompt import Prompter, load_tokenizer
from harness.records import Prediction, PredictionManifest, Question, ScoreManifest, SplitManifest
from harness.stages import predict, score
from harness.storage import RunFolder
from tests.helpers import small_run
from tests.helpers.answering import GENERATION, LIMIT, answers, job, partial, recording, register, transformers
from tests.helpers.models import CORPUS, EOS_ID, VOCABULARY, edit_json


@pytest.fixture(scope="module")
def prompts(tiny_model: Path) -> list[list[int]]:
    """Beginnings of the model's sentences, of 2 to 19 tokens."""
    prompter = Prompter(load_tokenizer(tiny_model), "{question}")
    return [prompter.ids(text)[: 2 + (5 * i + k) % 18] for i, text in enumerate(CORPUS) for k in (0, 7)]


@pytest.fixture(scope="module")
def zero(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run.save_adapter(tmp_path_factory.mktemp("zero"), tiny_model, std=0.0)


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run.save_adapter(tmp_path_factory.mktemp("adapter"), tiny_model, std=0.5)


# ------------------------------------------------------------------------------------------------------------ batches


@given(
    lengths=st.lists(st.integers(1, 200), max_size=40),
    budget=st.integers(1, 2000),
    largest=st.integers(1, 9),
    new=st.integers(1, 50),
)
def test_batches_are_a_partition_within_the_budget(lengths: list[int], budget: int, largest: int, new: int) -> None:
    cut = batches(lengths, Execution(batch_tokens=budget, max_batch=largest), new)
    assert sorted(i for batch in cut for i in batch) == list(range(len(lengths)))
    assert cut == batches(lengths, Execution(batch_tokens=budget, max_batch=largest), new)
    for batch in cut:
        padded = (max(lengths[i] for i in batch) + new) * len(batch)
        assert len(batch) == 1 or (padded <= budget and len(batch) <= largest)
    assert [lengths[b[0]] for b in cut] == sorted((lengths[b[0]] for b in cut), reverse=True)


def test_batches_are_filled() -> None:
    assert batches([5, 9, 5, 5], Execution(batch_tokens=30, max_batch=9), 5) == [[1, 0], [2, 3]]
    assert batches([5] * 7, Execution(max_batch=3), 5) == [[0, 1, 2], [3, 4, 5], [6]]


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no backend 'vllm'; use one of transformers, llamacpp"):
        backends.find("vllm")


# ------------------------------------------------------------------------------------------------------- transformers


def test_a_batch_of_mixed_lengths_answers_as_one_by_one(tiny_model: Path, prompts: list[list[int]]) -> None:
    import torch

    assert len(set(map(len, prompts))) > 5
    model = transformers(Source(tiny_model))
    assert model.facts.execution["dtype"] == "float32"
    with torch.no_grad():
        together = [c.answer_ids for c in model.answer(prompts)]
        assert together == [model.answer([p])[0].answer_ids for p in prompts]
    assert len({tuple(a) for a in together}) > len(CORPUS)


def test_padding_is_on_the_left_and_masked(
    tiny_model: Path, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    model, seen = transformers(Source(tiny_model)), {}
    model.decoder = None
    generate = model.model.generate
    monkeypatch.setattr(model.model, "generate", lambda **arguments: seen.update(arguments) or generate(**arguments))
    with torch.no_grad():
        model.answer(prompts)
    for prompt, ids, mask in zip(prompts, seen["input_ids"].tolist(), seen["attention_mask"].tolist(), strict=True):
        assert ids[-len(prompt) :] == prompt
        assert mask == [0] * (len(ids) - len(prompt)) + [1] * len(prompt)


def test_a_zero_adapter_answers_as_the_base_and_a_trained_one_does_not(
    tiny_model: Path, zero: Path, adapter: Path, prompts: list[list[int]]
) -> None:
    plain = answers(Source(tiny_model), prompts)
    assert answers(Source(tiny_model, adapter=zero), prompts) == plain
    assert answers(Source(tiny_model, adapter=adapter), prompts) != plain


def test_a_zero_adapter_on_4_bits_answers_as_4_bits_alone(
    tiny_model: Path, zero: Path, adapter: Path, prompts: list[list[int]]
) -> None:
    plain = answers(Source(tiny_model, load_in_4bit=True), prompts)
    assert answers(Source(tiny_model, adapter=zero, load_in_4bit=True), prompts) == plain
    assert answers(Source(tiny_model, adapter=adapter, load_in_4bit=True), prompts) != plain


def test_a_model_that_asks_for_sampling_is_not_sampled(
    tiny_model: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    sampling = shutil.copytree(tiny_model, tmp_path / "m")
    edit_json(
        sampling / "generation_config.json",
        do_sample=True,
        temperature=5.0,
        top_k=0,
        repetition_penalty=5.0,
        max_new_tokens=2,
    )
    assert answers(Source(sampling), prompts) == answers(Source(tiny_model), prompts)


def test_every_end_token_stops(tiny_model: Path, prompts: list[list[int]]) -> None:
    plain = answers(Source(tiny_model), prompts)
    third = plain[0][3]
    early = answers(Source(tiny_model), prompts, replace(GENERATION, stop_ids=(third, EOS_ID)))
    assert early == [a[: a.index(third)] if third in a else a for a in plain]


def test_the_limit_is_distinguished_from_the_end(tiny_model: Path, prompts: list[list[int]]) -> None:
    import torch

    whole = Prompter(load_tokenizer(tiny_model), "{question}").ids(CORPUS[0])
    with torch.no_grad():
        ended, cut = transformers(Source(tiny_model)).answer([whole, whole[:5]])
    assert (ended.answer_ids, ended.finish_reason) == ([], "stop")
    assert (len(cut.answer_ids), cut.finish_reason) == (LIMIT, "length")


def test_a_model_that_cannot_be_loaded_is_a_model_error(tiny_model: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_model, tmp_path / "m")
    weights = load_file(broken / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"m: cannot be loaded: it lacks 1 tensors, 'model.norm.weight' among them; check that"
    ):
        transformers(Source(broken))
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelError, match=r"m: cannot be loaded.*; check that") as error:
        transformers(Source(broken))
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------- replay


def test_replay_gives_what_was_recorded(tiny_model: Path, prompts: list[list[int]], tmp_path: Path) -> None:
    manifest = predict.answer(job(tmp_path, tiny_model, prompts))
    rows = storage.read_records(RunFolder("r", tmp_path).prediction("v")[0], Prediction)
    tokenizer: Any = load_tokenizer(tiny_model)
    assert [r.answer_ids for r in rows] == [[65 + i % 26, 66] for i in range(len(prompts))]
    assert [r.logprobs for r in rows] == [[-0.5 - i] * 2 for i in range(len(prompts))]
    assert [r.text for r in rows] == [tokenizer.decode(r.answer_ids).strip() for r in rows]
    assert [r.id for r in rows] == [f"q{i}" for i in range(len(prompts))]
    assert [r.prompt_ids for r in rows] == prompts
    assert manifest.finish == {"stop": len(prompts)}
    assert manifest.cost.generated_tokens == 3 * len(prompts)
    assert manifest.cost.tokens_per_second == 3 / 0.25


def test_a_prompt_that_was_not_recorded_is_unscored(tiny_model: Path, prompts: list[list[int]], tmp_path: Path) -> None:
    recorded = job(tmp_path, tiny_model, prompts).source
    manifest = predict.answer(
        replace(job(tmp_path, tiny_model, [*prompts, [1, 2]]), source=Source(recording(recorded.path, prompts)))
    )
    assert manifest.finish == {"stop": len(prompts), "error": 1}


# -------------------------------------------------------------------------------------------------------- interruption


class Dying(ReplayBackend):
    """Is killed in its third batch."""

    asked = 0

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        Dying.asked += 1
        if Dying.asked == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(prompts)


class Counting(ReplayBackend):
    """Counts the questions it is asked."""

    asked = 0

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        Counting.asked += len(prompts)
        return super().answer(prompts)


@pytest.fixture
def killed(
    tiny_model: Path, prompts: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: None
) -> Iterator[Job]:
    """A job whose process was killed in its third batch of three."""
    register(monkeypatch, Dying)
    interrupted = job(tmp_path / "killed", tiny_model, prompts)
    with pytest.raises(
        ArtifactError, match=r"answered with v was killed by signal 9; run the same command again"
    ) as error:
        predict._in_own_process(interrupted, lambda _: None)
    assert "\n" not in str(error.value)
    assert not interrupted.lines.exists() and not interrupted.manifest.exists()
    Counting.asked = 0
    register(monkeypatch, Counting)
    yield interrupted
    whole = job(tmp_path / "whole", tiny_model, prompts)
    predict.answer(whole)
    assert interrupted.lines.read_bytes() == whole.lines.read_bytes()
    assert not partial(interrupted).exists()


def test_a_killed_process_resumes_where_it_stopped(killed: Job) -> None:
    predict.answer(killed)
    assert Counting.asked == len(killed.prompts) - 6


def test_a_torn_last_line_is_answered_again(killed: Job) -> None:
    partial(killed).write_bytes(partial(killed).read_bytes()[:-9])
    predict.answer(killed)
    assert Counting.asked == len(killed.prompts) - 3


def test_a_damaged_journal_is_started_again(killed: Job) -> None:
    partial(killed).write_bytes(b"\xff\x00" * 50)
    predict.answer(killed)
    assert Counting.asked == len(killed.prompts)


def test_a_journal_of_another_job_is_started_again(killed: Job) -> None:
    predict.answer(replace(killed, weights_sha256="other"))
    assert Counting.asked == len(killed.prompts)


# -------------------------------------------------------------------------------------------------------------- keys


def keys(run: RunFolder, config: Config) -> str:
    questions = storage.read_records(run.heldout_jsonl, Question)
    split = storage.read_record(run.split_json, SplitManifest)
    return next(predict.jobs(run, config, split.split_id, questions, ["base"])).key("1")


def test_the_key_changes_with_everything_that_decides_the_answers(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "m")
    run, config = small_run.split(tmp_path), small_run.config(model)
    seen = [keys(run, config)]
    assert keys(run, small_run.config(model, predict={"threads": 1}, score={"seed": 3})) == seen[0]
    seen.append(keys(run, small_run.config(model, prompt={"template": "Q: {question}\nA: "})))
    seen.append(keys(run, small_run.config(model, predict={"max_new_tokens": 13})))
    seen.append(keys(run, small_run.config(model, predict={"max_batch": 2})))
    seen.append(keys(small_run.split(tmp_path, asked=small_run.questions()[:4]), config))
    run = small_run.split(tmp_path)
    edit_json(model / "generation_config.json", eos_token_id=[EOS_ID, 7])
    seen.append(keys(run, config))
    edit_json(model / "tokenizer_config.json", eos_token=None)
    edit_json(model / "tokenizer_config.json", eos_token="<|begin_of_text|>")
    seen.append(keys(run, config))
    damaged = bytearray((model / "model.safetensors").read_bytes())
    damaged[-1] ^= 1
    (model / "model.safetensors").write_bytes(damaged)
    seen.append(keys(run, config))
    assert len(set(seen)) == len(seen)


def test_end_tokens_are_the_union(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "m")
    edit_json(model / "generation_config.json", eos_token_id=[5, 7])
    run = small_run.split(tmp_path)
    split = storage.read_record(run.split_json, SplitManifest)
    made = next(predict.jobs(run, small_run.config(model), split.split_id, small_run.questions(), ["base"]))
    assert made.generation.stop_ids == (5, 7, EOS_ID)


# ------------------------------------------------------------------------------------------------------------ the stage


def texts(run: RunFolder, variant: str) -> list[str]:
    return [p.text for p in storage.iter_records(run.prediction(variant)[0], Prediction)]


@pytest.fixture(scope="module")
def answered(
    tiny_model: Path, zero: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, Config]:
    """A run that answered with base, adapter, the base again as merged_16bit, and itself with a zero adapter."""
    root = tmp_path_factory.mktemp("answered")
    run = small_run.split(root)
    model = shutil.copytree(tiny_model, root / "m")
    small_run.trained(run, model, adapter)
    small_run.exported(run, merged_16bit=tiny_model)
    config = small_run.config(
        model,
        export={"formats": ["merged_16bit"]},
        predict={"variants": ["base", "adapter", "merged_16bit"]},
        train={"load_in_4bit": False},
    )
    predict.run(run, config)
    return run, config


def test_the_stage_answers_with_every_variant(answered: tuple[RunFolder, Config]) -> None:
    run, _ = answered
    assert storage.read_json(run.predict_json)["variants"] == ["base", "adapter", "merged_16bit"]
    assert texts(run, "merged_16bit") == texts(run, "base") != texts(run, "adapter")
    manifests = [
        storage.read_record(run.prediction(v)[1], PredictionManifest) for v in ("base", "adapter", "merged_16bit")
    ]
    for variant in ("base", "adapter", "merged_16bit"):
        for p in storage.iter_records(run.prediction(variant)[0], Prediction):
            assert (
                p.logprobs and len(p.logprobs) == len(p.answer_ids) and all(round(x, 4) == x <= 0 for x in p.logprobs)
            )
    assert len({m.prompts_sha256 for m in manifests}) == 1
    assert manifests[0].generation["temperature"] == 0.0
    assert all(m.n == len(small_run.QUESTIONS) and m.cost.peak_memory_bytes and m.lines_sha256 for m in manifests)


def test_log_probabilities_that_are_not_numbers_are_not_kept() -> None:
    def kept(logprobs: list[float] | None) -> list[float] | None:
        return Completion([], "stop", 0.0, logprobs=logprobs).rounded_logprobs()

    assert kept([-0.123456, 0.0]) == [-0.1235, 0.0] and kept([]) == []
    assert kept(None) is kept([-0.5, float("nan")]) is kept([float("-inf")]) is None


def test_an_unchanged_job_is_not_answered_again(answered: tuple[RunFolder, Config]) -> None:
    run, config = answered
    before = run.prediction("adapter")[0].stat().st_mtime_ns
    predict.run(run, config)
    assert run.prediction("adapter")[0].stat().st_mtime_ns == before


def test_two_runs_give_the_same_answers(answered: tuple[RunFolder, Config]) -> None:
    run, config = answered
    lines = run.prediction("base")[0]
    before = [p.model_dump(exclude={"seconds"}) for p in storage.iter_records(lines, Prediction)]
    predict.run(run, config, force=True, only=["base"])
    assert [p.model_dump(exclude={"seconds"}) for p in storage.iter_records(lines, Prediction)] == before
    assert storage.read_json(run.predict_json)["variants"] == ["base", "adapter", "merged_16bit"]


def test_damaged_answers_are_answered_again(answered: tuple[RunFolder, Config]) -> None:
    run, config = answered
    lines = run.prediction("base")[0]
    before = texts(run, "base")
    lines.write_bytes(lines.read_bytes()[:-20])
    predict.run(run, config, only=["base"])
    assert texts(run, "base") == before


def test_weights_overwritten_at_the_same_path_are_asked_again(
    answered: tuple[RunFolder, Config], adapter: Path
) -> None:
    from harness.formats import merged

    run, config = answered
    model = Path(config.model.path)
    before = texts(run, "base")
    merged.write_16bit(model, adapter, run.root / "other")
    original = (model / "model.safetensors").read_bytes()
    try:
        shutil.copyfile(run.root / "other" / "model.safetensors", model / "model.safetensors")
        predict.run(run, config, only=["base"])
        assert texts(run, "base") != before
    finally:
        (model / "model.safetensors").write_bytes(original)


def test_an_artifact_that_export_did_not_write_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    run = small_run.split(tmp_path)
    small_run.exported(run, merged_16bit=tiny_model)
    config = small_run.config(tiny_model, export={"formats": ["merged_16bit"]}, predict={"variants": ["merged_16bit"]})
    file = run.merged_16bit / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"merged_16bit: is damaged or was changed.*; run harness export again"):
        predict.run(run, config)
    shutil.rmtree(run.merged_16bit)
    with pytest.raises(ArtifactError, match=r"merged_16bit: is missing; run harness export"):
        predict.run(run, config)
    assert not run.predict_json.exists()


def test_an_adapter_that_training_did_not_write_is_refused(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    run = small_run.split(tmp_path)
    small_run.trained(run, tiny_model, adapter)
    small_run.save_adapter(run.adapter, tiny_model, std=0.3)
    with pytest.raises(ArtifactError, match=r"adapter: is not what training wrote"):
        predict.run(run, small_run.config(tiny_model, predict={"variants": ["adapter"]}))


def test_an_extra_model_that_is_not_there_is_named(tiny_model: Path, tmp_path: Path) -> None:
    config = small_run.config(
        tiny_model,
        predict={"variants": ["x"], "extra": {"x": {"backend": "transformers", "path": str(tmp_path / "no")}}},
    )
    with pytest.raises(ArtifactError, match=r"no: does not exist; correct predict.extra.x.path"):
        predict.run(small_run.split(tmp_path), config)


# -------------------------------------------------------------------------------------------------------------- errors


class Narrow(ReplayBackend):
    """Has a context of 24 tokens; fails on the prompts that end in token 0."""

    def __init__(self, source: Source, generation: Generation, execution: Execution):
        super().__init__(source, generation, execution)
        self.facts = Facts("narrow", context=24)

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        assert all(len(p) + LIMIT <= 24 for p in prompts)
        return [
            Completion([], "error", 0.1, error="no") if p[-1] == 0 else Completion([65], "stop", 0.1) for p in prompts
        ]


def test_a_prompt_longer_than_the_context_is_counted_and_not_asked(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, Narrow)
    manifest = predict.answer(job(tmp_path, tiny_model, [[1] * 13, [1] * 12, [1] * 40]))
    rows = storage.read_records(RunFolder("r", tmp_path).prediction("v")[0], Prediction)
    assert [(r.finish_reason, r.prompt_cut, r.error) for r in rows] == [
        ("error", True, "prompt of 13 tokens; the context leaves 12"),
        ("stop", False, None),
        ("error", True, "prompt of 40 tokens; the context leaves 12"),
    ]
    assert manifest.prompts_cut == 2 and manifest.finish == {"error": 2, "stop": 1}


def test_a_question_that_failed_is_unscored_and_not_zero(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: None
) -> None:
    register(monkeypatch, Narrow)
    tokenizer: Any = load_tokenizer(tiny_model)
    pairs = [(tokenizer.decode([70 + i, 0 if i == 2 else 80]), "x") for i in range(6)]
    run = small_run.split(tmp_path, asked=small_run.questions(pairs))
    recorded = recording(tmp_path / "recorded.jsonl", [[1]])
    config = small_run.config(
        tiny_model,
        prompt={"template": "{question}"},
        predict={
            "variants": ["x"],
            "max_new_tokens": LIMIT,
            "extra": {"x": {"backend": "replay", "path": str(recorded)}},
        },
        score={"resamples": 100},
    )
    assert predict.run(run, config)["x"].finish == {"stop": 5, "error": 1}
    score.run(run, config)
    metric = storage.read_record(run.score("x")[1], ScoreManifest).metrics["exact_match"]
    assert (metric.n, metric.n_unscored) == (5, 1)


class Failing(ReplayBackend):
    def __init__(self, source: Source, generation: Generation, execution: Execution):
        raise ModelError("cannot be loaded", "hint it", file=source.path)


class Buggy(ReplayBackend):
    def __init__(self, source: Source, generation: Generation, execution: Execution):
        raise ZeroDivisionError


def test_an_error_in_the_child_comes_back_whole(
    tiny_model: Path, prompts: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: None
) -> None:
    register(monkeypatch, Failing)
    asked = job(tmp_path, tiny_model, prompts)
    with pytest.raises(ModelError) as error:
        predict._in_own_process(asked, lambda _: None)
    assert str(error.value) == f"{asked.source.path}: cannot be loaded; hint it"
    assert (error.value.problem, error.value.hint) == ("cannot be loaded", "hint it")


def test_a_bug_in_the_child_keeps_its_traceback(
    tiny_model: Path,
    prompts: list[list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    forked: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    register(monkeypatch, Buggy)
    with pytest.raises(RuntimeError, match="see its traceback above"):
        predict._in_own_process(job(tmp_path, tiny_model, prompts), lambda _: None)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_every_answer_is_on_disk_before_the_next_batch(
    tiny_model: Path, prompts: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class Watching(ReplayBackend):
        def answer(self, prompts: Sequence[Sequence[int]]) -> list[Completion]:
            seen.append(len(partial(asked).read_text().splitlines()) - 1)
            return super().answer(prompts)

    monkeypatch.setattr(predict.backends, "find", lambda _: Watching)
    asked = job(tmp_path, tiny_model, prompts[:7])
    predict.answer(asked)
    assert seen == [0, 3, 6]
    assert json.loads(asked.manifest.read_text())["n"] == 7


def test_token_ids_beyond_the_vocabulary_do_not_arise(tiny_model: Path, prompts: list[list[int]]) -> None:
    assert all(0 <= token < VOCABULARY for row in answers(Source(tiny_model), prompts) for token in row)
