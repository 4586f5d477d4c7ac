"""Configs: the shipped ones, and every mistake named at once with its hint."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.config import CONFIGS, OPTIMIZERS, PROJECT, PROJECTIONS, Config, find, load
from harness.errors import ConfigError, ModelError
from harness.models import base_model
from tests.helpers.gguf_files import gguf_types

SHIPPED = sorted(p.stem for p in CONFIGS.glob("*.yaml"))


def mistakes(tmp_path: Path, text: str, *overrides: str) -> str:
    """The one line that a config with this text is refused with."""
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(str(file), list(overrides))
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------------------------------------ shipped


def test_these_are_shipped() -> None:
    assert {"tiny", "llama3-8b", "notebook-llama3-8b"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_loads_and_names_its_command(name: str) -> None:
    config = load(name)
    assert config.description
    assert load(str(CONFIGS / f"{name}.yaml")) == config
    first = (CONFIGS / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ") and "make " in first


def test_the_defaults_are_those_of_the_library() -> None:
    config = Config()
    assert config.score.metrics == registry.default_metrics()
    assert config.train.lora.target_modules == PROJECTIONS
    assert config.model_dump(mode="json") == Config.model_validate(config.model_dump(mode="json")).model_dump(
        mode="json"
    )


def test_no_legal_metric_on_questions_of_another_subject(tmp_path: Path) -> None:
    assert "citation_f1" not in Config().score.metrics
    assert "citation_f1" in Config.model_validate({"score": {"normalizer": "legal"}}).score.metrics
    assert (
        "citation_f1"
        in Config.model_validate(
            {"score": {"metrics": ["citation_f1"]}, "gate": {"metrics": ["citation_f1"]}}
        ).score.metrics
    )
    embedded = load("tiny")
    assert embedded.score.normalizer == "legal" and "citation_f1" in embedded.score.metrics
    assert load("tiny", qa=str(PROJECT / "data/constitution_qa.json")).score == embedded.score
    for others in (load("tiny", qa="medicine.json"), load("tiny", ["data.qa=medicine.json"])):
        assert others.score.normalizer == "plain" and "citation_f1" not in others.score.metrics
    other_law = load("tiny", ["score.normalizer=legal"], qa="other_law.json").score
    assert other_law.normalizer == "legal" and "citation_f1" in other_law.metrics
    assert load("notebook-llama3-8b", qa="law.json").score.normalizer == "legal"


def test_the_notebook_recipe_is_literal() -> None:
    """Each value as in the notebook that this project started from."""
    config = load("notebook-llama3-8b")
    train = config.train
    assert config.model.path == "unsloth/llama-3-8b"
    assert (train.engine, train.load_in_4bit, train.train_on) == ("unsloth", True, "all")
    assert (train.lora.r, train.lora.alpha, train.lora.dropout) == (16, 16, 0.0)
    assert train.lora.target_modules == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert (train.learning_rate, train.scheduler, train.warmup_steps, train.max_steps) == (2e-4, "linear", 5, 60)
    assert train.batch_size == 8
    assert (train.optimizer, train.weight_decay, train.seed, train.max_length) == ("adamw_8bit", 0.01, 3407, 2048)


def test_the_embedded_default_needs_nothing_but_this_project() -> None:
    config = load("tiny")
    assert (PROJECT / config.model.path / "model.safetensors").is_file()
    assert config.data.qa and (PROJECT / config.data.qa).is_file()
    assert config.device in ("auto", "cpu")


# ----------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train: {max_step: 3}", "unknown key 'train.max_step' (did you mean 'max_steps'?)"),
        ("trian: {}", "unknown key 'trian' (did you mean 'train'?)"),
        ("train: {lora: {rank: 3}}", "unknown key 'train.lora.rank' (known: r, alpha, dropout, target_modules)"),
        ("train: {lora: {drop_out: 3}}", "unknown key 'train.lora.drop_out' (did you mean 'dropout'?)"),
        (
            "predict: {extra: {x: {backend: replay, path: p, modle: m}}}",
            "unknown key 'predict.extra.x.modle' (did you mean 'model'?)",
        ),
        ("train: {max_steps: 0}", "train.max_steps: input should be greater than or equal to 1, got 0"),
        ("train: {learning_rate: fast}", "train.learning_rate: input should be a valid number"),
        ("train: {learning_rate: .inf}", "train.learning_rate: input should be a finite number, got inf"),
        ("train: {learning_rate: .nan}", "train.learning_rate: input should be "),
        ("train: {scheduler: step}", "train.scheduler: input should be 'linear', 'cosine' or 'constant', got 'step'"),
        ("train: 5", "train: input should be"),
        ("train:\n- 5", "train: input should be"),
        ("1: 2", "1: keys should be strings"),
        (
            "prompt: {template: none}",
            "prompt.template: must contain {question} exactly once, or two {} with nothing after the second, got 'none'",
        ),
        ("prompt: {template: '{question} {question}'}", "prompt.template: must contain {question} exactly once"),
        ("score: {metrics: []}", "score.metrics: needs at least one metric"),
        (
            "export: {formats: [gguf_q3_k]}",
            "export.formats: unknown format 'gguf_q3_k'; known: merged_16bit, merged_4bit, gguf_f32",
        ),
        (
            "export: {formats: []}",
            "predict.variants: 'merged_16bit' is neither exported nor in predict.extra; add it to export.formats",
        ),
        ("predict: {extra: {../x: {backend: replay, path: p}}}", "variant name '../x' is not usable"),
        ("device: tpu", "device: input should be 'auto', 'cpu' or 'cuda', got 'tpu'"),
    ],
)
def test_a_mistake_is_named_with_its_key(tmp_path: Path, text: str, line: str) -> None:
    found = mistakes(tmp_path, text)
    assert found.startswith(f"{tmp_path}/mine.yaml: ") and found.endswith("; correct the file or the --set")
    assert line in found


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    found = mistakes(tmp_path, "train: {max_stepz: 3, seed: x}\nscore: {resamples: 1}\ndata: {heldout: 0}\nscroe: {}")
    for part in (
        "'train.max_stepz'",
        "train.seed: ",
        "score.resamples: ",
        "data.heldout: ",
        "'scroe' (did you mean 'score'?)",
    ):
        assert part in found


@pytest.mark.parametrize(
    "value", ["0", "1", "1.0", "true", "false", "-0.1", "2.5", "null", "'0.1'", ".nan", ".inf", "[0.1]", "0.0"]
)
def test_a_heldout_that_is_neither_share_nor_count_is_refused(tmp_path: Path, value: str) -> None:
    assert "data.heldout: must be a share between 0 and 1, or a count of 2 or more" in mistakes(
        tmp_path, f"data: {{heldout: {value}}}"
    )


@pytest.mark.parametrize(
    ("value", "expected"), [("0.1", 0.1), ("2", 2), ("400", 400), ("400.0", 400), ("0.899", 0.899)]
)
def test_a_heldout_is_a_share_or_a_count(value: str, expected: float | int) -> None:
    found = load("tiny", [f"data.heldout={value}"]).data.heldout
    assert (found, type(found)) == (expected, type(expected))


# ------------------------------------------------------------------------------------------------------------ YAML


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", "look at line 3"),
        ("a: 1\n\tb: 2", "look at line 2"),
        ("train: {max_steps: 3", "look at line"),
        ("a: !!python/object/apply:os.getcwd []", "look at line 1"),
        ("a: 2024-13-45", "check the file"),
        ("[" * 5000, "check the file"),
        ("a: \x00", "check the file"),
    ],
)
def test_what_is_not_yaml_is_named_with_its_line(tmp_path: Path, text: str, hint: str) -> None:
    found = mistakes(tmp_path, text)
    assert found.startswith(f"{tmp_path}/mine.yaml: is not YAML; {hint}")


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"description: \xff\xfe")
    with pytest.raises(ConfigError, match=r"x.yaml: is not YAML"):
        load(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize("text", ["- a", "5", "text"])
def test_what_is_no_mapping_is_named(tmp_path: Path, text: str) -> None:
    assert "is not a mapping of sections; see harness/configs/tiny.yaml for one" in mistakes(tmp_path, text)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("# nothing\n")
    assert load(str(tmp_path / "x.yaml")) == Config()


# -------------------------------------------------------------------------------------------------------- --set, --qa


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.max_steps=60", "train", "max_steps", 60),
        ("train.learning_rate=1e-3", "train", "learning_rate", 1e-3),
        ("train.max_steps=null", "train", "max_steps", None),
        ("export.formats=[merged_16bit]", "export", "formats", ["merged_16bit"]),
        ("model.path=a=b", "model", "path", "a=b"),
    ],
)
def test_set_overrides_one_key(override: str, section: str, key: str, value: Any) -> None:
    config = load("tiny", [override, "predict.variants=[base]"])
    assert getattr(getattr(config, section), key) == value
    assert config.train.lora == load("tiny").train.lora


def test_set_reaches_below_sections() -> None:
    assert load("tiny", ["train.lora.r=4"]).train.lora.r == 4
    assert load("tiny", ["predict.extra.x.backend=replay", "predict.extra.x.path=p"]).predict.extra["x"].path == "p"


def test_the_last_set_wins() -> None:
    assert load("tiny", ["train.seed=1", "train.seed=2"]).train.seed == 2


@pytest.mark.parametrize(
    "override",
    [
        "train.max_steps",
        "=5",
        "",
        "train.max_steps=[",
        "device.x=1",
        "device.x.y=1",
        "train.lora.target_modules.x.y=1",
        "description=2024-13-45",
    ],
)
def test_a_set_that_cannot_be_applied_is_named(override: str, tmp_path: Path) -> None:
    found = mistakes(tmp_path, "device: cpu\ntrain: {lora: {target_modules: [q_proj]}}", override)
    assert f"--set {override!r}" in found and "write it like --set train.max_steps=60" in found


def test_a_set_of_an_unknown_key_is_an_unknown_key(tmp_path: Path) -> None:
    assert "unknown key 'train.max_stes' (did you mean 'max_steps'?)" in mistakes(tmp_path, "", "train.max_stes=3")


def test_qa_wins_over_the_file(tmp_path: Path) -> None:
    assert load("tiny", ["data.qa=a.json"], qa="b.json").data.qa == "b.json"
    (tmp_path / "x.yaml").write_text("data: 5")
    with pytest.raises(ConfigError, match="data: input should be"):
        load(str(tmp_path / "x.yaml"), qa="b.json")


# --------------------------------------------------------------------------------------------------------------- find


@pytest.mark.parametrize("name", ["tyni", "configs/none.yaml", "none.yml", "", "/", "../tiny", "tiny.yaml.txt", "a\0b"])
def test_a_config_that_is_not_there_lists_those_that_are(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"no config .*; use one of {', '.join(SHIPPED)}, or the path of a YAML file"):
        find(name)


def test_a_file_is_found_by_path_and_not_by_stem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text("description: mine")
    assert load("tiny.yaml").description == "mine"
    assert load("./tiny.yaml").description == "mine"
    assert load("tiny").description != "mine"


def test_every_gguf_type_may_be_asked_for() -> None:
    formats = [f"gguf_{t}" for t in gguf_types()]
    assert load("tiny", [f"export.formats={formats}", f"predict.variants={formats}"]).export.formats == formats


# -------------------------------------------------------------------------------------------------- names and paths


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("score.metrics=[tokn_f1]", "no metric 'tokn_f1' (did you mean 'token_f1'?)"),
        ("gate.metrics=[nope]", "gate.metrics: 'nope' is not in score.metrics; known: exact_match"),
        ("train.optimizer=adamm", "no optimizer 'adamm' (did you mean"),
        ("train.lora.target_modules=[]", "needs at least one module"),
        ("train.lora.target_modules=[q_proj,lm_head]", "'lm_head' cannot be exported after training; leave it out"),
        ("train.lora.target_modules=[q_proj,embed_tokens]", "'embed_tokens' cannot be exported after training"),
        ("train.lora.target_modules=[input_layernorm]", "'input_layernorm' cannot be exported after training"),
        ("train.scheduler=cosin", "train.scheduler: input should be 'linear', 'cosine' or 'constant'"),
    ],
)
def test_an_unknown_name_is_refused_on_loading(setting: str, line: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(line)):
        load("tiny", [setting])


def test_the_gate_takes_the_scored_of_its_usual_metrics() -> None:
    assert load("tiny", ["score.metrics=[token_f1,rouge1]"]).gate.metrics == ["token_f1"]
    assert load("tiny", ["score.metrics=[rouge1,rouge2]"]).gate.metrics == ["rouge1"]
    assert Config().gate.metrics == load("tiny").gate.metrics


def test_names_are_checked_without_torch() -> None:
    code = "import sys; from harness.config import load; load('llama3-8b'); print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert done.stdout.split() == ["False", "False"]


def test_the_optimizers_are_those_of_transformers() -> None:
    from transformers.training_args import OptimizerNames

    assert set(OPTIMIZERS) == {name.value for name in OptimizerNames}


def test_target_modules_are_held_against_the_model() -> None:
    folder = PROJECT / "data" / "tiny-llama3"
    base_model.check_targets(folder, PROJECTIONS)
    base_model.check_targets(folder, ["self_attn.q_proj"])
    for wrong in ("q_projj", "self_attn", "norm", "proj"):
        with pytest.raises(
            ModelError, match=rf"has no module '{wrong}' to train; use of .*: down_proj, gate_proj, k_proj"
        ):
            base_model.check_targets(folder, ["q_proj", wrong])


class TestPaths:
    @pytest.fixture
    def elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A working folder outside the project, with a config and its files in another folder."""
        (tmp_path / "here").mkdir()
        (tmp_path / "recipes" / "models" / "mine").mkdir(parents=True)
        (tmp_path / "recipes" / "qa.json").write_text("[]")
        monkeypatch.chdir(tmp_path / "here")
        return tmp_path / "recipes"

    def recipe(self, folder: Path, text: str, *settings: str) -> Config:
        (folder / "my.yaml").write_text(text)
        return load(str(folder / "my.yaml"), list(settings))

    def test_shipped_ones_are_found_from_any_folder(self, elsewhere: Path) -> None:
        config = load("tiny")
        assert config.data.qa and Path(config.data.qa).is_file() and Path(config.model.path).is_dir()

    def test_in_the_project_they_are_as_written(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(PROJECT)
        assert (load("tiny").data.qa, load("tiny").model.path) == ("data/constitution_qa.json", "data/tiny-llama3")

    def test_those_of_a_file_are_beside_it(self, elsewhere: Path) -> None:
        config = self.recipe(elsewhere, "data: {qa: qa.json}\nmodel: {path: models/mine}")
        assert (config.data.qa, config.model.path) == (str(elsewhere / "qa.json"), str(elsewhere / "models/mine"))

    def test_or_in_the_working_folder(self, elsewhere: Path) -> None:
        Path("other.json").write_text("[]")
        assert self.recipe(elsewhere, "data: {qa: other.json}").data.qa == "other.json"

    def test_those_of_an_override_are_in_the_working_folder(self, elsewhere: Path) -> None:
        assert self.recipe(elsewhere, "", "data.qa=qa.json").data.qa == "qa.json"

    def test_a_name_on_the_hub_stays_one(self, elsewhere: Path) -> None:
        assert self.recipe(elsewhere, "model: {path: owner/model}").model.path == "owner/model"
        assert self.recipe(elsewhere, "model: {path: 'hub:models/mine'}").model.path == "hub:models/mine"

    def test_a_mistyped_folder_is_no_name_on_the_hub(self, elsewhere: Path) -> None:
        model = self.recipe(elsewhere, "model: {path: models/mien}").model
        with pytest.raises(ModelError, match=r"recipes/models/mien: there is no such folder; give a folder"):
            base_model.cached(model)
        (Path("models")).mkdir()
        with pytest.raises(
            ModelError, match=r"models/mien: there is no such folder; the folder models exists and has no 'mien'"
        ):
            base_model.hub_name(Config.model_validate({"model": {"path": "models/mien"}}).model)
        assert base_model.hub_name(Config.model_validate({"model": {"path": "hub:models/mien"}}).model) == "models/mien"


def test_a_former_name_is_still_found() -> None:
    assert find("seed-llama3-8b") == find("notebook-llama3-8b")


def test_other_questions_than_the_embedded_ones_have_no_embedded_restatements() -> None:
    assert load("tiny").data.taught
    assert load("tiny", ["data.qa=mine.json"]).data.taught is None is load("tiny", qa="mine.json").data.taught
    assert load("tiny", ["data.taught=again.json"], qa="mine.json").data.taught
