"""Fidelity and noise: the figures computed manually, what predict measures and when again, and what compare derives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from harness import storage
from harness.analysis import fidelity
from harness.backends import Completion
from harness.backends.transformers import TransformersBackend
from harness.config import Config
from harness.errors import ArtifactError
from harness.formats import gguf
from harness.prediction import fidelity_probe
from harness.records import Comparison, PredictionManifest, Question, SplitManifest
from harness.stages import compare, predict, score
from harness.storage import RunFolder
from tests.helpers import scored_run, small_run
from tests.helpers.models import edit_json

VARIANTS = ["base", "merged_16bit", "gguf_f16", "gguf_q4_k_m"]
N = len(small_run.QUESTIONS)


# ---------------------------------------------------------------------------------------------------------------- figures


def test_divergence_by_hand() -> None:
    # KL([1/2, 1/2] || [1/4, 3/4]) = 1/2 ln 2 + 1/2 ln 2/3 = 1/2 ln 4/3; of equal distributions 0.
    half, quarter = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    one = 0.5 * np.log(4 / 3)
    assert fidelity.kl(half, quarter) == pytest.approx([one])
    assert fidelity.kl(quarter, half) == pytest.approx([0.25 * np.log(0.5) + 0.75 * np.log(1.5)])
    found = fidelity.divergence([np.concatenate([half, quarter]), half], [np.concatenate([quarter, quarter]), quarter])
    assert found is not None
    # Three positions: one, 0, one; argmax 0 against 1, 1 against 1, 0 against 1.
    assert (found.mean_kl, found.p99_kl, found.top1_agreement, found.positions) == pytest.approx(
        (2 / 3 * one, one, 1 / 3, 3)
    )


def test_what_llama_cpp_prints_by_hand() -> None:
    """Two questions of two positions: KL one, 0 | one, one; the reference says token 1 each time, by 1/2 against 3/4 or as probable."""
    half, quarter = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    one, tokens = 0.5 * np.log(4 / 3), [np.array([1, 1]), np.array([1, 1])]
    found = fidelity.divergence(
        [np.concatenate([half, quarter]), np.concatenate([half, half])],
        [np.concatenate([quarter, quarter]), np.concatenate([quarter, quarter])],
        tokens,
    )
    assert found is not None
    assert (found.median_kl, found.max_kl, found.rms_dp) == pytest.approx((one, one, (3 / 4) ** 0.5 / 4))
    assert found.p999_kl == pytest.approx(one)
    # Means of the questions one/2 and one, of equal size: standard error |one - one/2| / 2, t with one degree of freedom 12.706.
    low, high = found.intervals["mean_kl"]
    assert (low, high) == pytest.approx((0.0, 3 / 4 * one + 12.706 * one / 4), rel=1e-4)
    assert found.intervals["rms_dp"][1] == pytest.approx((3 / 64 + 12.706 * 1 / 64) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("within", [0.0, 0.9])
def test_intervals_hold_where_positions_depend_on_each_other(within: float) -> None:
    """Of 400 samples of 25 questions with 16 positions each, 95% intervals of the mean miss it in about 5%, dependent or not."""
    random = np.random.default_rng(0)
    missed = 0
    for _ in range(400):
        common = random.normal(size=(25, 1)) * within**0.5
        values = np.exp(0.5 * (common + random.normal(size=(25, 16)) * (1 - within) ** 0.5))
        found = fidelity._interval(list(values))
        assert found is not None
        missed += not found[0] <= np.exp(0.125) <= found[1]
    assert missed <= 0.09 * 400
    assert fidelity._interval([np.ones(4)]) is None


def test_the_99th_percentile_is_of_positions() -> None:
    # Of 101 positions it is the second largest value.
    p, q = np.log(np.full((101, 2), 0.5)), np.log(np.full((101, 2), 0.5))
    q[[3, 7]] = np.log([[0.25, 0.75], [0.1, 0.9]])
    found = fidelity.divergence([p], [q])
    assert found is not None and found.p99_kl == pytest.approx(0.5 * np.log(4 / 3))


def test_a_probability_of_nothing_is_no_infinity() -> None:
    rows = np.array([[0.0, -np.inf, -3.4e38]], dtype=np.float32)
    assert fidelity.kl(rows, rows) == [0]
    assert fidelity.kl(np.log([[0.5, 0.5, 1e-9]]), rows)[0] == pytest.approx(
        0.5 * -fidelity.LEAST - np.log(2), rel=1e-6
    )


def test_float32_rounding_makes_no_divergence() -> None:
    exact = np.log(np.random.default_rng(0).dirichlet(np.ones(2048), 50))
    assert fidelity.kl(exact, exact.astype(np.float32)).max() < 1e-12


@given(arrays.arrays(np.float32, (2, 3, 5), elements=st.floats(-200, 20, width=32)))
def test_divergence_is_never_negative_and_zero_of_equals(logits: np.ndarray) -> None:
    assert (fidelity.kl(logits[0], logits[1]) >= 0).all()
    assert (fidelity.kl(logits[0], logits[0]) == 0).all()


def test_other_vocabularies_are_refused_and_nothing_is_none() -> None:
    with pytest.raises(ValueError, match="shapes"):
        fidelity.kl(np.zeros((1, 3)), np.zeros((1, 4)))
    assert fidelity.divergence([], []) is None
    assert fidelity.divergence([np.empty((0, 3))], [np.empty((0, 3))]) is None


def test_answers_by_hand() -> None:
    left, right = [[1, 2, 3, 4], [1, 2], [], [5], [9, 2]], [[1, 2, 9, 4], [1, 2], [], [5, 6], [1, 2]]
    assert fidelity.token_agreement(left, right) == pytest.approx((2 / 4 + 1 + 1 + 1 / 2 + 0) / 5)
    assert fidelity.identical_share(["a", "b", ""], ["a", "c", ""]) == pytest.approx(2 / 3)
    assert fidelity.token_agreement([], []) is fidelity.identical_share([], []) is None
    assert fidelity.flip_rate(["a", "b", "c", "d"], ["a", "b", "c", "x"]) == 0.25
    assert fidelity.flip_rate([], []) == 0


@given(st.lists(st.text(max_size=8), unique=True, max_size=30), st.integers(0, 40), st.randoms())
def test_the_subset_does_not_depend_on_the_order(ids: list[str], size: int, random: Any) -> None:
    chosen = fidelity.subset(ids, size)
    assert len(chosen) == min(size, len(ids)) and chosen == sorted(chosen)
    shuffled = random.sample(ids, len(ids))
    assert {ids[i] for i in chosen} == {shuffled[i] for i in fidelity.subset(shuffled, size)}


def test_each_format_against_the_merged_one_and_the_one_before_it() -> None:
    everything = ["base", "gguf_q4_k_m", "adapter", "gguf_q8_0", "merged_4bit", "merged_16bit", "gguf_f16", "another"]
    assert fidelity.steps(everything) == [
        ("merged_16bit", "adapter"),
        ("merged_4bit", "merged_16bit"),
        ("merged_4bit", "adapter"),
        ("gguf_f16", "merged_16bit"),
        ("gguf_q8_0", "merged_16bit"),
        ("gguf_q8_0", "gguf_f16"),
        ("gguf_q4_k_m", "merged_16bit"),
        ("gguf_q4_k_m", "gguf_q8_0"),
    ]
    assert fidelity.steps(["adapter", "gguf_q8_0"]) == [("gguf_q8_0", "adapter")]
    assert fidelity.steps(["merged_4bit", "gguf_f16"]) == []
    assert fidelity.steps(["adapter", "merged_4bit", "gguf_f16"]) == [
        ("merged_4bit", "adapter"),
        ("gguf_f16", "adapter"),
    ]
    assert fidelity.steps(["base", "adapter"]) == []


# -------------------------------------------------------------------------------------------------------------- the stages


def config(model: Path, questions: int = 24, **changes: Any) -> Config:
    return small_run.config(
        model,
        export={"formats": VARIANTS[1:]},
        predict={"variants": VARIANTS, "fidelity_questions": questions, **changes},
        score={"resamples": 100},
        compare={"resamples": 100},
    )


@pytest.fixture(scope="module")
def answered(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run whose variants answered and were measured; merged_16bit is the base itself."""
    root = tmp_path_factory.mktemp("measured")
    run = small_run.split(root)
    files = {kind: root / f"{kind}.gguf" for kind in ("f16", "q4_k_m")}
    for kind, file in files.items():
        gguf.write(tiny_model, file, kind)
    small_run.exported(run, merged_16bit=tiny_model, gguf_f16=files["f16"], gguf_q4_k_m=files["q4_k_m"])
    predict.run(run, config(tiny_model))
    return run


