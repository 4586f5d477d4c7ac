"""Asks the variants of a run, by the run's own prompt, and streams their answers.

A question is put exactly as predict puts it: the same prompt, the same generation settings, the same decoding, so that a finished answer is the
text that predict writes. Models with weights answer in a separate process each (`harness.prediction.runners`): one that dies, or is freed,
takes nothing else with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import psutil
from pydantic import ValidationError

from harness import storage, variants
from harness.backends import Prompt
from harness.backends.pieces import Piece
from harness.config import Config, load
from harness.config import Prompt as PromptSettings
from harness.config.loading import explain, override
from harness.errors import ArtifactError, ConfigError, HarnessError, ModelError
from harness.metrics import find
from harness.models import base_model
from harness.prediction import answers
from harness.prediction.asking import Asker
from harness.prediction.jobs import Job, few_shots, jobs
from harness.prediction.runners import InProcessRunner, Runner, WorkerPool
from harness.prompt import Prompter
from harness.questions.asking import system_of
from harness.records import ExportManifest, FinishReason, Question
from harness.registry import BACKENDS, METRICS
from harness.storage import RunFolder
from harness.web.pool import Cancelled, Pool, died

SEQUENCES = 8
"""Of llama.cpp: the fewest with which every type's numbers are those of a large batch (`harness.backends.llamacpp`)."""
SHARE_OF_MEMORY = 0.6
"""Share of the memory free at the start, for all loaded models together."""
PROCESS_BYTES = 400 << 20
"""Memory of an answering process beyond the weights: libraries and the key-value cache."""
SHOWN_EVERY_S = 0.04
"""Minimum time between two displayed states of a growing answer."""
Turn = tuple[str, str]
"""An earlier question in the conversation, and its answer."""


@dataclass(frozen=True)
class Growing:
    """A partial or complete answer."""

    text: str = ""
    """Without the reasoning in front of it; the whole answer once `end` is set."""
    thinking: str = ""
    tokens: int = 0
    """Generated so far; pieces, from a server that gives no token ids."""
    seconds: float = 0.0
    """Seconds since the request, without loading."""
    first: float | None = None
    """Seconds to the first token."""
    logprob: float | None = None
    """Mean natural logarithm of the tokens' probabilities when they were chosen; None: not known."""
    end: FinishReason | None = None
    error: str | None = None
    """One line; set with `end="error"`."""

    @property
    def tokens_per_second(self) -> float | None:
        """After the first token; None for fewer than two tokens."""
        rest = self.seconds - (self.first or 0)
        return (self.tokens - 1) / rest if self.tokens > 1 and rest > 0 else None

    def summary(self) -> str:
        """Tokens, speed and mean log-probability in one line; empty before the first token."""
        if not self.tokens:
            return ""
        parts = [f"{self.tokens} tokens", f"first after {self.first or 0:.2f} s"]
        if self.tokens_per_second:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self.logprob is not None:
            parts.append(f"mean log-probability {self.logprob:.2f}")
        if self.end == "length":
            parts.append("cut at the limit")
        if self.thinking:
            parts.append(f"after {len(self.thinking.split())} words of reasoning")
        return ", ".join(parts)


