"""The config schema, and the only defaults.

A config is a YAML file in `harness/configs/` (named without its ending) or anywhere (named by its path). Keys it leaves out take the
defaults below; keys it misspells are fatal, and all mistakes are reported at once. `--set train.max_steps=60` overrides one key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from harness.errors import ADDRESS, ConfigError
from harness.storage import check_name, strict_json, strict_yaml

CONFIGS = Path(__file__).parent / "configs"
MAX_MISTAKES = 20
"""Told at once."""
PROJECT = Path(__file__).parent.parent
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GGUF_TYPES = ["f32", "f16", "q8_0", "q6_k", "q5_k_m", "q5_0", "q4_k_m", "q4_0"]
METRICS = [
    "exact_match",
    "exact_match_normalized",
    "token_f1",
    "rouge1",
    "rouge2",
    "rougeL",
    "rougeLsum",
    "citation_f1",
]

TEMPLATE = """\
You are an expert on the Constitution of India.

### Question:
{question}

### Answer:
"""

SEMANTIC = "semantic_similarity"
AlarmCode = Literal[
    "runaway",
    "prompts_cut",
    "empty_answers",
    "unscored",
    "prompt_mismatch",
    "adapter_without_effect",
    "constant_answers",
]
Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
CountOrAuto = Annotated[int, Field(ge=0, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy and torch both take."""
Resamples = Annotated[int, Field(ge=100, le=1_000_000)]


class Section(BaseModel):
    """The base of every section: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Model(Section):
    """The base model."""

    path: str = "data/tiny-llama3"
    """A folder, or a name on a model hub."""
    revision: str | None = None
    """Of a hub model: branch, tag or commit."""
    trust_remote_code: bool = False
    """Lets a hub model run its own code here; recorded in the report."""


class Columns(Section):
    """Which columns of the QA file are what, by their names in the file; none: found by their usual names."""

    question: str | None = None
    answer: str | None = None
    context: str | None = None
    """A passage that is put before the question."""


class Data(Section):
    """The questions and their split."""

    qa: str | None = "data/constitution_qa.json"
    """Questions and answers: a file of one of the shapes in README's "Your file", or `hub:owner/name[:split]`; null: nothing to train on
    (a test file is needed then)."""
    test: str | None = None
    """Holds out exactly the questions of this file; all of `data.qa` trains."""
    trained_on: str | None = None
    """What a model was trained on elsewhere, beside `data.test`: read for leakage and the no-model baselines, never trained on; `data.qa` is
    not read then."""
    drop_leaks: bool = False
    """Leaves training rows out whose question stands in the test file, or is a near-duplicate of one there."""
    columns: Columns = Columns()
    turns: Literal["one", "last"] = "one"
    """Conversations of several turns: left out and counted, or their last turn with the turns before it as context."""
    unanswerable: Annotated[str, Field(min_length=1, max_length=1000)] = "unanswerable"
    """The reference answer of rows that are marked as having none, as in SQuAD 2."""
    heldout: float | int = 0.1
    """Share (between 0 and 1) or count (2 or more) of the rows to hold out; not used with a test file."""
    dev: float | int | None = None
    """Share or count of the rows for choosing: the loss during training is measured on them; 0: none. None: 0.1, and 0 with a test file."""
    seed: Seed = 0
    ngram: Annotated[int, Field(ge=1, le=16)] = 5
    """Characters in a shingle of the near-duplicate test."""
    similarity: Share = 0.5
    """Jaccard similarity from which two questions are near-duplicates."""
    long_answer_words: Count = 6
    """Identical answers of at least so many words keep their rows together."""

    @field_validator("heldout", "dev", mode="before")
    @classmethod
    def _share_or_count(cls, value: object, info: ValidationInfo) -> object:
        if info.field_name == "dev" and (value is None or (value == 0 and not isinstance(value, bool))):
            return value
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not (0 < value < 1 or (value >= 2 and value % 1 == 0))
        ):
            raise ValueError("must be a share between 0 and 1, or a count of 2 or more")
        return int(value) if value >= 2 else value

    @model_validator(mode="after")
    def _files_fit(self) -> Data:
        if self.trained_on and not self.test:
            raise ValueError("trained_on: needs data.test, the questions to judge the model on")
        if self.qa is None and not self.test:
            raise ValueError("qa: is null and there is no data.test; name one of them")
        if (
            self.dev_size < 1
            and isinstance(self.heldout, float)
            and not self.test
            and self.heldout + self.dev_size >= 1
        ):
            raise ValueError(f"heldout {self.heldout} and dev {self.dev_size} leave nothing to train on")
        return self

    @property
    def dev_size(self) -> float | int:
        """The share or count of the dev side that holds."""
        if self.dev is not None:
            return self.dev
        return 0 if self.test else 0.1

    @property
    def training_file(self) -> str | None:
        """The file whose rows are trained on; None: nothing is."""
        return None if self.trained_on else self.qa


class Prompt(Section):
    """How a question is put, in training and to every backend."""

    template: str = TEMPLATE
    """Rendered with `{question}`; the answer follows it directly."""

    @field_validator("template")
    @classmethod
    def _one_question(cls, value: str) -> str:
        if value.count("{question}") != 1:
            raise ValueError("must contain {question} exactly once")
        return value


class Lora(Section):
    """The adapter."""

    r: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[int, Field(ge=1)] = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: list[str] = PROJECTIONS


class Train(Section):
    """Fine-tuning."""

    engine: Literal["unsloth", "peft"] = "unsloth"
    load_in_4bit: bool = True
    """NF4 with double quantisation (QLoRA); false trains on the 16-bit base."""
    lora: Lora = Lora()
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    max_steps: Count | None = None
    """Optimiser steps; wins over `epochs`, and the epochs it covers are printed."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    batch_size: Count = 8
    """Rows of an optimiser step, over all devices. How a device takes its share is planned from its memory, and does not change the step."""
    micro_batch_size: Count | None = None
    """Rows at once on a device, at most."""
    optimizer: str = "adamw_8bit"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    max_length: Annotated[int, Field(ge=8)] = 2048
    """Tokens of a training row; a longer one loses the end of its answer, never its question."""
    train_on: Literal["answer", "all"] = "answer"
    """Which tokens carry loss: the answer and its end token, or the prompt as well."""
    gradient_checkpointing: bool | None = None
    """Computes activations again in the backward pass instead of keeping them; none: on a GPU, if memory asks for it."""
    packing: bool | None = None
    """Rows end to end without padding, each attending to itself; none: on a GPU that can."""
    cuda_graphs: bool | None = None
    """Replays packed steps as CUDA graphs; none: where activations are kept."""
    memory_limit_gib: Annotated[float, Field(gt=0)] | None = None
    """Device memory to plan with; none: what is free."""
    group_by_length: bool = False
    """Rows of like length share a batch: less padding, and a data order that is not quite random."""
    seed: Seed = 3407
    log_every: Count = 1
    eval_every: Count = 50
    """Steps between measurements of the loss on dev."""
    eval_rows: Annotated[int, Field(ge=0)] = 64
    """Dev rows whose loss is measured; 0: none."""
    save_every: Count = 100
    """Steps between checkpoints."""