@pytest.fixture(scope="module")
def compared(tiny_model: Path, answered: RunFolder) -> Comparison:
    score.run(answered, config(tiny_model))
    return compare.run(answered, config(tiny_model))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """(variant, whether its answers were kept) of every process that is started."""
    seen: list[tuple[str, bool]] = []
    real = predict._in_own_process

    def watched(job: Any, probe: Any, kept: Any, also: Any) -> PredictionManifest:
        seen.append((job.variant, kept is not None))
        return real(job, probe, kept, also)

    monkeypatch.setattr(predict, "_in_own_process", watched)
    return seen


def manifest_of(run: RunFolder, variant: str) -> PredictionManifest:
    return storage.read_record(run.prediction(variant)[1], PredictionManifest)


def npz(run: RunFolder, variant: str) -> Path:
    return run.prediction(variant)[0].with_suffix(fidelity.SUFFIX)


def test_a_quantisation_shows_where_16_bits_do_not(compared: Comparison) -> None:
    rows = {(row["left"], row["right"]): row for row in compared.fidelity}
    assert list(rows) == [("gguf_f16", "merged_16bit"), ("gguf_q4_k_m", "merged_16bit"), ("gguf_q4_k_m", "gguf_f16")]
    f16, q4 = rows["gguf_f16", "merged_16bit"], rows["gguf_q4_k_m", "merged_16bit"]
    assert 0 <= f16["mean_kl"] < 1e-4 < q4["mean_kl"] <= q4["p99_kl"]
    assert f16["top1_agreement"] >= q4["top1_agreement"] and f16["positions"] == q4["positions"] > N
    assert f16["n"] == N and 0 <= q4["identical"] <= q4["token_agreement"] <= 1


