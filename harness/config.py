"""The config schema, and the only defaults.

A config is a YAML file in `harness/configs/` (named without its ending) or anywhere (named by its path). Keys it leaves out take the
defaults below; keys it misspells are fatal, and all mistakes are reported at once. `--set train.max_steps=60` overrides one key.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from harness import config_loading, registry, variants
from harness.config_loading import CONFIGS, PROJECT, IsPath, find, one_of, unknown
from harness.errors import ConfigError
from harness.storage import check_name

__all__ = ["CONFIGS", "PROJECT", "Config", "find", "load"]
MAX_MISTAKES = 20
"""Listed in one message."""
NOT_EXPORTABLE = {"lm_head", "embed_tokens", "embed_in", "wte", "norm"}
"""Modules that no exported format can hold an adapter of: output and input weights, which may be tied, and norms, which are not matrices."""
OPTIMIZERS = (
    "adafactor adagrad adalomo adamw_8bit adamw_anyprecision adamw_bnb_8bit adamw_torch adamw_torch_4bit adamw_torch_8bit adamw_torch_fused "
    "adamw_torch_npu_fused adamw_torch_xla ademamix ademamix_8bit apollo_adamw apollo_adamw_layerwise galore_adafactor "
    "galore_adafactor_layerwise galore_adamw galore_adamw_8bit galore_adamw_8bit_layerwise galore_adamw_layerwise grokadamw lion_32bit "
    "lion_8bit lomo paged_adamw_32bit paged_adamw_8bit paged_ademamix_32bit paged_ademamix_8bit paged_lion_32bit paged_lion_8bit rmsprop "
    "rmsprop_bnb rmsprop_bnb_32bit rmsprop_bnb_8bit schedule_free_adamw schedule_free_radam schedule_free_sgd sgd stable_adamw"
).split()
"""transformers' `OptimizerNames` (5.17); some need a package of their own."""
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

TEMPLATE = """\
### Question:
{question}

### Answer:
"""

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

    path: Annotated[str, IsPath()] = "data/tiny-llama3"
    """A folder, or a name on a model hub (`owner/name`, where no folder `owner` is there; `hub:owner/name` in any case)."""
    revision: str | None = None
    """Of a hub model: branch, tag or commit."""
    trust_remote_code: bool = False
    """Lets a hub model run its own code here; recorded in the report."""


class Columns(Section):
    """Which columns of a QA file are what, by their names in the file; None: found by their usual names."""

    question: str | None = None
    answer: str | None = None
    context: str | None = None
    """A passage that is put before the question."""


