"""How answers are scored and compared, and what fails a change or ships a file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from harness import registry, variants
from harness.config.base import Resamples, Section, Seed
from harness.config.loading import IsPath, unknown

AlarmCode = Literal[
    "runaway",
    "prompts_cut",
    "empty_answers",
    "unscored",
    "prompt_mismatch",
    "adapter_without_effect",
    "constant_answers",
]


class Score(Section):
    """Metrics and the intervals on each number."""

    normalizer: Literal["plain", "legal", "code"] = "plain"
    """What `exact_match_normalized`, `token_f1` and `list_f1` count as equal: see `harness.metrics.normalize`. Part of their signature."""
    metrics: list[str] = Field(default_factory=lambda data: registry.default_metrics(data.get("normalizer", "plain")))
    """Empty: the defaults of the normalizer; citations are read only with `legal`."""
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
    """Kinds of question that a rule answers without a model, the easiest first: the primary metric is also reported without them."""
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
    """Empty: every variant of the baseline; a baseline is saved of every variant but `base`."""
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
    judge: bool = False
    """The judge model's preference (`harness judge`) is a check too, with `gate.margin`; refused below `judge_kappa`."""
    judge_kappa: Annotated[float, Field(ge=0, le=1)] = 0.6
    """Least agreement of the judge with people's marks, Cohen's kappa; 0.6 begins what Landis and Koch (1977) call substantial."""
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
