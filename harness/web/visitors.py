"""The page's visitors: rate limits, current questions and their answers, and refusals."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field

from harness.web.session import Growing


@dataclass(frozen=True)
class Limits:
    """The limits of one page."""

    characters: int = 4000
    """Maximum length of a question."""
    per_minute: int = 60
    """Maximum questions per minute from one address."""
    parallel: int = 2
    """Questions that are answered at the same time; others are queued."""
    waiting: int = 100
    """Maximum queued questions; further ones are refused."""


MOST_VARIANTS = 7


@dataclass
class Asked:
    """A visitor's last question, with its answers in the order in which they are shown."""

    question: str = ""
    names: list[str] = field(default_factory=list)
    answers: dict[str, Growing] = field(default_factory=dict)
    blind: bool = False
    """The names are still hidden."""
    done: bool = False
    """All have answered."""
    kept: bool = False
    """It was kept as a candidate."""


class Visitors:
    """Counts questions for each address, and stops the answers of a visitor who leaves."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self._times: dict[str, deque[float]] = defaultdict(deque)
        self._stops: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def refusal(self, question: str, names: list[str], known: list[str], address: str) -> str:
        """The reason why a question is refused, in one line; empty if it is accepted."""
        if not question.strip():
            return "Write a question first."
        if len(question) > self.limits.characters:
            return (
                f"The question has {len(question):,} characters; {self.limits.characters:,} are the limit. Shorten it."
            )
        if not names or any(name not in known for name in names):
            return "Choose the variants to ask."
        if len(names) > MOST_VARIANTS:
            return f"Choose at most {MOST_VARIANTS} variants."
        now = time.monotonic()
        with self._lock:
            times = self._times[address]
            while times and times[0] < now - 60:
                times.popleft()
            if len(times) >= self.limits.per_minute:
                return f"{self.limits.per_minute} questions a minute are the limit. Wait {60 - (now - times[0]):.0f} s."
            times.append(now)
            for other in [a for a, t in self._times.items() if not t or t[-1] < now - 60]:
                del self._times[other]
        return ""

    def begin(self, visitor: str) -> threading.Event:
        """The cancel event of the visitor's new question; cancels their earlier one."""
        self.stop(visitor)
        with self._lock:
            found = self._stops[visitor] = threading.Event()
        return found

    def stop(self, visitor: str) -> None:
        """Cancels the visitor's current answers, if any."""
        with self._lock:
            found = self._stops.pop(visitor, None)
        if found:
            found.set()


def draw_two(names: list[str]) -> list[str]:
    """Two of the variants, in an unpredictable order."""
    return random.SystemRandom().sample(names, 2)
