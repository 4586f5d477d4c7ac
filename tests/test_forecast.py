"""The forecast of answering times: arithmetic by hand, files of a model's shape that llama.cpp loads, and the doctor's words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.backends import llama_loading
from harness.backends.llama_context import Context, Model
from harness.config import Config
from harness.doctor import answering_time, forecast
from harness.doctor.answering_time import Times, Work
from harness.formats import gguf
from harness.questions.dataset import Row
from tests.helpers import small_run

WORK = Work(questions=100, prompt=20, answer=30, probed=10)
TIMES = Times(prompt=0.5, step=0.2, single=0.1, sequences=10, threads=4)


def test_seconds_by_hand() -> None:
    # Answers: 100 prompts of 0.5 s; 300 + 30 steps of 0.2 s. Probe: 10 prompts of 36/20 of the length; 10 answers by one sequence.
    assert answering_time.seconds(TIMES, WORK) == pytest.approx(50 + 66 + 10 * 0.5 * 1.8 + 10 * (0.5 + 3.0))
    assert answering_time.whole_seconds(one=1.0, two=1.8, with_words=1.5, layers=32) == pytest.approx(16 * 1.8 + 0.5)


@pytest.mark.parametrize(("value", "said"), [(0.2, "1 s"), (40, "40 s"), (720, "12 min"), (11_400, "3 h 10 min")])
def test_times_in_words(value: float, said: str) -> None:
    assert answering_time.in_words(value) == said


def test_what_would_shorten_it_is_said() -> None:
    slow = Times(5.0, 2.0, 1.0, 10, 4)
    found = forecast.said({"f16": slow, "q8_0": TIMES}, WORK, on_gpu=False, has_gpu=True)
    assert found.status == "warn" and "f16 27 min" in found.value
    for words in ("leave gguf_f16 out", "data.heldout=", "predict.libllama"):
        assert words in found.hint
    quick = forecast.said({"q8_0": Times(0.01, 0.01, 0.01, 10, 4)}, WORK, on_gpu=True, has_gpu=True)
    assert (quick.status, quick.hint) == ("ok", "") and "on the GPU" in quick.value


@pytest.mark.parametrize("kind", ["f16", "q4_k_m"])
def test_a_file_of_the_shape_has_the_models_tensors(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    answering_time._write(tmp_path / "shape.gguf", config, kind, range(2), config["vocab_size"])
    gguf.write(tiny_model, tmp_path / "model.gguf", kind, threads=1)
    from gguf import GGUFReader

    shape, model = (
        {t.name: (t.tensor_type, tuple(t.shape)) for t in GGUFReader(tmp_path / name).tensors}
        for name in ("shape.gguf", "model.gguf")
    )
    assert shape == model
    loaded = Model(llama_loading.load(), tmp_path / "shape.gguf", gpu_layers=0)
    context = Context(loaded, sequences=2, tokens=256, threads=1)
    assert context.decode([(0, 0, 0, True), (1, 0, 1, True)]).shape == (2, config["vocab_size"])
    context.close()
    loaded.close()


def test_a_large_model_is_timed_in_parts(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[list[int], int]] = []
    write = answering_time._write

    def noted(path: Path, config: object, kind: str, chosen: object, words: int) -> Path:
        written.append((list(chosen), words))  # type: ignore[call-overload]
        return write(path, config, kind, chosen, words)  # type: ignore[arg-type]

    monkeypatch.setattr(answering_time, "WHOLE_BYTES", 0)
    monkeypatch.setattr(answering_time, "_write", noted)
    config = json.loads((tiny_model / "config.json").read_text()) | {"num_hidden_layers": 12}
    times = answering_time.measure(config, "q8_0", 8, libllama=None, gpu_layers=0)
    assert written == [([0, 6], 256), ([6], 256), ([6], config["vocab_size"])]
    assert times.prompt > 0 and times.step > 0 and times.single > 0 and times.sequences >= 8


def test_the_doctor_measures_in_a_child_process(tiny_model: Path) -> None:
    config = small_run.config(tiny_model, predict={"variants": ["base", "gguf_q8_0"]})
    rows = [Row(str(i), i + 1, q, a) for i, (q, a) in enumerate(small_run.QUESTIONS)]
    found = forecast.finding(config, tiny_model, rows, "cpu", 8)
    assert found is not None and found.status == "ok", found
    assert "for 8 questions (q8_0 " in found.value
    none = Config.model_validate(config.model_dump() | {"predict": {"variants": ["base"]}})
    assert forecast.finding(none, tiny_model, rows, "cpu", 8) is None
