"""Evaluating models made elsewhere: what they are asked, what is refused, and under which contract they are compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import harness
from harness import storage
from harness.config import PROJECT, load
from harness.errors import ArtifactError, ConfigError, HarnessError, ModelError
from harness.formats import gguf
from harness.models import adapters
from harness.records import Comparison, PredictionManifest, SplitManifest
from harness.report import tables
from harness.stages import evaluate, predict
from harness.storage import RunFolder
from tests.helpers import small_run
from tests.helpers.models import edit_json, save_model

SETTINGS = [
    "device=cpu",
    "predict.max_new_tokens=8",
    "predict.fidelity_questions=0",
    "score.resamples=100",
    "compare.resamples=100",
    "score.metrics=[exact_match_normalized, token_f1]",
]


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run.save_adapter(tmp_path_factory.mktemp("adapter"), tiny_model, std=0.5)


@pytest.fixture
def test_file(tmp_path: Path) -> Path:
    file = tmp_path / "test.jsonl"
    rows = [{"id": f"q{i}", "question": q, "answer": a} for i, (q, a) in enumerate(small_run.QUESTIONS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def recorded(path: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    rows = rows or [{"question": q, "output": f"= {a}"} for q, a in small_run.QUESTIONS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judge(root: Path, test: Path, *models: str, **options: Any) -> tuple[RunFolder, Comparison]:
    plan = evaluate.configure(load("evaluate", SETTINGS), str(test), models, **options)
    run = RunFolder("e", root)
    return run, evaluate.run(run, plan)


# ------------------------------------------------------------------------------------------------------- the whole way


def test_an_adapter_brings_its_base_and_recorded_answers_are_compared_by_question(
    adapter: Path, test_file: Path, tmp_path: Path
) -> None:
    other = recorded(tmp_path / "other.jsonl")
    run, comparison = judge(tmp_path, test_file, f"mine=adapter:{adapter}", f"theirs=replay:{other}")
    assert list(comparison.variants) == ["base", "mine", "theirs"]
    contracts = {(p.left, p.right): p.contract for p in comparison.pairs}
    assert contracts == {("mine", "base"): "same ids", ("theirs", "base"): "same question"}
    assert [a.code for a in comparison.alarms if a.variant is None] == ["leakage_unknown"]
    assert "same question" in run.report_md.read_text()
    before = run.prediction("mine")[0].stat().st_mtime_ns
    evaluate.run(run, evaluate.configure(load("evaluate", SETTINGS), str(test_file), [f"mine=adapter:{adapter}"]))
    assert run.prediction("mine")[0].stat().st_mtime_ns == before, "unchanged answers are kept"


def test_it_answers_as_the_variant_of_a_run_does(
    adapter: Path, tiny_model: Path, test_file: Path, tmp_path: Path
) -> None:
    config = small_run.config(
        tiny_model, predict={"variants": ["adapter"], "fidelity_questions": 0, "max_new_tokens": 8}
    )
    own = small_run.split(tmp_path, name="own")
    small_run.trained(own, tiny_model, adapter)
    predict.run(own, config)
    template = f"prompt.template={json.dumps(small_run.TEMPLATE)}"
    plan = evaluate.configure(
        load("evaluate", [*SETTINGS, template]), str(test_file), [f"mine={adapter}"], load_in_4bit=True
    )
    run = RunFolder("e", tmp_path)
    evaluate.run(run, plan)
    kept = ("id", "prompt_ids", "answer_ids", "text", "finish_reason")
    theirs, ours = (
        [{k: row[k] for k in kept} for row in map(json.loads, path.read_text().splitlines())]
        for path in (own.prediction("adapter")[0], run.prediction("mine")[0])
    )
    assert ours == theirs


def test_models_of_two_tokenizers_are_in_one_comparison(tiny_model: Path, test_file: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other")
    edit_json(other / "tokenizer_config.json", eos_token="<|begin_of_text|>")
    run, comparison = judge(tmp_path, test_file, f"a={tiny_model}", f"b={other}")
    assert {p.contract for p in comparison.pairs} == {"same question"}
    assert {(p.left, p.right) for p in comparison.pairs} == {("b", "a")}
    asked = [storage.read_record(run.prediction(name)[1], PredictionManifest).asked for name in "ab"]
    assert asked == ["run", "own"]


def test_the_embedded_models_gguf_file_and_a_model_of_another_tokenizer_in_one_report(
    tiny_model: Path, test_file: Path, tmp_path: Path
) -> None:
    embedded = PROJECT / "data" / "tiny-llama3"
    file = tmp_path / "embedded.gguf"
    gguf.write(embedded, file, "f16")
    run, comparison = judge(tmp_path, test_file, f"file={file}", f"other={tiny_model}", base=str(embedded))
    assert list(comparison.variants) == ["base", "file", "other"]
    contracts = {(p.left, p.right): p.contract for p in comparison.pairs}
    assert contracts == {("file", "base"): "same ids", ("other", "base"): "same question"}
    tokenizers = {
        name: storage.read_record(run.prediction(name)[1], PredictionManifest).tokenizer_sha256
        for name in comparison.variants
    }
    assert tokenizers["file"] == tokenizers["base"] != tokenizers["other"]
    texts = {
        name: [json.loads(line)["text"] for line in run.prediction(name)[0].read_text().splitlines()]
        for name in ("base", "file")
    }
    assert sum(a == b for a, b in zip(texts["base"], texts["file"], strict=True)) >= 7, (
        "f16 rounds, and changes next to nothing"
    )
    page = run.report_md.read_text()
    assert "same ids" in page and "same question" in page


def test_leakage_is_measured_against_what_the_model_was_trained_on(test_file: Path, tmp_path: Path) -> None:
    run, comparison = judge(
        tmp_path, test_file, f"m=replay:{recorded(tmp_path / 'r.jsonl')}", trained_on=str(test_file)
    )
    assert [a.code for a in comparison.alarms if a.variant is None] == ["leakage"]
    split = storage.read_record(run.split_json, SplitManifest)
    assert split.leakage["questions_in_train"] == len(small_run.QUESTIONS)
    assert split.baselines["grouped"]["nearest_train_copy"]["exact_match"] == 1


def test_the_base_is_asked_with_examples_too(adapter: Path, test_file: Path, tmp_path: Path) -> None:
    trained_on = tmp_path / "train.jsonl"
    rows = [{"question": f"What does Article {i} provide?", "answer": f"provision {i}"} for i in range(30, 40)]
    trained_on.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, comparison = judge(tmp_path, test_file, f"mine=adapter:{adapter}", trained_on=str(trained_on), few_shot=2)
    assert list(comparison.variants) == ["base", "base_fewshot", "mine"]
    asked = storage.read_record(run.prediction("base_fewshot")[1], PredictionManifest)
    assert asked.prompt is not None and asked.prompt.few_shot == 2 and asked.prompt.first.count("provision") == 2
    contracts = {(p.left, p.right): p.contract for p in comparison.pairs}
    assert contracts["mine", "base_fewshot"] == contracts["base_fewshot", "base"] == "same question"
    (worth,) = comparison.against_few_shot
    pair = next(p for p in comparison.pairs if (p.left, p.right) == ("mine", "base_fewshot"))
    assert (worth.variant, worth.examples) == ("mine", 2)
    assert worth.answer == {"better": "yes", "undecided": "cannot tell"}.get(pair.verdict, "no")
    assert worth.text in run.report_html.read_text() and "few" in run.report_md.read_text()
    assert comparison.shipping and [c.variant for c in comparison.shipping.candidates] == ["mine"]


@pytest.mark.parametrize(
    "model, options, message",
    [
        ("adapter", {"few_shot": 2}, "no questions to take as examples; name a file: --trained-on"),
        ("replay", {"few_shot": 2}, "no base to ask with examples; name it: --base"),
        ("adapter", {"few_shot": 65}, "--few-shot 65 is not between 1 and 64"),
    ],
)
def test_examples_that_cannot_be_had(
    model: str, options: dict[str, Any], message: str, adapter: Path, test_file: Path, tmp_path: Path
) -> None:
    where = f"adapter:{adapter}" if model == "adapter" else f"replay:{recorded(tmp_path / 'r.jsonl')}"
    with pytest.raises(ConfigError, match=message):
        judge(tmp_path, test_file, f"mine={where}", **options)


# ------------------------------------------------------------------------------------------------------------ integrity


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_every_kind_of_lora_merges_as_peft_merges(tiny_model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    folder = small_run.save_adapter(tmp_path / "a", tiny_model, **options)
    found = adapters.check(adapters.read(folder), tiny_model)
    # The untouched copy of the output layer is no change, and no alarm.
    assert found == []


def test_an_adapter_without_effect_raises_an_alarm(tiny_model: Path, test_file: Path, tmp_path: Path) -> None:
    zero = small_run.save_adapter(tmp_path / "zero", tiny_model, std=0.0)
    tiny = small_run.save_adapter(tmp_path / "small", tiny_model, std=1e-15)
    assert [f.code for f in adapters.check(adapters.read(tiny), tiny_model)] == ["adapter_without_effect"]
    _, comparison = judge(tmp_path, test_file, f"zero=adapter:{zero}")
    assert {a.code for a in comparison.alarms if a.variant == "zero"} >= {"adapter_without_effect"}


def test_a_wrong_scale_is_not_taken_for_a_merge(
    tiny_model: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import Linear

    right = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: 2 * right(self, name))
    with pytest.raises(ModelError, match=r"merge of .* is not base \+ adapter"):
        adapters.check(adapters.read(adapter), tiny_model)


def test_an_adapter_for_another_base_is_one_line(adapter: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", hidden_size=128)
    with pytest.raises(ModelError, match=r"is for another base: its .* give the base .* with --base"):
        adapters.check(adapters.read(adapter), other)


def test_a_pickle_is_refused_with_the_reason(adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "pickled"))
    (folder / adapters.WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_model.bin, a pickle file, which can run any code"):
        adapters.resolve(str(folder))


def test_what_export_cannot_write_is_said_before(tiny_model: Path, tmp_path: Path, test_file: Path) -> None:
    folder = small_run.save_adapter(tmp_path / "dora", tiny_model, use_dora=True)
    plan = evaluate.configure(load("evaluate", SETTINGS), str(test_file), [f"d={folder}"])
    assert any("export could not write" in note and "use_dora" in note for note in plan.notes)


# ------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"id": "q0", "text": "x"}], "lacks the answers to 7 of 8 questions, 'q1' first"),
        ([{"id": "q0", "text": "x"}, {"id": "q0", "text": "y"}], "row 2.*answers question 'q0' again, after row 1"),
        ([{"id": "zz", "text": "x"}], "row 1.*answers 'zz', which no question"),
        ([{"id": "q0", "score": 1}], "row 1.*has no answer"),
        ([{"text": "x"}], "row 1.*neither id nor question"),
    ],
)
def test_recorded_answers_that_do_not_fit(rows: list[dict], message: str, test_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=message):
        judge(tmp_path, test_file, f"m=replay:{recorded(tmp_path / 'r.jsonl', rows)}")


@pytest.mark.parametrize(
    "model, message",
    [
        ("m=nowhere", "there is no 'nowhere'"),
        ("m=replay:nowhere.jsonl", "no such file"),
        ("m={tmp}/w.pt", "is not a GGUF file; save it as safetensors: opening a pickle file can run any code"),
        ("m={tmp}/w.gguf", "name that model: --base"),
        ("../m=nowhere", "there is no"),
    ],
)
def test_models_that_cannot_be_judged(model: str, message: str, test_file: Path, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"PK\3\4")
    (tmp_path / "w.gguf").write_bytes(b"GGUF")
    with pytest.raises(HarnessError, match=message):
        judge(tmp_path, test_file, model.format(tmp=tmp_path))


def test_two_models_of_one_name(test_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="same name"):
        judge(tmp_path, test_file, "a=b/c", "a=d/e")


# ------------------------------------------------------------------------------------------------------- the Python door


def test_functions_and_loaded_models_are_judged_from_python(tiny_model: Path, test_file: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).train()
    pair = (model, AutoTokenizer.from_pretrained(tiny_model))
    right = dict(small_run.QUESTIONS)

    def oracle(texts: list[str]) -> list[str]:
        return [next(a for q, a in right.items() if q in text) for text in texts]

    run = harness.evaluate(
        {"loaded": pair, "oracle": oracle, "folder": str(tiny_model)},
        test_file,
        settings=SETTINGS,
        root=tmp_path,
        verbose=False,
    )
    assert model.training and torch.is_grad_enabled()
    scores = run.scores().groupby(["variant", "metric"])["score"].mean()
    assert scores["oracle", "exact_match_normalized"] == 1
    texts = run.answers().pivot(index="id", columns="variant", values="text")
    assert (texts["loaded"] == texts["folder"]).all(), "a loaded model answers as its folder does"
    assert set(run.pairs()["contract"]) == {"same question"}
    assert "oracle" in run._repr_html_() and run.report().exists() and run.history().empty
    assert harness.load("evaluate", tmp_path).questions()["id"].tolist() == [f"q{i}" for i in range(8)]


def test_a_table_runs_no_formula(test_file: Path, tmp_path: Path) -> None:
    import pandas

    run, _ = judge(tmp_path, test_file, f"m=replay:{recorded(tmp_path / 'r.jsonl')}")
    csv, xlsx, parquet = (tables.export_answers(run, kind) for kind in ("csv", "xlsx", "parquet"))
    assert all(text.startswith("'= ") for text in pandas.read_csv(csv)["m"])
    assert all(text.startswith("'= ") for text in pandas.read_excel(xlsx)["m"])
    assert all(text.startswith("= ") for text in pandas.read_parquet(parquet)["m"])
    with pytest.raises(ConfigError, match="no format 'doc'"):
        tables.export_answers(run, "doc")
