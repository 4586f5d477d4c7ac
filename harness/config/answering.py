"""Who answers the held-out questions, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from harness import registry, variants
from harness.config.base import Count, CountOrAuto, Section
from harness.config.questions import Prompt
from harness.errors import ConfigError
from harness.storage import check_name


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
    few_shot: Annotated[int, Field(ge=1, le=64)] = 4
    """Nearest training questions, with their answers, in front of each question of the variant `base_fewshot`."""
    max_new_tokens: Count = 128
    batch_tokens: CountOrAuto = 0
    """Padded prompt plus answer tokens in one transformers batch; 0: what memory holds on a GPU, 16384 on the CPU."""
    max_batch: CountOrAuto = 0
    """Questions in one transformers batch, at most; 0: up to 512 on a GPU, 64 on the CPU."""
    processes: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that share the questions of a transformers variant; 0: one on each visible GPU; on the CPU as many as
    the cores allow with `threads` each."""
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
