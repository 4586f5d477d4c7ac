"""Greedy decoding on a static cache: the text of `model.generate` and of one question at a time, whatever is done for speed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, BitsAndBytesConfig

from harness import backends
from harness.backends import Execution, Generation, Source, resolve_batch_size
from harness.backends import transformers as transformers_module
from harness.backends.decoding import decoder, kernels
from harness.backends.decoding.decoder import Decoder, Generated
from harness.config import PROJECT
from harness.errors import DeviceError
from harness.prediction import jobs
from harness.prediction.extras import Weights
from harness.prediction.jobs import _processes
from harness.prompt import load_tokenizer
from tests.helpers import answering, small_run
from tests.helpers.answering import generated

EMBEDDED = PROJECT / "data" / "tiny-llama3"
NEW = 24


@pytest.fixture(autouse=True)
def gradients_as_before() -> Iterator[None]:
    before = torch.is_grad_enabled()
    yield
    torch.set_grad_enabled(before)


@pytest.fixture(scope="module")
def asked() -> list[list[int]]:
    """Forty beginnings of sentences of several lengths, as token ids: the embedded model, which read prose, ends them after as many lengths."""
    tokenizer = load_tokenizer(EMBEDDED)
    beginnings = ("Article {}", "Article {} concerns", "Article {} of the Constitution")
    return [tokenizer(beginnings[n % 3].format(n)).input_ids for n in range(10, 50)]


@pytest.fixture
def embedded() -> Any:
    return AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32).eval()


# ------------------------------------------------------------------------------------------------------------ the text


def texts(made: Decoder, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The token ids alone."""
    return [ids for ids, _ in made.generate(prompts)]


def test_the_embedded_model_says_what_generate_says_and_what_it_says_one_by_one(
    embedded: Any, asked: list[list[int]]
) -> None:
    stops = [embedded.config.eos_token_id]
    expected = generated(embedded, asked, stops, NEW)
    made = Decoder(embedded, stops, 0, NEW)
    assert texts(made, asked) == expected
    assert [texts(made, [prompt])[0] for prompt in asked[:12]] == expected[:12]
    assert len({len(ids) for ids in expected}) > 5


def test_each_token_comes_with_the_log_probability_that_one_pass_over_the_answer_gives_it(
    embedded: Any, asked: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stops, prompts = [embedded.config.eos_token_id], asked[:13]
    monkeypatch.setattr(decoder, "CHECK_STEPS", 1)  # the batch is compacted
    made = Decoder(embedded, stops, 0, NEW)
    for prompt, (ids, logprobs) in zip(prompts, made.generate(prompts), strict=True):
        with torch.no_grad():
            logits = embedded(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        assert logprobs == pytest.approx(expected.tolist(), abs=1e-4)
        assert list(made.stream(prompt)) == [
            (token, pytest.approx(chance, abs=1e-4)) for token, chance in zip(ids, logprobs, strict=True)
        ]


@pytest.mark.parametrize("cut", ["slices", "rounded", "crowded", "after another batch"])
def test_how_a_batch_is_laid_out_changes_no_text(
    embedded: Any, asked: list[list[int]], cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = [embedded.config.eos_token_id]
    prompts = asked[:13]
    expected = generated(embedded, prompts, stops, NEW)
    made = Decoder(embedded, stops, 0, NEW, graphs=cut == "rounded")
    if cut == "rounded":
        made.graph_problem = "no GPU here"  # rows are made up to 16 all the same
    elif cut == "slices":
        monkeypatch.setattr(decoder, "PREFILL_TOKENS", 150)
    elif cut == "crowded":
        monkeypatch.setattr(decoder, "CHECK_STEPS", 1)
    else:
        made.generate([p + q for p, q in zip(prompts, asked[13:], strict=False)])
    assert texts(made, prompts) == expected


def test_the_batch_is_compacted_when_half_of_its_rows_have_finished(
    embedded: Any, asked: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stops, rows = [embedded.config.eos_token_id], []
    made = Decoder(embedded, stops, 0, 64)
    step = made._step
    monkeypatch.setattr(made, "_step", lambda state: rows.append(state.rows) or step(state))
    assert texts(made, asked) == generated(embedded, asked, stops, 64)
    assert rows[0] == len(asked) and rows == sorted(rows, reverse=True) and len(set(rows)) > 2


def test_every_batch_passes_through_the_same_sizes(embedded: Any) -> None:
    made = Decoder(embedded, [2], 0, NEW, graphs=True)
    assert [made._rows(n) for n in (1, 3, 8, 9, 395, 400)] == [1, 4, 8, 16, 400, 400]
    found = {made._fewer(400, n) for n in range(1, 401)}
    assert sorted(found) == [1, 2, 4, 8, 16, 32, 56, 104, 200, 400]
    assert all(made._fewer(400, n) >= n for n in range(1, 401)) and made._fewer(400, 201) == 400


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "gpt_neox", "phi3"])
def test_families_of_models(family: str) -> None:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "max_position_embeddings": 256,
    }
    heads = {
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**sizes, **heads)).eval().float()
    generator = np.random.default_rng(0)
    prompts = [generator.integers(3, 512, size).tolist() for size in (17, 3, 9, 9, 30, 1, 22)]
    assert decoder.unsupported(model) == ""
    expected = generated(model, prompts, [2, 77, 78], NEW)
    assert texts(Decoder(model, [2, 77, 78], 0, NEW), prompts) == expected