class Export(Section):
    """The formats to write; the adapter is always there."""

    formats: list[str] = ["merged_16bit", "merged_4bit", "gguf_f16", "gguf_q8_0", "gguf_q4_k_m"]
    llama_cpp: str | None = None
    """A llama.cpp checkout, for architectures that the built-in converter does not write."""

    @field_validator("formats")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        known = ["merged_16bit", "merged_4bit", *(f"gguf_{t}" for t in GGUF_TYPES)]
        unknown = [f for f in value if f not in known]
        if unknown:
            raise ValueError(f"unknown format {unknown[0]!r}; known: {', '.join(known)}")
        return value


class ExtraVariant(Section):
    """A further model to answer the same questions."""

    backend: Literal["transformers", "llamacpp", "endpoint", "replay"]
    path: str
    """A model folder, a GGUF file, an endpoint's base URL, or a predictions file."""
    load_in_4bit: bool = False
    model: str | None = None
    """Endpoint: the served model's name."""


class Predict(Section):
    """Who answers, and how: always greedily."""

    variants: list[str] = ["base", "adapter", "merged_16bit", "merged_4bit", "gguf_f16", "gguf_q8_0", "gguf_q4_k_m"]
    extra: dict[str, ExtraVariant] = {}
    """Name -> a further model directory, GGUF file or endpoint."""
    max_new_tokens: Count = 128
    batch_tokens: CountOrAuto = 0
    """Padded prompt plus answer tokens in one transformers batch; 0: what memory holds on a GPU, 16384 on the CPU."""
    max_batch: CountOrAuto = 0
    """Questions in one transformers batch, at most; 0: up to 512 on a GPU, 64 on the CPU."""
    processes: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that share the questions of a transformers variant; 0: one on each visible GPU, and one on the CPU."""
    slots: Annotated[int, Field(ge=1, le=64)] = 4
    """Parallel sequences in llama.cpp."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads; 0: one per 50 million parameters, and one per core at most."""
    fidelity_questions: Annotated[int, Field(ge=0)] = 24
    """Questions on which log-probabilities and the noise of another batch size are measured; 0: neither."""

    @field_validator("extra")
    @classmethod
    def _names(cls, value: dict[str, ExtraVariant]) -> dict[str, ExtraVariant]:
        for name in value:
            try:
                check_name(name, "variant")
            except ConfigError as error:
                raise ValueError(str(error)) from None
            # `manifest` would be the name of the file that lists the variants.
            if name in ("manifest", "base", "adapter", "merged_16bit", "merged_4bit") or name.startswith("gguf_"):
                raise ValueError(f"{name!r} is taken, choose another name")
        return value


