"""The Modelfile beside each GGUF file, checked by llama.cpp's own server where it can be."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st

from harness import storage
from harness.formats import gguf, modelfile, vocabulary
from harness.formats.modelfile import Serving
from harness.records import ExportManifest
from harness.stages import export
from harness.storage import RunFolder
from tests.helpers import small_run
from tests.helpers.models import EOS, edit_json, save_model

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture(scope="module")
def exported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = RunFolder("r", tmp_path_factory.mktemp("served"))
    adapter = small_run.save_adapter(tmp_path_factory.mktemp("adapter"), tiny_model)
    small_run.trained(run, tiny_model, adapter)
    export.run(run, small_run.config(tiny_model, export={"formats": ["merged_16bit", "gguf_q8_0"]}))
    return run


def test_a_modelfile_is_written_beside_each_file(exported: RunFolder) -> None:
    lines = (exported.gguf / "Modelfile-q8_0").read_text()
    assert lines.startswith("FROM ./model-q8_0.gguf\n")
    assert 'TEMPLATE """### Question:\n{{ .Prompt }}\n\n### Answer:\n"""\n' in lines
    assert f'PARAMETER stop "{EOS}"\n' in lines
    for parameter in ("num_ctx 512", "num_predict 12", "temperature 0", "repeat_penalty 1", "top_k 1"):
        assert f"PARAMETER {parameter}\n" in lines


def test_the_command_is_in_the_manifest(exported: RunFolder) -> None:
    command = storage.read_record(exported.export_json, ExportManifest).artifacts["gguf_q8_0"].command
    words = shlex.split(command)
    assert words[0] == "llama-server" and (exported.path / words[2]).is_file()
    assert "--temp 0 --top-k 1 --repeat-penalty 1" in command and "\n" not in command


def test_another_prompt_rewrites_the_modelfile_and_no_weights(exported: RunFolder, tiny_model: Path) -> None:
    before = exported.artifact("gguf_q8_0").stat().st_mtime_ns
    text = (exported.gguf / "Modelfile-q8_0").read_text()
    settings = small_run.config(
        tiny_model, export={"formats": ["merged_16bit", "gguf_q8_0"]}, prompt={"template": "Q: {question}\nA:"}
    )
    try:
        export.run(exported, settings)
        assert 'TEMPLATE """Q: {{ .Prompt }}\nA:"""' in (exported.gguf / "Modelfile-q8_0").read_text()
        assert exported.artifact("gguf_q8_0").stat().st_mtime_ns == before
    finally:
        (exported.gguf / "Modelfile-q8_0").write_text(text)


def test_the_chat_template_is_in_the_file(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(CHATML)
    gguf.write(folder, tmp_path / "model.gguf", "q8_0", threads=1)
    assert GGUFReader(tmp_path / "model.gguf").fields["tokenizer.chat_template"].contents() == CHATML
    (folder / "chat_template.jinja").unlink()
    edit_json(folder / "tokenizer_config.json", chat_template=[{"name": "default", "template": "x"}])
    assert modelfile.read_chat_template(folder) == "x"


def test_all_end_tokens_are_stops_though_the_file_has_room_for_three(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    edit_json(folder / "generation_config.json", eos_token_id=[511, 65, 66, 67, 68])
    assert len(gguf.write(folder, tmp_path / "model.gguf", "q8_0", threads=1)["end_ids"]) == 3
    assert len(vocabulary.end_texts(folder)) == 5
    text = modelfile.modelfile("m.gguf", Serving("{question}", 512, 8, stop=vocabulary.end_texts(folder)))
    assert text.count("PARAMETER stop ") == 5


@pytest.mark.parametrize(
    ("jinja", "start", "stop"),
    [
        ("<|start_header_id|>..<|eot_id|>", "<|start_header_id|>user", "<|eot_id|>"),
        (CHATML, "<|im_start|>user", "<|im_end|>"),
        ("<start_of_turn>..<end_of_turn>", "<start_of_turn>user", "<end_of_turn>"),
        ("<|user|>..<|end|>", "<|user|>", "<|end|>"),
        ("[INST] [/INST]", "[INST] ", "</s>"),
    ],
)
def test_known_chat_templates(jinja: str, start: str, stop: str) -> None:
    text = modelfile.modelfile("m.gguf", Serving("", 512, 8, jinja, ("</s>",), 'Be "brief".'))
    assert f"{start}" in text and "{{ .Prompt }}" in text
    assert f'PARAMETER stop "{stop}"' in text
    assert 'SYSTEM """Be "brief"."""' in text
    assert "--jinja" in modelfile.server_command("m.gguf", Serving("", 512, 8, jinja))


def test_an_unknown_chat_template_is_left_to_the_file() -> None:
    assert "TEMPLATE" not in modelfile.modelfile("m.gguf", Serving("", 512, 8, "something else"))


@given(st.text(), st.text())
def test_text_survives_gos_templates(head: str, tail: str) -> None:
    """Unescapes as Go's text/template does: an action that prints a string literal becomes that string."""
    for text in (head, tail, head + "{{" + tail, head + '"""' + tail, head + "{", tail + '"'):
        if "\0" in text or "\1" in text:
            continue
        out = modelfile.escaped(text)
        assert not out.endswith(("{", '"'))
        for literal in ("{{", '"""', '"', "{"):
            out = out.replace(
                '{{ "' + literal.replace('"', '\\"') + '" }}',
                "\0" * len(literal) if literal[0] == "{" else "\1" * len(literal),
            )
        assert "{{" not in out and '"""' not in out
        assert out.replace("\0", "{").replace("\1", '"') == text