class Data(Section):
    """The questions and their split."""

    qa: Annotated[str | None, IsPath()] = "data/constitution_qa.json"
    """Questions and answers, in one of the shapes of README's "Your file"; null: nothing to train on (a test file is needed then)."""
    test: Annotated[str | None, IsPath()] = None
    """Holds out exactly the questions of this file; all of `data.qa` trains."""
    trained_on: Annotated[str | None, IsPath()] = None
    """What a model was trained on elsewhere, beside `data.test`: read for leakage and the no-model baselines, never trained on; `data.qa` is not
    read then."""
    drop_leaks: bool = False
    """Leaves training rows out whose question is in the test file, or is a near-duplicate of one there."""
    columns: Columns = Columns()
    turns: Literal["one", "last"] = "one"
    """Conversations of several turns: left out and counted, or their last turn with the turns before it as context."""
    unanswerable: Annotated[str, Field(min_length=1, max_length=1000)] = "unanswerable"
    """The reference answer of rows that are marked as having none, as in SQuAD 2."""
    heldout: float | int = 0.1
    """Share (between 0 and 1) or count (2 or more) of the rows to hold out; not used with a test file."""
    dev: float | int | None = None
    """Share or count of the rows for choosing: the loss during training is measured on them; 0: none. None: 0.1, and 0 with a test file."""
    taught: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the facts on the training side of which one phrasing is kept back, to ask whether the model learned what it was taught. A column
    `fact` names the fact on every row that asks for it; a file without one has no such side. 0: none."""
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
        if not self.test and self.heldout < 1 and self.dev_size < 1 and self.heldout + self.dev_size >= 1:
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

    format: Literal["auto", "text", "chat"] = "auto"
    """`text` is `template`; `chat` is the tokenizer's own chat template; `auto` is chat where the tokenizer has one."""
    template: str = TEMPLATE
    """Of text: rendered with `{question}`; the answer follows it directly. A template with two `{}` (question, answer) is taken as it is pasted."""
    system: str | None = None
    """Chat: the system message."""
    enable_thinking: bool | None = None
    """Chat: the switch that templates of reasoning models have; none: the template's own default."""
    few_shot: Annotated[int, Field(ge=0, le=64)] = 0
    """So many of the nearest training questions, with their answers, stand in front of each question."""

    @field_validator("template", mode="before")
    @classmethod
    def _pasted(cls, value: object) -> object:
        """A template that also has a place for the answer, as notebooks have it, up to that place."""
        for question, answer in (("{}", "{}"), ("{question}", "{answer}")):
            if isinstance(value, str) and value.count("{}") in (0, 2) and answer in value and question in value:
                before, _, rest = value.partition(question)
                between, _, after = rest.partition(answer)
                if "{" not in before + between + after and not after.strip():
                    return before + "{question}" + between
        return value

    @field_validator("template")
    @classmethod
    def _one_question(cls, value: str) -> str:
        if value.count("{question}") != 1:
            raise ValueError("must contain {question} exactly once, or two {} with nothing after the second")
        return value

    @field_validator("system")
    @classmethod
    def _not_blank(cls, value: str | None) -> str | None:
        return value if value and value.strip() else None


