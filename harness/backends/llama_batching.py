"""Many prompts over the sequences of one llama.cpp context, greedily: a finished sequence makes room for the next prompt.

What is computed together decides the last bits of the numbers, so nothing here depends on time:

* Every prompt but those on a GPU is computed alone, behind the tokens that all prompts begin with, which are computed once and copied.
* llama.cpp computes rows by other code when there are few of them, or behind the last multiple of four. So the sequences in use are kept side
  by side (others would be computed apart), and a step is filled up to `Batching.unit` rows with rows whose output is not read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.backends.llama_context import BATCH, Context, DecodeError, Row, logprobs_of

PENALISED = 64
"""Number of last tokens that a repeat penalty considers."""


@dataclass
class Answer:
    """The result of one prompt."""

    ids: list[int] = field(default_factory=list)
    """Without the end token."""
    logprobs: list[float] = field(default_factory=list)
    """Natural logarithm of the probability of each of `ids`."""
    stopped: bool = False
    """It ended with an end token."""
    error: str | None = None


@dataclass(frozen=True)
class Batching:
    """How prompts are spread over a context's sequences; the last sequence of the context holds the prompts' shared prefix."""

    sequences: int
    unit: int
    """Rows of a step are padded to a multiple of this, with unused sequences."""
    prompts_at_once: int
    """New prompts computed in one call."""


@dataclass
class _Running:
    prompt: Sequence[int]
    room: int
    answer: Answer
    token: int = 0
    position: int = 0


class Greedy:
    """Greedy answers of one context.

    Args:
        ends: token ids that end an answer.
        repeat_penalty: as llama.cpp's `penalties` sampler applies it to the logits; 1: none.
    """

    def __init__(self, context: Context, batching: Batching, ends: set[int], repeat_penalty: float = 1.0):
        self.context, self.batching, self.ends, self.repeat_penalty = context, batching, ends, repeat_penalty
        self.running: list[_Running] = []
        """Running answers, indexed by sequence: the first `len(running)` sequences are in use."""
        self.idle: dict[int, int] = {}
        """Unused sequence -> tokens left in its cache."""
        self.prefix: list[int] = []

    def answer(self, prompts: Sequence[Sequence[int]], rooms: Sequence[int]) -> list[Answer]:
        """Answers prompts, none of them empty, with at most this many tokens each, including the end token."""
        answers = [Answer() for _ in prompts]
        waiting = deque(_Running(p, room, a) for p, room, a in zip(prompts, rooms, answers, strict=True))
        self._share(prompts)
        while waiting or self.running:
            while waiting and len(self.running) < self.batching.sequences:
                free = self.batching.sequences - len(self.running)
                self._start([waiting.popleft() for _ in range(min(free, self.batching.prompts_at_once, len(waiting)))])
            if self.running:
                self._step()
        return answers

    def stream(self, prompt: Sequence[int], room: int) -> Iterator[Answer]:
        """Yields the growing answer to one prompt after each step; closing the iterator early frees its sequence."""
        answer = Answer()
        self._share([prompt])
        self._start([_Running(prompt, room, answer)])
        try:
            yield answer
            while self.running:
                self._step()
                yield answer
        finally:
            self._end(list(range(len(self.running))))

    def forget(self) -> None:
        """Discards the state of all sequences, because other code is about to use them."""
        self.idle, self.prefix = {}, []

    def _share(self, prompts: Sequence[Sequence[int]]) -> None:
        """Computes the prompts' shared prefix. Leaves at least two tokens of each prompt: a single row uses another code path."""
        prefix = common_prefix(prompts) if len(prompts) > 1 else []
        prefix = prefix[: max(0, min(map(len, prompts), default=0) - 2)]
        if prefix == self.prefix:
            return
        self.prefix = []
        place = self.batching.sequences
        self.context.clear(place)
        if len(prefix) > 1:
            self._compute([(token, at, place, False) for at, token in enumerate(prefix)])
            self.prefix = prefix

    def _compute(self, rows: list[Row]) -> np.ndarray:
        """The logits of the last call's rows that requested them: they include all of one prompt's."""
        found = np.empty((0, 0))
        for start in range(0, len(rows), BATCH):
            found = self.context.decode(rows[start : start + BATCH])
        return found

    def _start(self, new: list[_Running]) -> None:
        """Computes prompts and takes their first tokens."""
        first = len(self.running)
        rows: list[Row] = []
        for place, running in enumerate(new, first):
            self.idle.pop(place, None)
            if self.prefix:
                self.context.copy(self.batching.sequences, place)
            else:
                self.context.clear(place)
            running.position = len(running.prompt)
            rest = range(len(self.prefix), len(running.prompt))
            rows += [(running.prompt[at], at, place, at == rest[-1]) for at in rest]
        if len(new) > 1 and len(rows) > BATCH:
            half = len(new) // 2
            self._start(new[:half])
            # Some of them may be done already; later ones move to their places.
            self._start(new[half:])
            return
        self.running += new
        self._advance(list(range(first, first + len(new))), lambda: self._compute(rows))

    def _step(self) -> None:
        """One more token for each running sequence."""
        places = list(range(len(self.running)))
        rows = [(r.token, r.position, place, True) for place, r in enumerate(self.running)]
        filled = min(-(-len(rows) // self.batching.unit) * self.batching.unit, self.batching.sequences)
        longest = max(r.position for r in self.running)
        for place in range(len(rows), filled):
            at = self.idle.get(place)
            # Tokens of padding sequences take no more of the cache than those of real ones.
            if at is None or at > longest:
                self.context.clear(place)
                at = 0
            rows.append((0, at, place, False))
            self.idle[place] = at + 1
        for running in self.running:
            running.position += 1
        self._advance(places, lambda: self.context.decode(rows))

    def _advance(self, places: list[int], compute: Callable[[], np.ndarray]) -> None:
        """Takes the next token of these sequences from the result of `compute`, and ends those that are done."""
        try:
            logits = compute()
        except DecodeError as error:
            for place in places:
                self.running[place].answer.error = str(error)
            self._end(places)
            return
        if self.repeat_penalty != 1.0:
            logits = np.stack([self._penalised(logits[i], self.running[place]) for i, place in enumerate(places)])
        tokens = logits.argmax(axis=1)
        chances = logprobs_of(logits, tokens, self.context.threads)
        done = []
        for place, token, chance in zip(places, tokens.tolist(), chances.tolist(), strict=True):
            running = self.running[place]
            if token in self.ends:
                running.answer.stopped = True
                done.append(place)
                continue
            running.token = token
            running.answer.ids.append(token)
            running.answer.logprobs.append(chance)
            if len(running.answer.ids) == running.room:
                done.append(place)
        self._end(done)

    def _penalised(self, logits: np.ndarray, running: _Running) -> np.ndarray:
        seen = list({*[*running.prompt, *running.answer.ids][-PENALISED:]})
        logits = logits.copy()
        values = logits[seen]
        logits[seen] = np.where(values > 0, values / self.repeat_penalty, values * self.repeat_penalty)
        return logits

    def _end(self, done: list[int]) -> None:
        """Frees sequences; the last ones in use move into their places."""
        for place in sorted(done, reverse=True):
            last = self.running.pop()
            if place < len(self.running):
                self.context.copy(len(self.running), place)
                self.running[place] = last
            self.context.clear(len(self.running))


def common_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all prompts begin with."""
    if not prompts:
        return []
    rows = [list(prompt) for prompt in prompts]
    low, high = min(rows), max(rows)
    count = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:count]
