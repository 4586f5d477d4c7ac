"""The second held-out side: facts that are trained on, asked in words that are not.

The first side holds out whole groups, so a score on it is of facts that the model was never taught. Here one phrasing of a fact is kept back
and its other phrasings are trained on: a score on it says whether the model learned what it was taught.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from harness.questions.rows import Row
from harness.questions.sides import Sides

COLUMN = "fact"
"""Rows with the same value of it ask for one fact."""


def keep_back(rows: Sequence[Row], sides: Sides, share: float, seed: int) -> Sides:
    """The sides with one row of each chosen fact moved from train to `taught`; the other sides stay as they are.

    Args:
        rows: all rows, which the sides are positions in.
        share: of the facts on the training side that are asked there in two phrasings or more, from 0 to 1.
        seed: decides which facts and which of their rows; a fact that is added to the file changes no other's.

    Returns:
        The sides as they are if the share is 0 or no fact on the training side has two phrasings.
    """
    asked: dict[str, list[int]] = defaultdict(list)
    for at in sides.train:
        if isinstance(fact := rows[at].extra.get(COLUMN), str):
            asked[fact].append(at)
    several = {fact: found for fact, found in asked.items() if len(found) > 1}
    chosen = [fact for fact in several if _place(seed, fact) < share]
    kept = {min(several[fact], key=lambda at: _place(seed, rows[at].id)) for fact in chosen}
    return replace(sides, train=[at for at in sides.train if at not in kept], taught=sorted(kept))


def _place(seed: int, name: str) -> float:
    """Where a fact or row lies between 0 and 1: uniform over seeds and names."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0taught\0{name}".encode()).digest()[:8], "big") / 2**64
