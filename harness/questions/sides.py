"""Which side of a split each row goes to: whole groups to training, dev or held-out, by a seeded hash.

A group's place between 0 and 1 is a hash of its first row in file order (its `group` label, else its question), so rows appended to the file
move no group that was there. Two groups that a new row ties together become one, on the side of the earlier.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from harness.config import Data
from harness.questions.normalised import normalised
from harness.questions.rows import Row
from harness.storage import sha256_bytes

LEAST_EXPECTED = 0.5
"""Minimum number of groups that a share amounts to, for an empty side to get one group: a tiny share stays empty."""


@dataclass(frozen=True)
class Sides:
    """Positions of rows, ascending; a row is on one side at most."""

    NAMES = ("train", "dev", "heldout", "trained_on")

    train: list[int] = field(default_factory=list)
    dev: list[int] = field(default_factory=list)
    heldout: list[int] = field(default_factory=list)
    trained_on: list[int] = field(default_factory=list)
    """Rows of `data.trained_on`: a model elsewhere was trained on them."""

    @property
    def known(self) -> list[int]:
        """Rows used for training or model selection: training and dev rows, or those of `data.trained_on`."""
        return sorted([*self.train, *self.dev, *self.trained_on])

    @property
    def learned(self) -> list[int]:
        """Rows that a model was trained on, here or elsewhere."""
        return self.train or self.trained_on

    def without(self, rows: Collection[int]) -> Sides:
        """The sides with these rows left out of train and dev."""
        return replace(
            self, train=[at for at in self.train if at not in rows], dev=[at for at in self.dev if at not in rows]
        )

    def side_of(self, count: int) -> list[str]:
        """The name of each row's side; "dropped" for a row on none."""
        names = ["dropped"] * count
        for name in self.NAMES:
            for at in getattr(self, name):
                names[at] = name
        return names


def as_compared(row: Row) -> Row:
    """The row as grouping should see it.

    Rows on one passage belong together, unless they have group labels. One question on two passages asks two things, so the passage joins the
    question: as a number, which similarity counts as what the question is about.
    """
    if row.context is None:
        return row
    passage = int(sha256_bytes(normalised(row.context).encode())[:12], 16)
    group = row.group if row.group is not None else f"context-{passage:012x}"
    return replace(row, question=f"{row.question} {passage}", group=group)


def place(first: Row, seed: int) -> float:
    """Where a group lies between 0 and 1, by its first row: uniform over seeds and groups."""
    identity = f"group\0{first.group}" if first.group is not None else f"question\0{normalised(first.question)}"
    return int.from_bytes(hashlib.sha256(f"{seed}\0{identity}".encode()).digest()[:8], "big") / 2**64


def choose(rows: Sequence[Row], sizes: Counter[int], data: Data) -> tuple[set[int], set[int]]:
    """The groups (each by its first row) that are held out, and those of dev.

    Shares take the groups whose places lie below them: held-out from 0, dev from there. Counts take groups in the order of their places, as
    they fit. A share that finds no group in a small file takes the first one.
    """
    places = {group: place(rows[group], data.seed) for group in sizes}
    order = sorted(sizes, key=lambda group: (places[group], group))
    heldout = set() if data.test else _take(order, sizes, places, data.heldout, 0.0)
    start = 0.0 if data.test or data.heldout >= 1 else float(data.heldout)
    rest = [group for group in order if group not in heldout]
    if data.heldout >= 1 and not data.test and 0 < data.dev_size < 1:
        # Positions after a count differ from those after a share, so dev takes its rows as a count.
        return heldout, _take(rest, sizes, places, max(1, round(data.dev_size * sizes.total())), 0.0)
    return heldout, _take(rest, sizes, places, data.dev_size, start)


def _take(
    order: Sequence[int], sizes: Counter[int], places: dict[int, float], size: float | int, start: float
) -> set[int]:
    if size < 1:
        taken = {group for group in order if start <= places[group] < start + size}
        if not taken and size * len(sizes) >= LEAST_EXPECTED:
            taken = set(order[:1])
        return taken
    taken, room = set(), int(size)
    for group in order:
        if sizes[group] <= room:
            taken.add(group)
            room -= sizes[group]
    return taken
