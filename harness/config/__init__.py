"""The config schema, and the only defaults.

A config is a YAML file in `harness/configs/` (named without its ending) or anywhere (named by its path). Keys it leaves out take the
defaults below; keys it misspells are fatal, and all mistakes are reported at once. `--set train.max_steps=60` overrides one key.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from harness import variants
from harness.config import loading
from harness.config.answering import ExtraVariant, Predict, Price
from harness.config.base import Section
from harness.config.judging import Compare, Gate, Score, Ship
from harness.config.loading import CONFIGS, PROJECT, find
from harness.config.questions import TEMPLATE, Columns, Data, Model, Prompt
from harness.config.training import OPTIMIZERS, PROJECTIONS, Export, Lora, Train
from harness.errors import ConfigError

__all__ = [
    "CONFIGS",
    "OPTIMIZERS",
    "PROJECT",
    "PROJECTIONS",
    "TEMPLATE",
    "Columns",
    "Compare",
    "Config",
    "Data",
    "Export",
    "ExtraVariant",
    "Gate",
    "Lora",
    "Model",
    "Predict",
    "Price",
    "Prompt",
    "Score",
    "Ship",
    "Train",
    "Wandb",
    "find",
    "load",
]
MAX_MISTAKES = 20
"""Listed in one message."""


class Wandb(Section):
    """Weights & Biases: offline unless a key is set or WANDB_MODE says otherwise."""

    project: str = "qa-harness"
    """The project's name, in other trackers too (MLflow: the experiment's)."""
    enabled: bool = True
    """false: the same as `tracking: none`, where W&B is chosen."""


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
    tracking: Literal["wandb", "trackio", "mlflow", "tensorboard", "none"] = "wandb"
    """Where curves and results go besides the report; each needs its package, and all but wandb an extra of the same name."""
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
        made = {*variants.UNTUNED, variants.ADAPTER, *self.export.formats, *self.predict.extra}
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
    path = loading.find(name)
    values = loading.read(path)
    loading.forget_embedded(values, path, overrides or [], qa, Data().qa)
    loading.locate(values, Config, path)
    for setting in overrides or []:
        loading.override(values, setting)
    if qa is not None and isinstance(values.get("data"), dict | None):
        loading.put(values, ["data", "qa"], qa)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        found = [loading.explain(detail, Config) for detail in error.errors(include_url=False)]
        more = [f"{len(found) - MAX_MISTAKES} more"] if len(found) > MAX_MISTAKES else []
        raise ConfigError("; ".join(found[:MAX_MISTAKES] + more), "correct the file or the --set", file=path) from None
    loading.check_texts(config.model_dump(mode="json"), path)
    return config
