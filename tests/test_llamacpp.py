"""The llama.cpp backend against the original model, and everything that silently changes an answer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.backends import BACKENDS, Completion, Execution, Generation, Source, find
from harness.backends import llamacpp as module
from harness.backends.llamacpp import LlamaCppBackend
from harness.errors import ModelError
from harness.formats import gguf, llama
from tests.models import BOS_ID, CORPUS, VOCABULARY, edit_json
from tests.models import EOS_ID as END


@pytest.fixture(scope="module")
def f16(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "f16.gguf"
    gguf.write(tiny_model, path, "f16")
    return path


@pytest.fixture(scope="module")
def prompts(tiny_model: Path) -> list[list[int]]:
    """Beginnings of every sentence, of mixed lengths: 40 in all."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = [tokenizer(text)["input_ids"] for text in CORPUS]
    return [row[:n] for n in (1, 2, 3, 5, 8, 12) for row in rows if n < len(row)][:40]


def backend(
    path: Path, *, limit: int = 24, stop: tuple[int, ...] = (END,), slots: int = 4, threads: int = 1
) -> LlamaCppBackend:
    return LlamaCppBackend(Source(path), Generation(limit, stop, 0), Execution(slots=slots, threads=threads))


def ask(path: Path, prompts: list[list[int]], **options: Any) -> list[Completion]:
    model = backend(path, **options)
    answers = model.answer(prompts)
    model.close()
    return answers


def test_the_greedy_text_is_that_of_the_model(tiny_model: Path, f16: Path, prompts: list[list[int]]) -> None:
    import torch
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    answers = ask(f16, prompts)
    same = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=END, pad_token_id=END
        )
        expected = out[0, len(prompt) :].tolist()
        same += answer.answer_ids == [i for i in expected if i != END]
        assert answer.finish_reason == ("stop" if END in expected or len(expected) < 24 else "length")
    # Where the beginning of a sentence leaves its continuation open, two tokens are nearly equally probable.
    assert same >= 0.95 * len(prompts)
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_quantised_text_is_close(
    tiny_model: Path, f16: Path, tmp_path: Path, prompts: list[list[int]], kind: str
) -> None:
    gguf.write(tiny_model, tmp_path / "model.gguf", kind)
    whole, quantised = ask(f16, prompts), ask(tmp_path / "model.gguf", prompts)
    same = sum(a.answer_ids == b.answer_ids for a, b in zip(whole, quantised, strict=True))
    assert same >= (0.9 if kind == "q8_0" else 0.75) * len(prompts)


def test_two_runs_are_equal(f16: Path, prompts: list[list[int]]) -> None:
    once, twice = ([a.answer_ids for a in ask(f16, prompts)] for _ in range(2))
    assert once == twice


def test_slots_and_threads_change_no_text(f16: Path, prompts: list[list[int]]) -> None:
    one = [a.answer_ids for a in ask(f16, prompts, slots=1)]
    assert one == [a.answer_ids for a in ask(f16, prompts, slots=4)]
    assert one == [a.answer_ids for a in ask(f16, prompts, slots=8, threads=2)]


def test_a_batch_of_mixed_lengths_equals_one_by_one(f16: Path, prompts: list[list[int]]) -> None:
    model = backend(f16)
    single = [model.answer([prompt])[0].answer_ids for prompt in prompts]
    model.close()
    assert single == [a.answer_ids for a in ask(f16, prompts)]


# ------------------------------------------------------------------------------------------------------------- stopping


def test_an_answer_of_exactly_the_limit(tiny_model: Path, f16: Path) -> None:
    from transformers import AutoTokenizer

    row = AutoTokenizer.from_pretrained(tiny_model)(CORPUS[0])["input_ids"]
    prompt, rest = row[:10], row[10:]
    # The end token counts: with room for it the answer stops, without it was cut.
    for limit, reason in (
        (len(rest) + 1, "stop"),
        (len(rest), "length"),
        (len(rest) - 1, "length"),
        (len(rest) + 2, "stop"),
    ):
        (answer,) = ask(f16, [prompt], limit=limit)
        assert (answer.answer_ids, answer.finish_reason) == (rest[:limit], reason)


def test_a_stop_token_that_llama_cpp_does_not_know(f16: Path, prompts: list[list[int]]) -> None:
    (plain,) = ask(f16, [prompts[-1]])
    stop = plain.answer_ids[3]
    (answer,) = ask(f16, [prompts[-1]], stop=(END, stop))
    assert answer.answer_ids == plain.answer_ids[: plain.answer_ids.index(stop)]
    assert answer.finish_reason == "stop"