class Session:
    """The variants that can be asked.

    Args:
        names: of the variants, in the order in which they are shown.
        job: variant -> how it is loaded and asked; called once each.
        config: its prompt, its further models and its metrics are used.
        shots: (prompt settings, question) -> few-shot examples.
        heldout: questions whose references are known, of the split `split_id`.
        memory: bytes for all loaded models; 0: `SHARE_OF_MEMORY` of what is free now.
        in_process: load models into this process.
    """

    def __init__(
        self,
        names: list[str],
        job: Callable[[str], Job],
        config: Config,
        *,
        shots: Callable[[PromptSettings, Question], list[Turn]] = lambda *_: [],
        heldout: Sequence[Question] = (),
        split_id: str = "",
        memory: int = 0,
        in_process: bool = False,
    ):
        self.names, self.config, self.heldout, self.split_id = names, config, list(heldout), split_id
        self._make_job, self._shots, self._in_process = job, shots, in_process
        self._jobs: dict[str, Job] = {}
        self._prompters: dict[str, Prompter] = {}
        self._known = {_folded(q.question): q for q in self.heldout}
        # A tokenizer of Hugging Face's must not be used by two threads at once.
        self._lock = threading.RLock()
        self.pool = Pool(memory or int(SHARE_OF_MEMORY * psutil.virtual_memory().available), self._bytes, self._load)

    def ask(
        self,
        name: str,
        question: str,
        history: Sequence[Turn] = (),
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Growing]:
        """Streams a variant's answer; the last one yielded has `end`, unless it was cancelled.

        Args:
            history: earlier turns, for a variant that `takes_turns`; the oldest are left out where the context does not hold them all.
            is_cancelled: looked at before every token; closing the iterator cancels as well.

        A model that cannot be loaded, or dies, ends with an error of its answer, and is loaded again when it is asked again.
        """
        try:
            with self.pool.borrow(name, is_cancelled) as runner:
                try:
                    prompt = self._fitting(name, question, list(history), runner.facts.context)
                    with closing(cast("Any", runner.stream(prompt))) as pieces:
                        yield from self._grown(self.job(name), prompt, pieces, is_cancelled)
                except ArtifactError as error:  # its process is gone
                    raise died(name, error.problem) from error
                except RuntimeError as error:  # as before, after a traceback on stderr
                    raise died(name, str(error)) from error
        except Cancelled:
            return
        except HarnessError as error:
            yield Growing(end="error", error=str(error))

    def prompt(self, name: str, question: str, history: Sequence[Turn] = ()) -> Prompt:
        """How a variant is asked: the run's own prompt, or the one configured for it, with earlier turns in front of the question."""
        job, extra = self.job(name), self.config.predict.extra.get(name)
        settings = (extra.prompt if extra else None) or self.config.prompt
        asked = self.known(question) or Question(id="asked", row=1, question=question, answer="-", group="asked")
        with self._lock:
            before = [*self._shots(settings, asked), *(history if self.takes_turns(name) else ())]
            if job.tokenizer is None:
                assert extra is not None
                return Asker(self.config, [asked], None, lambda _: [before]).by_text(extra).prompts[0]
            if name not in self._prompters:
                self._prompters[name] = Prompter(job.open_tokenizer(), settings)
            return self._prompters[name].ids(asked.question, before, system_of(asked))

    def takes_turns(self, name: str) -> bool:
        """Whether a variant is asked as a conversation, so that earlier turns have a place in its prompt."""
        job = self.job(name)
        return job.source.chat or (job.prompt is not None and job.prompt.format == "chat")

    def known(self, question: str) -> Question | None:
        """The held-out question with this text, ignoring whitespace."""
        return self._known.get(_folded(question))

    def scores(self, question: Question, answer: str) -> dict[str, float | None]:
        """Metric -> 0..1 of an answer to a held-out question, by those metrics of the run that need no model."""
        names = [name for name in self.config.score.metrics if not METRICS[name].requires]
        return {name: find(name).score_one(answer, [question.answer, *question.references]) for name in names}

    def job(self, name: str) -> Job:
        """A variant's job and prompts; HarnessError if it cannot be loaded."""
        with self._lock:
            if name not in self._jobs:
                job = self._make_job(name)
                if job.backend == "llamacpp" and not job.execution.slots:
                    job = replace(job, execution=replace(job.execution, slots=SEQUENCES))
                self._jobs[name] = job
            return self._jobs[name]

    def close(self) -> None:
        """Frees all models."""
        self.pool.close()

    def _bytes(self, name: str) -> int:
        """Approximate memory of a loaded variant: on a CPU transformers expands 16-bit weights to 32 bits."""
        job = self.job(name)
        if BACKENDS[job.backend].in_process:
            return 0
        doubled = job.backend == "transformers" and job.execution.device == "cpu"
        return job.size_bytes * (2 if doubled else 1) + PROCESS_BYTES

    def _load(self, name: str) -> Runner:
        job = self.job(name)
        facts = BACKENDS[job.backend]
        if self._in_process or facts.in_process:
            return InProcessRunner(job)
        return WorkerPool(job, 1, fork="torch" in facts.packages)

    def _fitting(self, name: str, question: str, history: list[Turn], context: int) -> Prompt:
        job = self.job(name)
        room = context - job.generation.max_new_tokens
        while True:
            prompt = self.prompt(name, question, history)
            length = len(job.ids_of(prompt))
            if length <= room:
                return prompt
            if not (history and self.takes_turns(name)):
                raise ConfigError(
                    f"the question has {length} tokens with its prompt, and {name} can read {room}", "shorten it"
                )
            history = history[1:]

    def _grown(
        self, job: Job, prompt: Prompt, pieces: Iterator[Piece], is_cancelled: Callable[[], bool]
    ) -> Iterator[Growing]:
        ids: list[int] = []
        text, count, chances = "", 0, []
        began = shown = time.monotonic()
        first: float | None = None
        for piece in pieces:
            if is_cancelled():
                return
            now = time.monotonic()
            if piece.end is None:
                first = now - began if first is None else first
                count += 1
                text += piece.text
                ids += [] if piece.token is None else [piece.token]
                chances += [] if piece.logprob is None else [piece.logprob]
                if count > 1 and now - shown < SHOWN_EVERY_S:
                    continue
            shown = now
            with self._lock:
                read = answers.read(job.open_tokenizer(), job.ids_of(prompt), ids, text)
            yield Growing(
                # The end of a text may be the first byte of a character.
                text=read.text if piece.end else read.text.rstrip("\ufffd").rstrip(),
                thinking=read.thinking,
                tokens=count,
                seconds=now - began,
                first=first,
                logprob=sum(chances) / len(chances) if chances else None,
                end=piece.end,
                error=piece.error,
            )


