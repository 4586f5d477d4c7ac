"""Answering on a CUDA device: graphs change no text, 4 bits put into 16 are the same weights, and little memory makes small batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import backends
from harness.backends import Execution, Generation, Source
from harness.config import PROJECT, TEMPLATE
from harness.errors import DeviceError
from harness.prompt import Prompter, load_tokenizer
from tests.helpers import small_run

pytestmark = pytest.mark.gpu

EMBEDDED = PROJECT / "data" / "tiny-llama3"
NEW = 48


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    gradients = torch.is_grad_enabled()
    yield
    torch.set_grad_enabled(gradients)
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def asked() -> list[list[int]]:
    rows = json.loads((PROJECT / "data" / "constitution_qa.json").read_text(encoding="utf-8"))
    prompter = Prompter(load_tokenizer(EMBEDDED), TEMPLATE)
    return [prompter.ids(row["question"]) for row in rows[:: len(rows) // 150]][:150]


def decoded(model: Any, asked: list[list[int]], *, graphs: bool = True, new: int = NEW) -> list[list[int]]:
    from harness.backends.decoding.decoder import Decoder

    decoder = Decoder(model, [model.config.eos_token_id], 0, new, graphs=graphs)
    found = [ids for ids, _ in decoder.generate(asked)]
    assert not graphs or (decoder.graph_problem == "" and any(state.graph for state in decoder._states.values()))
    return found


def embedded(dtype: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=dtype, device_map="cuda").eval()


def test_graphs_give_the_text_of_generate_and_of_one_at_a_time_in_f32(asked: list[list[int]]) -> None:
    from tests.helpers.answering import generated

    model = embedded(torch.float32)
    expected = generated(model, asked, [model.config.eos_token_id], NEW)
    assert decoded(model, asked) == decoded(model, asked, graphs=False) == expected
    assert [decoded(model, [prompt])[0] for prompt in asked[:8]] == expected[:8]


def test_the_text_is_that_of_the_cpu_in_f32(asked: list[list[int]]) -> None:
    model = embedded(torch.float32)
    on_gpu = decoded(model, asked)
    assert on_gpu == decoded(model.cpu(), asked, graphs=False)


def test_bf16_differs_by_noise_alone(asked: list[list[int]]) -> None:
    exact, rounded = decoded(embedded(torch.float32), asked), decoded(embedded(torch.bfloat16), asked)
    assert sum(a == b for a, b in zip(exact, rounded, strict=True)) / len(asked) > 0.8
    assert decoded(embedded(torch.bfloat16), asked) == rounded


@pytest.mark.parametrize("adapted", [False, True])
def test_4_bits_put_into_16_are_the_same_weights(asked: list[list[int]], tmp_path: Path, adapted: bool) -> None:
    adapter = small_run.save_adapter(tmp_path, EMBEDDED, std=0.05) if adapted else None
    source = Source(EMBEDDED, adapter=adapter, load_in_4bit=True)
    from harness.backends import transformers as transformers_module

    settings = Generation(NEW, (2,), 2), Execution("cuda", 0, 0)
    ours: Any = backends.find("transformers")(source, *settings)
    assert ours.facts.execution["dequantised"] is True and ours.facts.room > 100_000
    theirs = transformers_module._load(source, "cuda")
    for prompt in asked[:8]:
        ids = torch.tensor([prompt], device="cuda")
        left, right = ours.model(input_ids=ids).logits.float(), theirs(input_ids=ids).logits.float()
        assert (left - right).abs().max() < 0.05 * right.abs().max()
        assert (left.argmax(-1) == right.argmax(-1)).float().mean() > 0.9
    answers = ours.answer(asked)
    assert all(c.finish_reason in ("stop", "length") for c in answers)
    assert "graphs" not in ours.facts.execution


def test_little_memory_halves_the_batch_and_says_so(asked: list[list[int]]) -> None:
    model: Any = backends.find("transformers")(Source(EMBEDDED), Generation(400, (2,), 2), Execution("cuda", 0, 0))
    few = [c.answer_ids for part in range(0, 128, 16) for c in model.answer(asked[part : part + 16])]
    model.decoder.release()
    torch.cuda.empty_cache()
    # A row's 512 columns take 1.5 MiB: 128 of them do not fit into what is left.
    taken = torch.empty(torch.cuda.mem_get_info()[0] - 100 * 2**20, dtype=torch.uint8, device="cuda")
    found = [c.answer_ids for c in model.answer(asked[:128])]
    del taken
    assert 8 <= model.facts.execution["largest_batch"] <= 64
    # Batches of other sizes round bf16 differently; the base rambles, so that long texts part somewhere. Mixed-up rows would part at once.
    assert sum(a[:24] == b[:24] for a, b in zip(found, few, strict=True)) > 0.7 * len(few)


def test_two_gpus_answer_as_one(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    from harness import storage
    from harness.records import Prediction
    from harness.stages import predict

    found = []
    for processes in (1, 2):
        run = small_run.split(tmp_path / str(processes))
        settings = {"variants": ["base"], "processes": processes, "max_batch": 2, "fidelity_questions": 0}
        config = small_run.config(EMBEDDED, predict=settings).model_copy(update={"device": "cuda"})
        assert predict.run(run, config)["base"].execution["processes"] == processes
        found.append(
            [p.model_dump(exclude={"seconds"}) for p in storage.iter_records(run.prediction("base")[0], Prediction)]
        )
    assert found[0] == found[1]


def test_more_processes_than_gpus_are_refused(tmp_path: Path) -> None:
    from harness.stages import predict

    config = small_run.config(EMBEDDED, predict={"processes": 64}).model_copy(update={"device": "cuda"})
    with pytest.raises(DeviceError, match=r"predict.processes is 64, and there are \d+ GPUs"):
        predict.run(small_run.split(tmp_path), config)
