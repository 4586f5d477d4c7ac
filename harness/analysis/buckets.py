"""Kinds of questions, so that a comparison can show where a variant wins and where it loses."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from harness.metrics.citations import citations
from harness.metrics.text import legal_tokens
from harness.records import Question

MOST = 25
"""Largest number of buckets of one kind; the rows of smaller ones go to "other"."""
LENGTHS = (1, 2, 4, 8, 16)
"""Words of the reference from which a bucket of answer lengths begins."""
SIMILARITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Similarity to the nearest training question from which a bucket begins."""
TERM_WORDS = 5
"""An answer of more words is a sentence."""


def buckets(questions: list[Question]) -> Iterator[tuple[str, str, NDArray[np.intp]]]:
    """(by, bucket, rows) for `kind`, `part`, `answer_length`, `answer_type` and `similarity`; rows are positions in `questions`.

    A bucketing that puts every question in one bucket adds no information and is left out.
    """
    for by, name_of in NAMES.items():
        found: dict[str, list[int]] = defaultdict(list)
        for row, question in enumerate(questions):
            found[name_of(question)].append(row)
        kept = sorted(found, key=lambda name: (-len(found[name]), name))[:MOST]
        other = sorted(row for name in found.keys() - set(kept) for row in found[name])
        if len(found) < 2:
            continue
        for name in sorted(kept, key=_natural):
            yield by, name, np.array(found[name])
        if other:
            yield by, "other", np.array(other)


def answer_length(question: Question) -> str:
    """Words of the reference, in the buckets of `LENGTHS`."""
    words = max(1, len(legal_tokens(question.answer)))
    at = bisect_right(LENGTHS, words) - 1
    low = LENGTHS[at]
    if at + 1 == len(LENGTHS):
        return f"{low}+ words"
    high = LENGTHS[at + 1] - 1
    return f"{low} word" if low == high == 1 else f"{low}-{high} words"


def answer_type(question: Question) -> str:
    """What kind of thing the reference is: as the file says, else `yes/no`, `citation`, `number`, `term` or `sentence`."""
    if isinstance(said := question.extra.get("answer_type"), str):
        return said
    tokens = legal_tokens(question.answer)
    if tokens and tokens[0] in ("yes", "no"):
        return "yes/no"
    if len(tokens) > TERM_WORDS:
        return "sentence"
    if citations(question.answer):
        return "citation"
    return "number" if any(token[:1].isdigit() for token in tokens) else "term"


def similarity(question: Question) -> str:
    """Similarity to the nearest training question, in the buckets of `SIMILARITIES`."""
    if question.nearest_train is None:
        return "unknown"
    at = bisect_right(SIMILARITIES, question.nearest_train) - 1
    return f"{SIMILARITIES[at]:.1f}-{SIMILARITIES[at + 1] if at + 1 < len(SIMILARITIES) else 1.0:.1f}"


NAMES = {
    "kind": lambda question: question.kind or "none",
    "part": lambda question: question.part or "none",
    "answer_length": answer_length,
    "answer_type": answer_type,
    "similarity": similarity,
}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts "2-3 words" before "16+ words"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]
