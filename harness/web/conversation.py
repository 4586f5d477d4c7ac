"""The state of a terminal conversation: the turns of each variant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from threading import Thread

from harness.web.session import Growing, Session, Turn


class Conversation:
    """Questions put to one or several variants, each with its own earlier turns where it takes any."""

    def __init__(self, session: Session, names: list[str]):
        self.session, self.names = session, names
        self.turns: dict[str, list[Turn]] = {name: [] for name in names}

    def ask(self, question: str, is_cancelled: Callable[[], bool]) -> Iterator[dict[str, Growing]]:
        """Streams the answers of all variants; a finished answer becomes a turn, an interrupted one does not."""
        states = {name: Growing() for name in self.names}
        for name, state in side_by_side(self.session, self.names, question, is_cancelled, self.turns):
            states[name] = state
            yield dict(states)
        for name, state in states.items():
            if state.end in ("stop", "length") and not is_cancelled():
                self.turns[name].append((question, state.text))

    def forget(self) -> None:
        """Starts the conversation again."""
        for turns in self.turns.values():
            turns.clear()


def side_by_side(
    session: Session,
    names: list[str],
    question: str,
    is_cancelled: Callable[[], bool],
    turns: dict[str, list[Turn]] | None = None,
) -> Iterator[tuple[str, Growing]]:
    """(variant, its answer so far) of several variants that answer at the same time, as they come; closing it cancels all."""
    if len(names) == 1:  # in this thread, where an error keeps its traceback
        yield from (
            (names[0], state)
            for state in session.ask(names[0], question, (turns or {}).get(names[0], ()), is_cancelled)
        )
        return
    found: SimpleQueue[tuple[str, Growing | BaseException | None]] = SimpleQueue()
    closed = False

    def work(name: str) -> None:
        try:
            for state in session.ask(name, question, (turns or {}).get(name, ()), lambda: closed or is_cancelled()):
                found.put((name, state))
        except BaseException as error:
            found.put((name, error))
        found.put((name, None))

    for name in names:
        Thread(target=work, args=(name,), daemon=True).start()
    left = set(names)
    try:
        while left:
            try:
                name, state = found.get(timeout=0.5)  # between two states an interrupt can be handled
            except Empty:
                continue
            if isinstance(state, BaseException):
                raise state
            if state is None:
                left.discard(name)
            else:
                yield name, state
    finally:
        closed = True