def test_models_that_cannot_are_left_to_generate() -> None:
    mamba = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING["mamba"](vocab_size=64, hidden_size=32, num_hidden_layers=1)
    )
    assert decoder.unsupported(mamba) == "its class does not run on a static cache"
    bloom = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING["bloom"](vocab_size=64, hidden_size=32, n_layer=1, n_head=2)
    ).eval()
    found, problem = transformers_module._decoder(bloom, Generation(4, (2,), 0), graphs=False)
    assert found is None and problem.endswith("on a static cache")


def test_a_window_that_would_slide_is_left_to_generate(embedded: Any) -> None:
    embedded.config.sliding_window = 100
    made = Decoder(embedded, [2], 0, NEW)
    assert made.fits(100 - NEW) and not made.fits(101 - NEW)


def test_without_the_decoder_generate_gives_the_same_log_probabilities(tiny_model: Path) -> None:
    backend = answering.transformers(Source(tiny_model))
    prompts = [[256, 65, 66, 67], [256, 70], [256, 71, 72]]
    by_decoder = backend.answer(prompts)
    backend.decoder = None
    for mine, plain in zip(by_decoder, backend.answer(prompts), strict=True):
        assert mine.answer_ids == plain.answer_ids and mine.logprobs == pytest.approx(plain.logprobs, abs=1e-4)
        assert len(plain.logprobs) == len(plain.answer_ids) > 0


# ----------------------------------------------------------------------------------------------- models made ready for it


def logits(model: Any, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(input_ids=torch.tensor([list(p)])).logits for p in prompts]


@pytest.mark.parametrize("adapted", [False, True])
def test_weights_out_of_4_bits_give_the_same_numbers(tiny_model: Path, tmp_path: Path, adapted: bool) -> None:
    options = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, quantization_config=options)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if adapted:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, small_run.save_adapter(tmp_path, tiny_model, std=0.5))
    model.eval()
    prompts = [[5, 6, 7], [9] * 20]
    before = logits(model, prompts)
    assert kernels.quantised_elements(model) == 2 * (256 * 256 * 3 + 256 * 512 * 3)
    assert kernels.dequantise(model) == 14
    assert kernels.quantised_elements(model) == 0 and next(model.parameters()).dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(before, logits(model, prompts), strict=True))


def test_norms_in_one_kernel_are_the_same_norms(embedded: Any, asked: list[list[int]]) -> None:
    before = logits(embedded, asked[:3])
    assert kernels.fuse_norms(embedded) == 2 * embedded.config.num_hidden_layers + 1
    after = logits(embedded, asked[:3])
    assert not all(a is b for a, b in zip(before, after, strict=True))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(before, after, strict=True))
    gemma = CONFIG_MAPPING["gemma"](
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=16
    )
    other = AutoModelForCausalLM.from_config(gemma)
    for module in other.modules():
        if type(module).__name__ == "GemmaRMSNorm":
            module.variance_epsilon = 1e-6  # as if it were Llama's
    assert kernels.fuse_norms(other) == 0


# ------------------------------------------------------------------------------------------------------------- how much