def test_the_log_probabilities_are_distributions_over_the_reference(tiny_model: Path, answered: RunFolder) -> None:
    with np.load(npz(answered, "merged_16bit"), allow_pickle=False) as found:
        assert sorted(found["ids"]) == sorted(q.id for q in small_run.questions())
        assert (
            found["lengths"].sum() == len(found["logprobs"])
            and found["lengths"].max() <= fidelity_probe.REFERENCE_TOKENS
        )
        assert np.exp(found["logprobs"]).sum(axis=1) == pytest.approx(1, abs=1e-4)
    assert npz(answered, "base").read_bytes() == npz(answered, "merged_16bit").read_bytes()


def test_every_variant_has_a_noise_row(compared: Comparison) -> None:
    assert list(compared.noise) == VARIANTS
    assert all(0 <= row["flip_rate"] <= 1 and row["n"] == N for row in compared.noise.values())
    assert compared.noise["base"]["how"] == "batch: 1 against 64 at most"
    assert compared.noise["gguf_f16"]["how"].startswith("slots: 1 against ")


def test_what_was_measured_is_not_measured_again(
    tiny_model: Path, answered: RunFolder, started: list[tuple[str, bool]]
) -> None:
    predict.run(answered, config(tiny_model))
    predict.run(answered, config(tiny_model, questions=0))
    assert started == []


@pytest.mark.parametrize("lost", ["measurement", "file", "bytes"])
def test_what_is_missing_is_measured_without_answering_again(
    tiny_model: Path, answered: RunFolder, started: list[tuple[str, bool]], lost: str
) -> None:
    before, lines, file = manifest_of(answered, "base"), answered.prediction("base")[0], npz(answered, "base")
    written = lines.stat().st_mtime_ns
    if lost == "measurement":
        edit_json(answered.prediction("base")[1], measured=None, logprobs_sha256=None, noise=None)
    elif lost == "file":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-9])
    predict.run(answered, config(tiny_model, questions=0), only=["base"])
    assert started == []
    predict.run(answered, config(tiny_model))
    assert started == [("base", True)]
    assert lines.stat().st_mtime_ns == written and manifest_of(answered, "base") == before