def _folded(text: str) -> str:
    return " ".join(text.split())


# ------------------------------------------------------------------------------------------------------------------ runs


def open_run(
    run: RunFolder, config: Config, *, only: Sequence[str] = (), memory: int = 0, in_process: bool = False
) -> Session:
    """A session with the variants of a run.

    Args:
        only: the variants that may be asked, in this order; none: all that the run has.
        memory, in_process: as `Session` takes them.

    Raises:
        ArtifactError: the run has nothing that can be asked; ConfigError: it has no variant of that name, or one that cannot be asked.
    """
    there = askable(run, config)
    if unknown := [name for name in only if name not in there]:
        raise ConfigError(f"no variant {unknown[0]!r} to ask in run {run.name}", f"use one of {', '.join(there)}")
    if not there:
        raise ArtifactError("has no model that can be asked", f"run harness export --run {run.name}", file=run.path)
    split, heldout = storage.read_split(run) if run.split_json.exists() else (None, [])
    placeholder = [Question(id="asked", row=1, question="?", answer="-", group="asked")]

    def job(name: str) -> Job:
        return next(iter(jobs(run, config, "chat", placeholder, [name])))

    def shots(settings: PromptSettings, question: Question) -> list[Turn]:
        return few_shots(run, settings, [question])[0]

    names = list(only) or there
    return Session(
        list(dict.fromkeys(names)),
        job,
        config,
        shots=shots,
        heldout=heldout,
        split_id=split.split_id if split else "",
        memory=memory,
        in_process=in_process,
    )


def askable(run: RunFolder, config: Config) -> list[str]:
    """The variants of a run whose weights are there; recorded answers and Python objects cannot be asked anything new."""
    exported = storage.read_record(run.export_json, ExportManifest).artifacts if run.export_json.exists() else {}
    base, trained = False, run.train_json.exists() and run.adapter.is_dir()
    extra = config.predict.extra
    with suppress(ModelError):
        base = base_model.cached(config.model) is not None if variants.BASE in config.predict.variants else False
    there = {
        variants.BASE: base,
        variants.ADAPTER: trained,
        **{name: run.artifact(name).exists() for name in exported},
    }
    wanted = list(dict.fromkeys([*config.predict.variants, *exported, *extra]))
    found = [n for n in wanted if (extra[n].backend not in ("replay", "python") if n in extra else there.get(n, False))]
    return sorted(found, key=variants.order)


def config_of(run: RunFolder, name: str | None = None, settings: Sequence[str] = ()) -> Config:
    """The config of that name, else the one that the run recorded when it was made, with `settings` on top.

    Raises:
        ConfigError: a setting does not fit, or the recorded config is of another version of the harness.
    """
    if name is not None or not run.run_json.exists():
        return load(name or "tiny", list(settings))
    recorded = storage.read_json(run.run_json).get("config")
    try:
        Config.model_validate(recorded)
    except ValueError:
        raise ConfigError(
            "its config was recorded by another version", "name the config: --config", file=run.run_json
        ) from None
    for setting in settings:
        override(recorded, setting)
    try:
        return Config.model_validate(recorded)
    except ValidationError as error:
        raise ConfigError(explain(error.errors(include_url=False)[0], Config), "correct the --set") from None