def test_llama_cpps_own_end_token_stops_without_being_asked(
    f16: Path, tiny_model: Path, prompts: list[list[int]]
) -> None:
    assert [a.answer_ids for a in ask(f16, prompts, stop=())] == [a.answer_ids for a in ask(f16, prompts)]


def test_tokens_that_end_inside_a_character_are_not_lost(tiny_model: Path, f16: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    row = tokenizer(CORPUS[6])["input_ids"]
    assert sum("\ufffd" in tokenizer.decode(i) for i in row[6:]) > 3
    (answer,) = ask(f16, [row[:6]], limit=80)
    assert answer.answer_ids == row[6:]


# ----------------------------------------------------------------------------------------------------------- parameters


def test_every_sampling_field_is_sent_and_used(f16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = backend(f16, limit=17)
    sent: list[dict[str, Any]] = []
    answers: list[Any] = []
    post = model._post

    def spy(body: dict[str, Any], route: str = "/completion") -> tuple[int, Any]:
        sent.append(body)
        result = post(body, route)
        answers.append(result[1])
        return result

    monkeypatch.setattr(model, "_post", spy)
    model.answer([[BOS_ID, 5]])
    model.close()
    body, used = sent[0], answers[0]["generation_settings"]
    expected = {
        "n_predict": 17,
        "temperature": 0.0,
        "top_k": 1,
        "top_p": 1.0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "seed": 0,
        "cache_prompt": False,
    }
    assert expected.items() <= body.items()
    # Whatever llama.cpp reports of itself is as it was sent: none of its defaults applied.
    assert {k: used[k] for k in expected if k in used} == pytest.approx(
        {k: v for k, v in expected.items() if k in used}
    )
    changing = {
        "dry_multiplier": 0.0,
        "xtc_probability": 0.0,
        "typical_p": 1.0,
        "mirostat": 0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
    assert changing.items() <= used.items()
    assert used["samplers"] == ["penalties", "top_k", "top_p", "min_p", "temperature"]


def test_a_field_that_llama_cpp_ignores_is_an_error(f16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = backend(f16)
    post = model._post

    def renamed(body: dict[str, Any], route: str = "/completion") -> tuple[int, Any]:
        return post(
            {("penalty" if k == "repeat_penalty" else k): v for k, v in body.items()} | {"repeat_penalty": 1.1}, route
        )

    monkeypatch.setattr(model, "_post", renamed)
    with pytest.raises(ModelError, match="repeat_penalty"):
        model.answer([[BOS_ID, 5]])
    model.close()


def test_a_repeat_penalty_would_change_the_text(f16: Path, prompts: list[list[int]]) -> None:
    model = LlamaCppBackend(Source(f16), Generation(24, (END,), 0, repeat_penalty=100.0), Execution(slots=1, threads=1))
    penalised = [c.answer_ids for c in model.answer(prompts)]
    model.close()
    plain = ask(f16, prompts, slots=1)
    assert any(penalised[i] != plain[i].answer_ids for i in range(len(prompts)))


def test_the_prompt_cache_is_off(f16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = backend(f16, slots=1)
    seen: list[Any] = []
    post = model._post
    monkeypatch.setattr(
        model, "_post", lambda body, route="/completion": (lambda r: (seen.append(r[1]), r)[1])(post(body, route))
    )
    for _ in range(2):
        model.answer([[BOS_ID, *range(5, 60)]])
    model.close()
    assert [answer["timings"]["cache_n"] for answer in seen] == [0, 0]


# -------------------------------------------------------------------------------------------------------------- context


def test_prompts_that_cannot_be_asked_are_errors_and_the_others_are_answered(
    f16: Path, prompts: list[list[int]]
) -> None:
    bad = {"empty": [], "outside": [BOS_ID, VOCABULARY], "negative": [-1], "long": [5] * 600, "full": [5] * 511}
    answers = ask(f16, [prompts[0], *bad.values(), prompts[1]])
    assert [a.finish_reason for a in answers[1:-1]] == ["error"] * 5
    assert "511" in str(answers[4].error)
    assert [answers[0].answer_ids, answers[-1].answer_ids] == [a.answer_ids for a in ask(f16, prompts[:2])]


def test_an_answer_ends_at_the_context(f16: Path) -> None:
    model = backend(f16, limit=50)
    assert model.facts.context == 511
    lengths = (511 - 50, 511 - 49, 500, 510)
    answers = model.answer([[BOS_ID] + [5] * (n - 1) for n in lengths])
    model.close()
    for i, n in enumerate(lengths):
        room = min(50, 511 - n)
        assert answers[i].finish_reason == "stop" or (len(answers[i].answer_ids), answers[i].finish_reason) == (
            room,
            "length",
        )


def test_a_longer_prompt_than_expected_gets_more_context(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_CONTEXT", 64)
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    edit_json(folder / "config.json", max_position_embeddings=4096)
    gguf.write(folder, tmp_path / "model.gguf", "q8_0")
    model = backend(tmp_path / "model.gguf", slots=2)
    assert model.facts.execution["slot_context"] == 256
    (answer,) = model.answer([[BOS_ID] + [5] * 1000])
    assert model.facts.execution["slot_context"] == 1280
    assert answer.finish_reason != "error"
    model.close()


# -------------------------------------------------------------------------------------------------------------- logprobs


def test_logprobs_are_the_models(tiny_model: Path, f16: Path, prompts: list[list[int]]) -> None:
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    answers = [a.answer_ids for a in ask(f16, prompts[:6])]
    loaded = backend(f16)
    found = loaded.logprobs(prompts[:6], answers)
    loaded.close()
    for prompt, answer, q in zip(prompts, answers, found, strict=False):
        with torch.no_grad():
            p = torch.log_softmax(model(torch.tensor([prompt + answer])).logits[0].double(), -1).numpy()[
                len(prompt) - 1 : -1
            ]
        assert q.shape == (len(answer), VOCABULARY)
        assert np.exp(q).sum(1) == pytest.approx(1, abs=1e-4)
        assert np.abs(p - q).max() < 0.05
        assert q.argmax(1).tolist() == answer


def test_logprobs_of_a_prompt_that_cannot_be_asked(f16: Path) -> None:
    model = backend(f16)
    with pytest.raises(ModelError, match="vocabulary"):
        model.logprobs([[BOS_ID, 5]], [[5, 700, 6]])
    model.close()


# ----------------------------------------------------------------------------------------------------- files and process


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_an_error_not_a_crash(f16: Path, tmp_path: Path, keep: float) -> None:
    (tmp_path / "model.gguf").write_bytes(f16.read_bytes()[: int(f16.stat().st_size * keep)])
    with pytest.raises(ModelError, match=r"model\.gguf"):
        backend(tmp_path / "model.gguf")


def test_a_file_that_llama_cpp_refuses(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = llama.plan
    monkeypatch.setattr(llama, "plan", lambda *args: [t for t in plan(*args) if t.name != "blk.1.ffn_up.weight"])
    gguf.write(tiny_model, tmp_path / "model.gguf", "f16")
    with pytest.raises(ModelError, match=r"llama\.cpp cannot load it"):
        backend(tmp_path / "model.gguf")
    assert capfd.readouterr() == ("", "")


def test_nothing_is_printed(f16: Path, prompts: list[list[int]], capfd: pytest.CaptureFixture[str]) -> None:
    ask(f16, [*prompts[:3], [], [5] * 600])
    assert capfd.readouterr() == ("", "")


def test_no_port_is_opened_and_nothing_is_left(f16: Path) -> None:
    model = backend(f16)
    assert model._server is not None
    folder = Path(model._server.folder)
    assert model._server.server.listening_address == f"unix://{folder}/llama.sock"
    assert folder.stat().st_mode & 0o077 == 0
    assert model._server.post("/completion", {"prompt": [5], "n_predict": 1})[0] == 200
    model._server.key = "another"
    assert model._server.post("/completion", {"prompt": [5], "n_predict": 1})[0] == 401
    model.close()
    model.close()
    assert not folder.exists()
    with pytest.raises(ModelError, match="closed"):
        model.tokenize("x")


@pytest.mark.parametrize("end", ["", "model.close()", "1 / 0"])
def test_the_process_ends_however_it_leaves_the_model(f16: Path, end: str) -> None:
    code = (
        "from pathlib import Path; from harness.backends import *; from harness.backends.llamacpp import LlamaCppBackend\n"
        f"model = LlamaCppBackend(Source(Path({str(f16)!r})), Generation(4, (), 0), Execution(threads=1))\n{end}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == (1 if end == "1 / 0" else 0)
    assert ("ZeroDivisionError" in done.stderr) if end == "1 / 0" else done.stderr == ""


def test_it_is_found_by_name_and_tells_its_version(f16: Path) -> None:
    assert find("llamacpp") is LlamaCppBackend
    assert "llamacpp" in BACKENDS
    model = backend(f16)
    assert model.facts.version.startswith("xllamacpp 20")
    assert model.facts.execution == {"slots": 4, "threads": 1, "device": "cpu", "slot_context": 512}
    model.close()


def test_a_small_model_runs_on_one_thread_unless_told_otherwise(f16: Path) -> None:
    model = backend(f16, threads=0)
    assert model.facts.execution["threads"] == 1
    model.close()
    model = backend(f16, threads=2)
    assert model.facts.execution["threads"] == 2
    model.close()