class Lora(Section):
    """The adapter."""

    r: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[int, Field(ge=1)] = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: list[str] = PROJECTIONS
    """Linear layers, by the last part of their names."""

    @field_validator("target_modules")
    @classmethod
    def _exportable(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("needs at least one module")
        refused = [name for name in value if name.rpartition(".")[2] in NOT_EXPORTABLE or "norm" in name]
        if refused:
            raise ValueError(f"{refused[0]!r} cannot be exported after training; leave it out")
        return value


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
    optimizer: Annotated[str, AfterValidator(one_of("optimizer", OPTIMIZERS))] = "adamw_8bit"
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
    seeds: list[Seed] = []
    """Several: the recipe is trained with each, the first in this run, and compared as one variant with the mean over them (`harness run --seeds N`)."""
    log_every: Count = 1
    eval_every: Count = 50
    """Steps between measurements of the loss on dev."""
    eval_rows: Annotated[int, Field(ge=0)] = 64
    """Dev rows whose loss is measured; 0: none."""
    save_every: Count = 100
    """Steps between checkpoints."""

    @model_validator(mode="before")
    @classmethod
    def _first_seed(cls, values: Any) -> Any:
        seeds = values.get("seeds") if isinstance(values, dict) else None
        return values | {"seed": seeds[0]} if isinstance(seeds, list) and seeds and "seed" not in values else values

    @model_validator(mode="after")
    def _seeds_fit(self) -> Train:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: names a seed twice")
        if self.seeds and self.seed != self.seeds[0]:
            raise ValueError(f"seed {self.seed} is not the first of seeds, {self.seeds[0]}; leave one of the two out")
        return self


class Export(Section):
    """The formats to write; the adapter is always there."""

    formats: list[str] = Field(
        default_factory=lambda: [name for name in variants.defaults() if variants.is_exported(name)]
    )
    llama_cpp: Annotated[str | None, IsPath()] = None
    """A llama.cpp checkout, for architectures that the built-in converter does not write."""
    importance_rows: CountOrAuto = 128
    """Training rows that the importance matrix of small GGUF types (q3_k_m, q2_k, iq4_xs, q4_k_m) is measured on, at most; 0: none."""

    @field_validator("formats")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        known = variants.exported()
        unknown = [f for f in value if f not in known]
        if unknown:
            raise ValueError(f"unknown format {unknown[0]!r}; known: {', '.join(known)}")
        return value


class Price(Section):
    """What a server charges, in any one currency, for a million tokens."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]


class ExtraVariant(Section):
    """A further model to answer the same questions."""

    backend: str
    """One of `harness.registry.BACKENDS`."""
    path: str | None = None
    """transformers: a model's folder or hub name; llamacpp: a GGUF file; endpoint: the server's address up to and including `/v1`; replay: a
    predictions file. None: `adapter` is given, or (python) an object of the calling program."""
    adapter: str | None = None
    """transformers: folder or hub name of an adapter, put on `base` by PEFT."""
    base: str | None = None
    """The model that the adapter is put on: a folder or hub name; none: the one that its adapter_config.json names."""
    revision: str | None = None
    """Of a hub model or adapter: branch, tag or commit."""
    load_in_4bit: bool = False
    """transformers: quantise to NF4 on loading, as QLoRA trains; false: 16 bits (32 on a CPU)."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer to ask this model with; none: the model's own."""
    prompt: Prompt | None = None
    """How this model is asked; none: as the run asks. A chat server puts its own template around it."""
    api: Literal["completions", "chat"] = "completions"
    """endpoint: which of the server's two ways is used. `completions` sends token ids (text where no tokenizer is known), `chat` sends messages."""
    model: str | None = None
    """endpoint: the served model's name; none: the first that the server names."""
    parallel: Annotated[int, Field(ge=1, le=1024)] | None = None
    """endpoint: requests in flight at most; none: `predict.slots`."""
    price: Price | None = None
    """endpoint: adds the cost in money."""

    @model_validator(mode="after")
    def _fits_its_backend(self) -> ExtraVariant:
        if self.backend == "transformers" and (self.path is None) == (self.adapter is None):
            raise ValueError("needs either path (a whole model) or adapter")
        if self.backend not in ("transformers", "python") and self.path is None:
            raise ValueError(f"backend {self.backend!r} needs path")
        allowed = {
            "transformers": {"adapter", "base", "load_in_4bit", "revision"},
            "endpoint": {"api", "model", "parallel", "price"},
        }
        for key in ("adapter", "base", "load_in_4bit", "revision", "api", "model", "parallel", "price"):
            given = getattr(self, key) != type(self).model_fields[key].default
            if given and key not in allowed.get(self.backend, ()):
                raise ValueError(f"backend {self.backend!r} takes no {key}")
        if self.base is not None and self.adapter is None:
            raise ValueError("base is only for an adapter; name a whole model as path")
        return self

    @field_validator("backend")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in registry.BACKENDS:
            raise ValueError(f"no backend {value!r}; known: {', '.join(registry.BACKENDS)}")
        return value


class Predict(Section):
    """Who answers, and how: always greedily."""

    variants: list[str] = Field(default_factory=variants.defaults)
    extra: dict[str, ExtraVariant] = {}
    """Name -> a further model directory, GGUF file or endpoint."""
    max_new_tokens: Count = 128
    batch_tokens: CountOrAuto = 0
    """Padded prompt plus answer tokens in one transformers batch; 0: what memory holds on a GPU, 16384 on the CPU."""
    max_batch: CountOrAuto = 0
    """Questions in one transformers batch, at most; 0: up to 512 on a GPU, 64 on the CPU."""
    processes: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that share the questions of a transformers variant; 0: one on each visible GPU, and one on the CPU."""
    slots: Annotated[int, Field(ge=0, le=256)] = 0
    """Parallel sequences in llama.cpp, or requests to an endpoint; 0: measured, or 4 for an endpoint."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads; 0: measured by llama.cpp; one per 50 million parameters, and one per core at most, by transformers."""
    libllama: str | None = None
    """Another build of llama.cpp, for instance with CUDA: its shared object, or the folder of it; none: xllamacpp's."""
    gpu_layers: Annotated[int, Field(ge=-1, le=10_000)] | None = None
    """Layers of a GGUF model on the GPU, -1: all; none: all on a GPU if this build of llama.cpp can, else none."""
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
            if variants.is_reserved(name):
                raise ValueError(f"{name!r} is taken, choose another name")
        return value


class Score(Section):
    """Metrics and the intervals on each number."""

    normalizer: Literal["plain", "legal", "code"] = "plain"
    """What `exact_match_normalized`, `token_f1` and `list_f1` take for equal: see `harness.metrics.normalize`. Part of their signature."""
    metrics: list[str] = Field(default_factory=lambda data: registry.default_metrics(data.get("normalizer", "plain")))
    """None named: those that suit the normalizer; citations are read only with `legal`."""
    semantic_model: Annotated[str | None, IsPath()] = None
    """A sentence-transformers model, folder or hub name: adds the metric `semantic_similarity` (needs the extra `semantic`)."""
    resamples: Resamples = 10_000
    seed: Seed = 0

    @field_validator("metrics")
    @classmethod
    def _some(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("needs at least one metric")
        for name in value:
            if name not in registry.METRICS:
                raise ValueError(unknown("metric", name, list(registry.METRICS)))
        return value

    def scored(self) -> list[str]:
        """The metrics named, and those that are added because all they require is set."""
        required = {name: facts.requires.values() for name, facts in registry.METRICS.items() if facts.requires}
        added = [name for name, keys in required.items() if all(getattr(self, key) for key in keys)]
        return [*self.metrics, *(name for name in added if name not in self.metrics)]

    @model_validator(mode="after")
    def _required_settings(self) -> Score:
        for name, facts in registry.METRICS.items():
            missing = [key for key in facts.requires.values() if getattr(self, key) is None]
            if name in self.metrics and missing:
                raise ValueError(f"{name!r} needs score.{missing[0]}")
        return self


class Compare(Section):
    """Paired differences."""

    margin: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Differences within plus or minus this are equivalent."""
    primary: str = "auto"
    """The metric that decides; auto: exact match where the references are short, token F1 where they are long."""
    resamples: Resamples = 10_000
    seed: Seed = 0
    easy_kinds: list[str] = []
    """Kinds of question that a rule answers without a model, the easiest first: the primary metric is told without them as well."""
    runaway_limit: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of answers that end at the length limit from which an alarm is raised."""
    constant_limit: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """The commonest answer's share less the commonest reference's, from which an alarm is raised. Two answers (yes and no) cannot reach 0.5."""


class Gate(Section):
    """What fails a change in CI (see `harness.gating.noninferiority` for how a difference is decided)."""

    metrics: list[str] = Field(default_factory=registry.gate_metrics)
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """A loss up to this, against the baseline, is tolerated."""
    margins: dict[str, Annotated[float, Field(ge=0, lt=1)]] = {}
    """Metric -> its own margin."""
    variants: list[str] = []
    """None named: every variant of the baseline; a baseline is saved of every variant but `base`."""
    fidelity: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(
        default_factory=lambda: variants.limits("max_loss")
    )
    """Variant -> the most it may lose, on each metric, against `merged_16bit` of the same run."""
    divergence: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=lambda: variants.limits("max_divergence")
    )
    """Variant -> the largest mean Kullback-Leibler divergence, in nats, between its next tokens and those of `merged_16bit`, where it was measured."""
    floors: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    """Metric -> the least mean of every gated variant."""
    size_ratio: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=lambda: variants.limits("max_size_ratio")
    )
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
    kind_questions: Annotated[int, Field(ge=0, le=10**6)] = 15
    """Held-out questions of one kind from which a loss on that kind alone fails; 0: kinds are not looked at."""
    must_improve: bool = False
    """Every gated variant must be surely better than `base` in the same run: an untrained model fails."""
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