def test_the_cache_of_llama_3_8b() -> None:
    shape = CONFIG_MAPPING["llama"](
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    assert decoder.bytes_per_token(shape, 2) == 128 * 1024
    card, large = (decoder.tokens_in_memory(shape, 2, gib * 2**30, 128) for gib in (6, 120))
    assert 20_000 < card < 6 * 2**30 / 131072 and 600_000 < large < 120 * 2**30 / 131072
    assert decoder.tokens_in_memory(shape, 2, 0, 128) == 129


@pytest.mark.parametrize(
    ("asked_for", "room", "questions", "processes", "earlier", "resolved"),
    [
        ((0, 0), 0, 400, 1, None, (16384, 64)),
        ((0, 0), 100_000, 400, 1, None, (100_000, 400)),
        ((0, 0), 100_000, 400, 2, None, (100_000, 200)),
        ((0, 0), 100_000, 1100, 1, None, (100_000, 367)),
        ((0, 0), 100_000, 0, 1, None, (100_000, 64)),
        ((999, 0), 100_000, 10, 1, None, (999, 10)),
        ((0, 7), 100_000, 10, 1, None, (100_000, 7)),
        ((0, 0), 100_000, 400, 1, (5000, 33), (5000, 33)),
    ],
)
def test_automatic_sizes(
    asked_for: Any, room: int, questions: int, processes: int, earlier: Any, resolved: Any
) -> None:
    found = resolve_batch_size(Execution("cuda", *asked_for), room, questions, processes, earlier=earlier)
    assert (found.batch_tokens, found.max_batch) == resolved


def test_more_processes_than_gpus_are_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    weights = Weights("transformers", Source(Path()), "", 10**10)
    assert _processes(0, weights, Execution("cuda"), 400) == 2
    assert _processes(3, replace(weights, backend="llamacpp"), Execution("cuda"), 400) == 1
    with pytest.raises(DeviceError, match=r"predict.processes is 3, and there are 2 GPUs; set it to 0"):
        _processes(3, weights, Execution("cuda"), 400)


@pytest.mark.parametrize(
    ("asked", "megabytes", "threads", "questions", "expected"),
    [
        (0, 10, 0, 400, 7),  # a small model takes one core: as many processes as batches of 64
        (0, 10, 0, 64, 1),
        (0, 10, 0, 10_000, 8),
        (0, 270, 0, 400, 5),  # SmolLM2: three threads
        (0, 16_000, 0, 400, 1),
        (0, 10, 6, 400, 2),
        (3, 10, 0, 1, 3),
    ],
)
def test_processes_on_a_cpu_of_16_cores(
    asked: int, megabytes: int, threads: int, questions: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "cores", lambda: 16)
    monkeypatch.setattr(backends, "cores", lambda: 16)
    weights = Weights("transformers", Source(Path()), "", megabytes * 10**6)
    assert _processes(asked, weights, Execution("cpu", threads=threads), questions) == expected


@pytest.mark.parametrize("end", ["release", "close", "out of memory"])
def test_the_cache_is_freed_at_once(end: str, asked: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that waits for the garbage collector is missing to the next, smaller batch, and to the next model."""

    def out_of_memory(_: Any) -> None:
        raise torch.OutOfMemoryError

    model: Any = backends.find("transformers")(Source(EMBEDDED), Generation(4, (2,), 2), Execution("cpu", 1, 0))
    gc.collect()
    gc.disable()
    try:
        model.answer(asked[:4])
        held = [weakref.ref(layer.keys) for layer in model.decoder._memory.layers]
        assert all(ref() is not None for ref in held)
        if end == "out of memory":
            monkeypatch.setattr(model.decoder, "_step", out_of_memory)
            assert model._within_memory(asked[:4]) is None
        else:
            model.decoder.release() if end == "release" else model.close()
        assert all(ref() is None for ref in held)
    finally:
        gc.enable()


def test_out_of_memory_halves_the_batch_and_says_so(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = backends.find("transformers")(Source(tiny_model), Generation(8, (511,), 511), Execution())
    prompts = [[10 + i] * (2 + i) for i in range(13)]
    expected = [c.answer_ids for c in model.answer(prompts)]
    whole, tried = Decoder.generate, []

    def short_of_memory(self: Decoder, batch: Sequence[Sequence[int]]) -> list[Generated]:
        tried.append(len(batch))
        if len(batch) > 4:
            raise torch.OutOfMemoryError("no")
        return whole(self, batch)

    monkeypatch.setattr(Decoder, "generate", short_of_memory)
    assert [c.answer_ids for c in model.answer(prompts)] == expected
    assert tried == [13, 7, 4, 3, 4, 2]
    assert model.facts.execution["largest_batch"] == 4
    tried.clear()
    assert [c.answer_ids for c in model.answer(prompts)] == expected and max(tried) == 4
    monkeypatch.setattr(Decoder, "generate", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    assert [(c.finish_reason, c.error) for c in model.answer(prompts[:1])] == [("error", "out of device memory")]
