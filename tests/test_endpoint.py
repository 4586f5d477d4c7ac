"""The endpoint backend against a real OpenAI-compatible server: llama.cpp's, on the loopback interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.backends import Execution, Generation, Source
from harness.backends.endpoint import KEY, EndpointBackend
from harness.backends.llamacpp import LlamaCppBackend
from harness.errors import ModelError
from harness.formats import gguf
from tests.helpers.models import BOS_ID, EOS_ID

GENERATION = Generation(12, (EOS_ID,), EOS_ID)


@pytest.fixture(scope="module")
def file(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("endpoint") / "model.gguf"
    gguf.write(tiny_model, path, "f16")
    return path


@pytest.fixture(scope="module")
def url(file: Path) -> Iterator[str]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.port = str(file), 1024, 2, 0
    params.api_keys, params.verbosity = ["canary-key"], -1
    server = xllamacpp.Server(params)
    yield server.listening_address.rstrip("/") + "/v1"


def test_it_answers_like_llama_cpp_in_process(
    tiny_model: Path, file: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    monkeypatch.setenv(KEY, "canary-key")
    prompts = [[BOS_ID, 70, 71], [BOS_ID, 80, 81, 82, 83], [BOS_ID, 90]]
    served = EndpointBackend(Source(Path(), url=url), GENERATION, Execution(slots=2))
    own = LlamaCppBackend(Source(file), GENERATION, Execution(slots=2, threads=1))
    texts = [c.text for c in served.answer(prompts)]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    answers = own.answer(prompts)
    own.close()
    served.close()
    assert any(texts)
    assert texts == [tokenizer.decode(c.answer_ids, skip_special_tokens=True).strip() for c in answers]


def test_a_wrong_key_or_model_is_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "canary-key")
    with pytest.raises(ModelError, match="does not serve 'other'"):
        EndpointBackend(Source(Path(), url=url, model="other"), GENERATION, Execution())
    with pytest.raises(ModelError, match="cannot be reached") as caught:
        EndpointBackend(Source(Path(), url="http://127.0.0.1:9/v1"), GENERATION, Execution())
    assert "canary" not in str(caught.value)