class Ship(Section):
    """When a model is good enough to ship, and in which file (see `harness.gating.shipping` for how it is decided)."""

    least_gain: Annotated[float, Field(ge=0, lt=1)] | None = None
    """The gain over the base on the primary metric that must be certain; none: `compare.margin`."""
    largest_format_loss: Annotated[float, Field(ge=0, lt=1)] | None = None
    """The most that a format may lose against `merged_16bit`; none: that of `gate.fidelity`, else `compare.margin`."""
    max_size_gb: Annotated[float, Field(gt=0)] | None = None
    """Largest file, in GB of 10^9 bytes."""
    min_tokens_per_second: Annotated[float, Field(gt=0)] | None = None
    """Least speed, on the machine that answered."""
    kinds: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    """Kind of question -> the least that the primary metric must certainly reach on it."""


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
    export: Export = Field(default_factory=Export)
    predict: Predict = Field(default_factory=Predict)
    score: Score = Field(default_factory=Score)
    compare: Compare = Compare()
    gate: Gate = Field(default_factory=Gate)
    ship: Ship = Ship()
    wandb: Wandb = Wandb()

    @model_validator(mode="before")
    @classmethod
    def _gate_follows_score(cls, values: Any) -> Any:
        """Where only the scored metrics are named, the gate takes those of its usual metrics that are scored, else the first."""
        score, gate = (values.get(key) if isinstance(values, dict) else None for key in ("score", "gate"))
        scored = score.get("metrics") if isinstance(score, dict) else None
        if not scored or not isinstance(scored, list) or (isinstance(gate, dict) and "metrics" in gate):
            return values
        if gate is not None and not isinstance(gate, dict):
            return values
        usual = [name for name in Gate().metrics if name in scored]
        return values | {"gate": (gate or {}) | {"metrics": usual or scored[:1]}}

    @model_validator(mode="after")
    def _gate_is_scored(self) -> Config:
        scored = self.score.scored()
        stray = [name for name in self.gate.metrics if name not in scored]
        if stray:
            raise ValueError(f"gate.metrics: {stray[0]!r} is not in score.metrics; known: {', '.join(scored)}")
        return self

    @model_validator(mode="after")
    def _variants_are_made(self) -> Config:
        made = {variants.BASE, variants.ADAPTER, *self.export.formats, *self.predict.extra}
        missing = [v for v in self.predict.variants if v not in made]
        if missing:
            raise ValueError(
                f"predict.variants: {missing[0]!r} is neither exported nor in predict.extra; add it to export.formats or predict.extra"
            )
        return self

    @model_validator(mode="after")
    def _gate_fits(self) -> Config:
        known = {*variants.VARIANTS, *self.predict.extra}
        for key in ("variants", "fidelity", "divergence", "size_ratio", "speed_ratio"):
            unknown = [variant for variant in getattr(self.gate, key) if variant not in known]
            if unknown:
                raise ValueError(f"gate.{key}: no variant {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return self


def load(name: str, overrides: list[str] | None = None, *, qa: str | None = None) -> Config:
    """Reads a config by name or path and applies `key.path=value` overrides (YAML values).

    The embedded config's normalizer and metrics are for its own questions: other ones (`qa`, `data.qa=`) take the schema's default, unless they name one.
    Relative paths in the file are found beside it, those of a shipped config in the project; overrides are relative to the working folder.

    Raises:
        ConfigError: naming every mistake at once, and the nearest known key for each unknown one.
    """
    path = config_loading.find(name)
    values = config_loading.read(path)
    config_loading.forget_own_scoring(values, path, overrides or [], qa, Data().qa)
    config_loading.locate(values, Config, path)
    for setting in overrides or []:
        config_loading.override(values, setting)
    if qa is not None and isinstance(values.get("data"), dict | None):
        config_loading.put(values, ["data", "qa"], qa)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        found = [config_loading.explain(detail, Config) for detail in error.errors(include_url=False)]
        more = [f"{len(found) - MAX_MISTAKES} more"] if len(found) > MAX_MISTAKES else []
        raise ConfigError("; ".join(found[:MAX_MISTAKES] + more), "correct the file or the --set", file=path) from None
    config_loading.check_texts(config.model_dump(mode="json"), path)
    return config
