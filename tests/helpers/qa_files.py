"""Rows of made-up QA files."""

from __future__ import annotations

import random
from typing import Any

SYLLABLES = ["ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "xu", "ze"]


def subject(rng: random.Random) -> str:
    """Four made-up words."""
    return " ".join("".join(rng.choices(SYLLABLES, k=3)) for _ in range(4))


def make(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows on different subjects, every third in two phrasings."""
    rng = random.Random(seed)
    rows = []
    while len(rows) < count:
        topic, answer = subject(rng), subject(rng)
        rows.append({"question": f"Who may {topic}?", "answer": answer})
        if len(rows) % 3 == 0:
            rows.append({"question": f"Who then may {topic}?", "answer": answer})
    return rows[:count]