class Score(Section):
    """Metrics and the intervals on each number."""

    metrics: list[str] = METRICS
    semantic_model: str | None = None
    """A sentence-transformers model, folder or hub name: adds the metric `semantic_similarity` (needs the extra `semantic`)."""
    resamples: Resamples = 10_000
    seed: Seed = 0

    @field_validator("metrics")
    @classmethod
    def _some(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("needs at least one metric")
        return value

    @model_validator(mode="after")
    def _semantic_has_a_model(self) -> Score:
        if SEMANTIC in self.metrics and not self.semantic_model:
            raise ValueError(f"{SEMANTIC!r} needs score.semantic_model, a sentence-transformers model")
        return self


class Compare(Section):
    """Paired differences."""

    margin: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Differences within plus or minus this are equivalent."""
    resamples: Resamples = 10_000
    seed: Seed = 0
    runaway_limit: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of answers that end at the length limit from which an alarm is raised."""
    constant_limit: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """The commonest answer's share less the commonest reference's, from which an alarm is raised. Two answers (yes and no) cannot reach 0.5."""


class Gate(Section):
    """What fails a change in CI (see `harness.gating.noninferiority` for how a difference is decided)."""

    metrics: list[str] = ["exact_match_normalized", "token_f1", "rougeL"]
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """A loss up to this, against the baseline, is tolerated."""
    margins: dict[str, Annotated[float, Field(ge=0, lt=1)]] = {}
    """Metric -> its own margin."""
    variants: list[str] = []
    """None named: every variant of the baseline; a baseline is saved of every variant but `base`."""
    fidelity: dict[str, Annotated[float, Field(ge=0, lt=1)]] = {
        "gguf_q8_0": 0.02,
        "merged_4bit": 0.05,
        "gguf_q4_k_m": 0.05,
    }
    """Variant -> the most it may lose, on each metric, against `merged_16bit` of the same run."""
    divergence: dict[str, Annotated[float, Field(gt=0)]] = {
        "adapter": 0.1,
        "merged_4bit": 0.1,
        "gguf_f16": 0.005,
        "gguf_q8_0": 0.005,
        "gguf_q4_k_m": 0.1,
    }
    """Variant -> the largest mean Kullback-Leibler divergence, in nats, between its next tokens and those of `merged_16bit`, where it was measured."""
    floors: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    """Metric -> the least mean of every gated variant."""
    size_ratio: dict[str, Annotated[float, Field(gt=0)]] = {"gguf_f16": 1.1, "gguf_q8_0": 0.7, "gguf_q4_k_m": 0.5}
    """Variant -> its largest size as a multiple of `base`'s."""
    speed_ratio: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Variant -> its least tokens per second as a multiple of `base`'s."""
    alarms: dict[AlarmCode, Annotated[float, Field(ge=0, le=1)]] = {
        "runaway": 0.02,
        "unscored": 0.0,
        "prompts_cut": 0.0,
        "prompt_mismatch": 0.0,
        "adapter_without_effect": 0.0,
        "constant_answers": 0.5,
    }
    """Alarm -> the largest tolerated share of a gated variant's answers."""
    strict: bool = False
    """Too few questions to exclude a loss of the margin fails as well (exit 4)."""

    @model_validator(mode="after")
    def _known_metrics(self) -> Gate:
        if not self.metrics:
            raise ValueError("metrics: needs at least one")
        stray = [name for name in (*self.margins, *self.floors) if name not in self.metrics]
        if stray:
            raise ValueError(f"{stray[0]!r} has a margin or floor and is not in gate.metrics")
        return self


class Wandb(Section):
    """Weights & Biases: offline unless a key is set or WANDB_MODE says otherwise."""

    project: str = "qa-harness"
    enabled: bool = True


class Config(Section):
    """One recipe, from the questions to the gate."""

    description: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    model: Model = Model()
    data: Data = Data()
    prompt: Prompt = Prompt()
    train: Train = Train()
    export: Export = Export()
    predict: Predict = Predict()
    score: Score = Score()
    compare: Compare = Compare()
    gate: Gate = Gate()
    wandb: Wandb = Wandb()

    @model_validator(mode="after")
    def _variants_are_made(self) -> Config:
        made = {"base", "adapter", *self.export.formats, *self.predict.extra}
        missing = [v for v in self.predict.variants if v not in made]
        if missing:
            raise ValueError(
                f"predict.variants: {missing[0]!r} is neither exported nor in predict.extra; add it to export.formats or predict.extra"
            )
        return self

    @model_validator(mode="after")
    def _gate_fits(self) -> Config:
        known = {
            "base",
            "adapter",
            "merged_16bit",
            "merged_4bit",
            *(f"gguf_{t}" for t in GGUF_TYPES),
            *self.predict.extra,
        }
        for key in ("variants", "fidelity", "divergence", "size_ratio", "speed_ratio"):
            unknown = [variant for variant in getattr(self.gate, key) if variant not in known]
            if unknown:
                raise ValueError(f"gate.{key}: no variant {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return self


def load(name: str, overrides: list[str] | None = None, *, qa: str | None = None) -> Config:
    """Reads a config by name or path and applies `key.path=value` overrides (YAML values).

    Raises:
        ConfigError: naming every mistake at once, and the nearest known key for each unknown one.
    """
    path = find(name)
    try:
        if path.stat().st_size > 4 * strict_yaml.MAX_CHARACTERS:
            raise strict_yaml.NotUsable(f"has more than {strict_yaml.MAX_CHARACTERS:,} characters")
        values = strict_yaml.loads(path.read_text(encoding="utf-8")) or {}
    except strict_yaml.NotUsable as error:
        raise ConfigError(
            error.problem, f"look at line {error.line}" if error.line else "check the file", file=path
        ) from None
    except UnicodeDecodeError:
        raise ConfigError("is not YAML", "save it as UTF-8", file=path) from None
    if not isinstance(values, dict):
        raise ConfigError("is not a mapping of sections", "see harness/configs/tiny.yaml for one", file=path)
    for override in overrides or []:
        key, found, text = override.partition("=")
        if not found or not key:
            raise ConfigError(f"--set {override!r} is not KEY=VALUE", "write it like --set train.max_steps=60")
        try:
            _put(values, key.split("."), strict_yaml.loads(text))
        except (strict_yaml.NotUsable, _NotASection):
            raise ConfigError(
                f"--set {override!r} cannot be applied", "write it like --set train.max_steps=60"
            ) from None
    if qa is not None and isinstance(values.get("data"), dict | None):
        _put(values, ["data", "qa"], qa)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        found = [_explain(detail) for detail in error.errors(include_url=False)]
        more = [f"{len(found) - MAX_MISTAKES} more"] if len(found) > MAX_MISTAKES else []
        raise ConfigError("; ".join(found[:MAX_MISTAKES] + more), "correct the file or the --set", file=path) from None
    for key, text in _texts(config.model_dump(mode="json")):
        if strict_json.SURROGATE.search(text):
            raise ConfigError(f"{key}: is not UTF-8", "give it in UTF-8", file=path)
        if any(found["user"] or (found["query"] and key.endswith(".path")) for found in ADDRESS.finditer(text)):
            raise ConfigError(
                f"{key}: holds a password or a key in an address, and configs are written into reports",
                "leave it out; an endpoint's key goes into the environment variable HARNESS_ENDPOINT_KEY",
                file=path,
            )
    return config


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(inner, f"{key}.{name}".lstrip("."))


def find(name: str) -> Path:
    """The file of a config given by name or path."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if path.is_file():
            return path
    elif (path := CONFIGS / f"{name}.yaml").is_file():
        return path
    known = sorted(p.stem for p in CONFIGS.glob("*.yaml"))
    raise ConfigError(f"no config {name!r}", f"use one of {', '.join(known)}, or the path of a YAML file")


class _NotASection(Exception):
    pass


def _put(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        if values.get(key) is None:
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            raise _NotASection
    values[keys[-1]] = value


def _explain(detail: Any) -> str:
    keys = [str(k) for k in detail["loc"]]
    where = ".".join(keys)
    if detail["type"] == "extra_forbidden":
        section: type[BaseModel] = Config
        for key in keys[:-1]:
            field = section.model_fields.get(key)
            # `predict.extra` holds sections under names of the user's choice.
            for annotation in (field.annotation, *get_args(field.annotation)) if field else ():
                if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                    section = annotation
        near = difflib.get_close_matches(keys[-1], section.model_fields, n=1)
        return f"unknown key {where!r}" + (
            f" (did you mean {near[0]!r}?)" if near else f" (known: {', '.join(section.model_fields)})"
        )
    message = detail["msg"].removeprefix("Value error, ")
    shown = repr(detail["input"])
    return (
        (f"{where}: " if where else "")
        + f"{message[0].lower()}{message[1:]}"
        + (f", got {shown}" if where and len(shown) < 60 else "")
    )
