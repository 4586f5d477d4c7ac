"""The llama.cpp backend compared with the original model, and everything that silently changes an answer."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.backends import (
    BACKENDS,
    Completion,
    Execution,
    Generation,
    Source,
    cores,
    find,
    libllama,
    llama_loading,
    llama_tuning,
)
from harness.backends import llamacpp as module
from harness.backends.llama_context import Context, DecodeError, log_softmax, logprobs_of
from harness.backends.llamacpp import LlamaCppBackend
from harness.errors import ConfigError, ModelError
from harness.formats import gguf, llama
from tests.helpers.answering import llamacpp as backend
from tests.helpers.models import BOS_ID, CORPUS, VOCABULARY, edit_json
from tests.helpers.models import EOS_ID as END


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


def test_sampling_is_refused(f16: Path) -> None:
    with pytest.raises(ConfigError, match="greedily"):
        LlamaCppBackend(Source(f16), Generation(24, (END,), 0, temperature=0.7), Execution(slots=1, threads=1))


def test_a_repeat_penalty_would_change_the_text(f16: Path, prompts: list[list[int]]) -> None:
    model = LlamaCppBackend(Source(f16), Generation(24, (END,), 0, repeat_penalty=100.0), Execution(slots=1, threads=1))
    penalised = [c.answer_ids for c in model.answer(prompts)]
    model.close()
    plain = ask(f16, prompts, slots=1)
    assert any(penalised[i] != plain[i].answer_ids for i in range(len(prompts)))
    assert all(len(set(ids)) == len(ids) for ids in penalised)


def test_what_was_asked_before_changes_nothing(f16: Path, prompts: list[list[int]]) -> None:
    model = backend(f16)
    first = [a.answer_ids for a in model.answer(prompts[:20])]
    model.answer([[BOS_ID, *range(5, 60)], [BOS_ID, *range(5, 50), 9]])
    model.logprobs(prompts[:3], [[5, 6, 7]] * 3)
    assert [a.answer_ids for a in model.answer(prompts[:20])] == first
    model.close()


# ----------------------------------------------------------------------------------------------- how it is cut up


def test_what_all_prompts_begin_with_is_computed_once(f16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    decode = Context.decode

    def counting(self: Context, rows: list[Any]) -> np.ndarray:
        computed.append(len(rows))
        return decode(self, rows)

    start = [BOS_ID, *range(5, 105)]
    asked = [[*start, 200 + i, 300 + i] for i in range(8)]
    together = backend(f16, limit=1)
    alone = backend(f16, limit=1)
    monkeypatch.setattr(Context, "decode", counting)
    found = [a.answer_ids for a in together.answer(asked)]
    assert computed == [len(start)] + [2] * 8
    assert found == [alone.answer([prompt])[0].answer_ids for prompt in asked]
    together.close()
    alone.close()


def test_the_log_probability_of_each_token_is_kept(f16: Path, prompts: list[list[int]]) -> None:
    model = backend(f16)
    for prompt, answer in zip(prompts[:8], model.answer(prompts[:8]), strict=True):
        assert answer.logprobs is not None and len(answer.logprobs) == len(answer.answer_ids)
        if answer.answer_ids:
            (rows,) = model.logprobs([prompt], [answer.answer_ids])
            expected = rows[np.arange(len(rows)), answer.answer_ids]
            assert np.abs(expected - answer.logprobs).max() < 0.02
    model.close()


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_k_m"])
def test_the_numbers_do_not_depend_on_how_many_sequences(
    tiny_model: Path, tmp_path: Path, prompts: list[list[int]], kind: str
) -> None:
    gguf.write(tiny_model, tmp_path / "model.gguf", kind)
    found = [
        ask(tmp_path / "model.gguf", prompts[:21], slots=slots, threads=threads)
        for slots, threads in ((8, 1), (16, 1), (24, 2))
    ]
    assert all([a.answer_ids for a in other] == [a.answer_ids for a in found[0]] for other in found)
    values = [np.concatenate([a.logprobs or [] for a in answers]) for answers in found]
    # K types: the last bit of some.
    assert all(np.abs(other - values[0]).max() <= (1e-6 if kind == "q4_k_m" else 0) for other in values)


def test_threads_and_sequences_are_measured(f16: Path, prompts: list[list[int]]) -> None:
    measured = LlamaCppBackend(Source(f16), Generation(24, (END,), 0), Execution())
    found = [(a.answer_ids, a.logprobs) for a in measured.answer(prompts)]
    used = measured.facts.execution
    assert used["slots"] in llama_tuning.SEQUENCES and 1 <= used["threads"] <= cores()
    assert measured.setting is not None and measured.setting.tokens_per_second > 0
    measured.close()
    assert found == [(a.answer_ids, a.logprobs) for a in ask(f16, prompts, slots=8)]


def test_the_fastest_setting_is_taken(f16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = {(8, 8): 100.0, (4, 8): 140.0, (2, 8): 138.0, (1, 8): 90.0, (2, 16): 250.0, (2, 32): 255.0}
    tried: list[tuple[int, int]] = []

    def measured(model: Any, threads: int, sequences: int) -> llama_tuning.Setting:
        tried.append((threads, sequences))
        return llama_tuning.Setting(threads, sequences, speed[threads, sequences])

    monkeypatch.setattr(llama_tuning, "_measured", measured)
    monkeypatch.setattr(llama_tuning, "cores", lambda: 8)
    model = backend(f16).model
    found = llama_tuning.measure(model, threads=0, sequences=0, tokens=512, unit=4)
    assert (found.threads, found.sequences) == (2, 16)
    assert tried == list(speed)
    # A cache for more sequences than memory should hold is not tried.
    monkeypatch.setattr(llama_tuning, "CACHE_BYTES", 8 * 512 * model.cache_bytes())
    assert llama_tuning.measure(model, threads=2, sequences=0, tokens=512, unit=4).sequences == 8
    model.close()


def test_an_answer_that_cannot_be_computed_is_an_error_and_the_others_are_not(
    f16: Path, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = prompts[-6:]
    expected = [a.answer_ids for a in ask(f16, asked)]
    decode = Context.decode

    def failing(self: Context, rows: list[Any]) -> np.ndarray:
        if rows[-1][0] == asked[2][-1] and rows[-1][1] == len(asked[2]) - 1:
            raise DecodeError("llama.cpp could not compute 3 tokens (code -3)")
        return decode(self, rows)

    model = backend(f16)
    monkeypatch.setattr(Context, "decode", failing)
    answers = model.answer(asked)
    model.close()
    failed = [i for i, a in enumerate(answers) if a.finish_reason == "error"]
    assert 2 in failed and len(failed) < 6
    assert "code -3" in str(answers[2].error)
    assert all(answers[i].answer_ids == expected[i] for i in range(6) if i not in failed)


# ---------------------------------------------------------------------------------------------------------- the library


def test_a_file_that_is_not_a_library_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "libllama.so"
    file.write_bytes(b"not a library")
    for path, words in ((file, "cannot be used"), (tmp_path / "x.so", "does not exist"), (tmp_path, "cannot be used")):
        with pytest.raises(ConfigError, match=words) as caught:
            llama_loading.load(str(path))
        assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(ConfigError, match="has no libllama"):
        llama_loading.load(str(tmp_path))


def test_another_layout_of_the_parameters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library = llama_loading.load()

    class Moved(ctypes.Structure):
        _fields_ = (("new", ctypes.c_uint32), *libllama.ContextParams._fields_)

    monkeypatch.setattr(libllama, "LAYOUTS", (Moved,))
    try:
        with pytest.raises(
            ConfigError, match=r"is a version of llama.cpp that this project does not support: its default n_ctx reads"
        ):
            libllama.Library(library.path, "test")
        monkeypatch.setattr(libllama, "LAYOUTS", (Moved, libllama.ContextParams))
        fits = libllama.Library(library.path, "test")
        assert isinstance(fits.llama_context_default_params(), libllama.ContextParams)
    finally:
        # Signatures belong to the loaded library, of which there is one.
        library._functions.llama_context_default_params.restype = libllama.ContextParams
        library._functions.llama_init_from_model.argtypes = [ctypes.c_void_p, libllama.ContextParams]


def test_an_earlier_release_has_the_same_parameters_but_for_the_cache_of_experts() -> None:
    """The fields of llama.h at b11434, the last release of which PyPI has the source."""
    now, then = ([field[0] for field in layout._fields_] for layout in libllama.LAYOUTS)
    assert [name for name in now if name not in then] == ["moe_cache_size"]
    at = libllama.ContextParamsBeforeMoeCache
    assert at.abort_callback.offset == at.type_v.offset + 4


def test_a_library_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library = llama_loading.load()
    embedding, output = llama_loading.check_weights()
    monkeypatch.setattr(llama_loading, "check_weights", lambda: (embedding, output))
    write = llama_loading.write_check_model
    monkeypatch.setattr(llama_loading, "write_check_model", lambda path, e, o: write(path, e, o[::-1].copy()))
    with pytest.raises(ConfigError, match="computes other logits than expected"):
        llama_loading.check_numbers(library)


def test_the_library_can_be_named(f16: Path, prompts: list[list[int]], tmp_path: Path) -> None:
    link = tmp_path / "libllama.so"
    link.symlink_to(llama_loading.load().path)
    model = LlamaCppBackend(Source(f16), Generation(24, (END,), 0), Execution(slots=4, threads=1, libllama=str(link)))
    assert model.facts.version.startswith("llama.cpp ")
    assert [a.answer_ids for a in model.answer(prompts[:4])] == [a.answer_ids for a in ask(f16, prompts[:4])]
    model.close()


def test_layers_on_a_gpu_that_the_library_does_not_know_are_refused(f16: Path) -> None:
    if llama_loading.load().llama_supports_gpu_offload():
        pytest.skip("this build of llama.cpp has a GPU")
    with pytest.raises(ConfigError, match=r"predict.gpu_layers is 10.*built without a GPU; name a llama.cpp"):
        LlamaCppBackend(Source(f16), Generation(24, (END,), 0), Execution(gpu_layers=10))


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
    model.answer([[BOS_ID, 5]])
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


def test_logprobs_of_tokens_do_not_depend_on_the_number_of_threads() -> None:
    logits = np.random.default_rng(0).normal(0, 4, (21, 50_000)).astype(np.float32)
    tokens = logits.argmax(axis=1)
    expected = logprobs_of(logits, tokens)
    assert np.allclose(expected, log_softmax(logits)[np.arange(21), tokens], atol=1e-5)
    for threads in (2, 3, 16):
        assert (logprobs_of(logits, tokens, threads) == expected).all()


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


def test_an_architecture_that_llama_cpp_does_not_know_is_named(f16: Path, tmp_path: Path) -> None:
    path = tmp_path / "foreign.gguf"
    data = f16.read_bytes()
    path.write_bytes(data[:2000].replace(b"llama", b"lxama") + data[2000:])
    with pytest.raises(
        ModelError, match=r"llama.cpp cannot load it \(.*unknown model architecture: 'lxama'\)"
    ) as error:
        backend(path)
    assert "\n" not in str(error.value)


def test_nothing_is_printed(f16: Path, prompts: list[list[int]], capfd: pytest.CaptureFixture[str]) -> None:
    ask(f16, [*prompts[:3], [], [5] * 600])
    assert capfd.readouterr() == ("", "")


def test_a_closed_model_says_so(f16: Path) -> None:
    model = backend(f16)
    model.answer([[BOS_ID, 5]])
    model.close()
    model.close()
    with pytest.raises(ModelError, match="closed"):
        model.answer([[BOS_ID, 5]])


@pytest.mark.parametrize("end", ["", "model.close()", "1 / 0"])
def test_the_process_ends_however_it_leaves_the_model(f16: Path, end: str) -> None:
    code = (
        "from pathlib import Path; from harness.backends import *; from harness.backends.llamacpp import LlamaCppBackend\n"
        f"model = LlamaCppBackend(Source(Path({str(f16)!r})), Generation(4, (), 0), Execution(threads=1))\n{end}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == (1 if end == "1 / 0" else 0)
    assert ("ZeroDivisionError" in done.stderr) if end == "1 / 0" else done.stderr == ""


def test_it_is_found_by_name_and_reports_its_version(f16: Path) -> None:
    assert find("llamacpp") is LlamaCppBackend
    assert "llamacpp" in BACKENDS
    model = backend(f16)
    assert model.facts.version.startswith("xllamacpp 20")
    model.answer([[BOS_ID, 5]])
    assert model.facts.execution == {"slots": 4, "threads": 1, "device": "cpu", "gpu_layers": 0, "slot_context": 512}
    model.close()
