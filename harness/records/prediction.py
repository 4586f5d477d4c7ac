"""What predict writes: answers, and everything that decided them."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from harness.records.base import (
    SCHEMA_VERSION,
    FinishReason,
    Manifest,
    Name,
    Parameters,
    Record,
    SchemaVersion,
    TokenId,
)
from harness.records.prompting import PromptForm


class Prediction(Record):
    """A line of `predictions/<variant>.jsonl`: one answer."""

    id: str
    prompt_hash: str
    """sha256 of the prompt's token ids: equal across backends."""
    prompt_ids: list[TokenId]
    answer_ids: list[TokenId]
    """Generated token ids, without the end token."""
    logprobs: list[float] | None = None
    """Natural logarithm of the probability of each of `answer_ids`, to four decimals; None: not given (servers, Python functions)."""
    text: str
    """What is scored: the answer, without the reasoning in front of it."""
    thinking: str = ""
    """The text of a reasoning model before its closing think tag."""
    thinking_tokens: int = 0
    unclosed: bool = False
    """The reasoning was never closed: `text` is empty, the question unanswered."""
    finish_reason: FinishReason
    prompt_cut: bool = False
    """The prompt was longer than the context and was not asked in full."""
    seconds: float
    """Wall time of the batch or request divided by its questions."""
    error: str | None = None
    """Set when `finish_reason` is `error`: the answer is unscored, never 0."""
    tokens: int | None = None
    """Generated tokens by a server's own count; None: count `answer_ids`."""
    prompt_tokens: int | None = None
    """Tokens of the prompt by a server's own count; None: count `prompt_ids`."""


class Cost(Record):
    """What a variant took to answer the held-out questions."""

    tokens_per_second: float | None
    """Generated tokens over generation seconds (loading left out)."""
    seconds: float
    """Generation, loading left out."""
    load_seconds: float
    generated_tokens: int
    peak_memory_bytes: int | None
    """Peak resident memory of the answering process on the CPU; peak allocated device memory on a GPU."""
    size_bytes: int
    """Weights on disk that this variant needs."""
    prompt_tokens: int | None = None
    """Tokens of all prompts, where the backend counts them."""
    money: float | None = None
    """What the answers cost, in the currency of the variant's `price`; None: no price was given."""


class Finding(Record):
    """A doubt about a model that was found before it answered; compare raises an alarm for it."""

    code: str
    """`adapter_without_effect`, `adapter_partly_zero`, `adapter_other_revision`, `adapter_other_base`."""
    message: str


class Thinking(Record):
    """The reasoning in front of a variant's answers."""

    answers: int
    """Answers with reasoning."""
    mean_tokens: float
    longest_tokens: int
    unclosed: int
    """Answers whose reasoning did not end: unanswered, scored as empty."""


class Noise(TypedDict, total=False):
    """What changed when a subset was answered again in another batch size."""

    flip_rate: float
    """Share of the texts that changed, 0..1."""
    n: int
    how: str


class PredictionManifest(Manifest):
    """`predictions/<variant>.json`, written last."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    variant: Name
    key: str
    """Hash of weights, tokenizer, prompts, generation parameters and backend version: equal keys, equal predictions."""
    split_id: str
    backend: str
    backend_version: str
    """As the loaded backend reports it."""
    packages: dict[str, str] = {}
    """Installed versions of the packages that decide its numbers."""
    weights_sha256: str
    tokenizer_sha256: str
    prompts_sha256: str
    """Over the prompt hashes of all questions, in order."""
    lines_sha256: str = ""
    """Of the file of answers beside this one: a damaged file is never scored."""
    generation: Parameters
    """Every parameter of generation that was sent, defaults included."""
    execution: Parameters = {}
    """Settings that change neither the questions nor the parameters: batch size, slots, threads, device."""
    asked: Literal["run", "own"] = "run"
    """`run`: by the run's tokenizer and prompt, so that prompts must be equal token by token; `own`: by the model's own."""
    findings: list[Finding] = []
    n: int
    finish: dict[str, int]
    """Count of each finish reason."""
    prompts_cut: int
    prompt: PromptForm | None = None
    """How the questions were put; None: made elsewhere."""
    thinking: Thinking | None = None
    """None: no answer had reasoning in front of it."""
    cost: Cost
    warnings: list[str] = []
    measured: str = ""
    """Hash of the questions and references that the two fields below were measured on; empty: not measured."""
    logprobs_sha256: str = ""
    """Of the file of log-probabilities beside this one."""
    noise: Noise = {}
    """Empty: not measured."""


class PredictionSet(Manifest):
    """`predictions/manifest.json`, written last: the variants that answered."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    fingerprint: str
    """Of everything that decides the answers; empty after a call that asked some of the variants only."""
    variants: list[Name]