def test_damaged_log_probabilities_are_not_compared(
    tiny_model: Path, compared: Comparison, answered: RunFolder
) -> None:
    file = npz(answered, "gguf_f16")
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-9])
        with pytest.raises(
            ArtifactError, match=r"gguf_f16.logprobs.npz: .*not what predict wrote; run harness predict again"
        ):
            compare.run(answered, config(tiny_model), force=True)
    finally:
        file.write_bytes(whole)


def test_other_questions_are_measured_again_and_none_if_none_are_wanted(
    tiny_model: Path, tmp_path: Path, started: list[tuple[str, bool]]
) -> None:
    run = small_run.split(tmp_path)
    for questions, measured in ((0, 0), (2, 2), (3, 3)):
        predict.run(run, small_run.config(tiny_model, predict={"variants": ["base"], "fidelity_questions": questions}))
        found = manifest_of(run, "base")
        assert found.noise.get("n", 0) == measured and npz(run, "base").exists() == bool(found.logprobs_sha256) == bool(
            measured
        )
    assert started == [("base", False), ("base", True), ("base", True)]


def test_a_backend_without_log_probabilities_is_left_out(tiny_model: Path, answered: RunFolder, tmp_path: Path) -> None:
    extra = {"theirs": {"backend": "replay", "path": str(answered.prediction("base")[0])}}
    run = small_run.split(tmp_path)
    settings = small_run.config(tiny_model, predict={"variants": ["theirs"], "extra": extra}, score={"resamples": 100})
    found = predict.run(run, settings)["theirs"]
    assert (found.n, found.measured, found.noise) == (N, "", {}) and not npz(run, "theirs").exists()
    score.run(run, settings)
    comparison = compare.run(run, settings)
    assert comparison.fidelity == [] and comparison.noise == {}


class Fickle(TransformersBackend):
    """Asked one by one, it answers every second question differently, and fails on the last."""

    alone = 0

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        found = super().answer(prompts)
        if len(prompts) > 1:
            return found
        Fickle.alone += 1
        if Fickle.alone == N:
            return [Completion([], "error", 0.0, error="no")]
        return found if Fickle.alone % 2 else [Completion([65, 66, 67], "stop", 0.0)]


def test_an_answer_that_changes_with_the_batch_is_a_flip(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    run, settings = small_run.split(tmp_path), small_run.config(tiny_model)
    split, asked = storage.read_record(run.split_json, SplitManifest), storage.read_records(run.heldout_jsonl, Question)
    job = next(predict.jobs(run, settings, split.split_id, asked, ["base"]))
    monkeypatch.setattr(predict.backends, "find", lambda _: Fickle)
    before = torch.is_grad_enabled()
    try:
        noise = predict.answer(job, probe=fidelity_probe.probe(settings, asked)).noise
    finally:
        torch.set_grad_enabled(before)
    assert noise == {"flip_rate": pytest.approx(3 / 7), "n": 7, "how": "batch: 1 against 64 at most"}


# ---------------------------------------------------------------------------------------------------------------- the floor


def test_the_noise_floor_is_a_note_and_no_part_of_the_verdict(tmp_path: Path) -> None:
    """Otherwise one flip in 24 questions would hide a loss of four points at any number of questions."""
    run = scored_run.make(
        tmp_path, {"adapter": lambda q: q.answer, "base": lambda _: "nothing"}, asked=scored_run.questions(30, 4)
    )
    for variant, rate in (("adapter", 1.0), ("base", 0.2)):
        edit_json(run.prediction(variant)[1], noise={"flip_rate": rate, "n": 24, "how": "x"})
    score.run(run, scored_run.CONFIG)
    pair = next(p for p in compare.run(run, scored_run.CONFIG).pairs if p.metric == "exact_match")
    assert (pair.delta, pair.verdict, pair.noise_floor) == (1, "better", 1.0)
