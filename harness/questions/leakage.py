"""Leakage: held-out questions that are also in the training file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.questions.grouping import EXAMPLES, Link, is_long
from harness.questions.normalised import normalised
from harness.questions.rows import Row
from harness.questions.sides import Sides
from harness.records.split import Leakage


@dataclass(frozen=True)
class Leaks:
    """Held-out and training rows (positions) with the same or a near-duplicate question."""

    exact: set[int]
    """Held-out rows whose question is also in training, case and punctuation aside."""
    near: set[int]
    """Further held-out rows with a near-duplicate in training."""
    train: set[int]
    """The training rows that give them away."""
    pairs: list[tuple[int, int]]
    """A few (held-out, training) rows, the exact ones first."""

    @property
    def heldout(self) -> set[int]:
        """Every leaked held-out row."""
        return self.exact | self.near


def find(rows: Sequence[Row], links: Iterable[Link], heldout: Sequence[int], known: Sequence[int]) -> Leaks:
    """The leaks from the rows of `known` to those of `heldout`; `rows` and `links` as used for grouping."""
    asked: dict[str, list[int]] = {}
    for at in heldout:
        asked.setdefault(normalised(rows[at].question), []).append(at)
    exact = {at: asked[key] for at in known if (key := normalised(rows[at].question)) in asked}
    held, others = set(heldout), set(known)
    near = []
    for link in links:
        if link.reason == "near_duplicate":
            for left, right in ((link.left, link.right), (link.right, link.left)):
                if left in held and right in others:
                    near.append((left, right))
    same = {at for found in exact.values() for at in found}
    pairs = [(found[0], at) for at, found in exact.items()] + near
    return Leaks(
        exact=same,
        near={left for left, _ in near} - same,
        train={*exact, *(right for _, right in near)},
        pairs=pairs[:EXAMPLES],
    )


def summary(
    rows: Sequence[Row],
    leaks: Leaks,
    known: Sequence[int],
    nearest: Mapping[int, float],
    *,
    dropped: int,
    long_answer_words: int,
) -> Leakage:
    """`SplitManifest.leakage`.

    Args:
        leaks: from the training rows that are left, `known`.
        nearest: held-out row -> similarity (0..1) to its nearest training question.
        dropped: training rows that were left out because they leak.
    """
    if not known:
        return {"checked": False}
    answers = {rows[at].answer for at in known}
    shared = [rows[at].answer for at in nearest if rows[at].answer in answers]
    bins = Counter(min(int(similarity * 10), 9) for similarity in nearest.values())
    return {
        "checked": True,
        "questions_in_train": len(leaks.exact),
        "near_duplicates_in_train": len(leaks.near),
        "train_rows": len(leaks.train),
        "dropped": dropped,
        "examples": [{"heldout": rows[a].question, "train": rows[b].question} for a, b in leaks.pairs],
        "answers_in_train": len(shared),
        "long_answers_in_train": sum(is_long(answer, long_answer_words) for answer in shared),
        "max_similarity": round(max(nearest.values(), default=0.0), 6),
        "similarity_histogram": {f"{tenth / 10:.1f}-{(tenth + 1) / 10:.1f}": bins[tenth] for tenth in range(10)},
    }


def warnings(leaks: Leaks, sides: Sides, dropped: int) -> list[str]:
    """The leaks in words."""
    if not sides.known:
        return [
            "leakage could not be checked: there are no training rows (data.qa, or data.trained_on for a model trained elsewhere)"
        ]
    found = []
    if dropped:
        found.append(
            f"{dropped} training rows were left out: their questions are held out, or near-duplicates of held-out ones"
        )
    if leaks.heldout:
        fix = (
            "data.drop_leaks=true leaves those training rows out"
            if sides.train
            else "judge the model on other questions"
        )
        found.append(
            f"{len(leaks.heldout)} of {len(sides.heldout)} held-out questions leak: {len(leaks.exact)} are also training questions, "
            f"{len(leaks.near)} have near-duplicates among those ({fix})"
        )
    return found
