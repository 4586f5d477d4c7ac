"""Groups: which rows of a QA file must stay on one side of a split.

Rows are tied by (1) one `group` label, (2) one question, (3) near-duplicate questions that ask the same, or questions in
other words with one uncommon answer (`harness.questions.rephrased`), (4) one long answer, unless it is a
stock answer. What is connected is a group; but no chain of near-duplicates and answers is longer than `CHAIN` rows unless all its rows are tied
to one another (complete linkage).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from harness.questions import rephrased
from harness.questions.dataset import Row
from harness.questions.meaning import Matrix, Meanings
from harness.questions.normalised import normalised
from harness.questions.paraphrase import ask_the_same, stock_answers
from harness.questions.similarity import Shingles, candidates, mix, pairs_within, unique

EXAMPLES = 5
ALIKE = 0.8
"""Share of the threshold above which two questions have the same template, though they are not near-duplicates."""
CHAIN = 50
"""Maximum rows linked by a chain of ties."""
COMPARED = 50
"""Members of a group that a row is compared with when a longer chain is cut."""
BAG_WORDS = 2
"""Minimum number of equal content words, in any order, for which two questions are compared."""


@dataclass(frozen=True)
class Link:
    """Two rows that stay together (positions in the list of rows), and why."""

    reason: str
    """`group`, `duplicate_question`, `near_duplicate` or `long_answer`."""
    left: int
    right: int
    similarity: float | None
    """Similarity of the questions; None if they were not compared."""


@dataclass(frozen=True)
class Groups:
    """The result of `group_rows`."""

    of: list[int]
    """For each row the position of its group's first row."""
    links: list[Link]
    kept_apart: list[Link]
    """A few of the near-duplicate questions that ask different things."""
    n_kept_apart: int
    pairs_compared: int
    rows_in_full_buckets: int
    """Rows with more similar rows than `WINDOW`, which were not compared with all of them."""
    rows_with_stock_answers: int
    """Rows whose long answer does not tie them, because the file gives it to many different questions."""
    chains_cut: int
    """Groups of more than `CHAIN` rows that were cut."""


def is_long(text: str, words: int) -> bool:
    """Whether a text has at least so many words, punctuation standing alone counted as in `str.split`."""
    return len(text.split()) >= words or len(normalised(text).split()) >= words


def group_rows(rows: Sequence[Row], shingles: Shingles, *, threshold: float, long_answer_words: int) -> Groups:
    """Ties rows that must stay on one side; `shingles` are those of the questions, in the order of `rows`."""
    meanings = Meanings.of(rows)
    long = [is_long(row.answer, long_answer_words) for row in rows]
    stock = stock_answers(meanings, long)
    answers = [int(meanings.answer_id[at]) if long[at] and not stock[at] else None for at in range(len(rows))]
    links = _equal("group", [row.group for row in rows])
    links += _equal("duplicate_question", [normalised(row.question) for row in rows])
    firm = len(links)
    links += _equal("long_answer", answers)

    pairs, crowded = candidates(shingles, threshold, [_key_topics(meanings), _rarest_words(meanings)])
    similarity = shingles.jaccard(pairs[:, 0], pairs[:, 1])
    alike = pairs[similarity >= ALIKE * threshold]
    near, values = pairs[similarity >= threshold], similarity[similarity >= threshold]
    reordered = _same_words(meanings, near)
    asked = np.concatenate([near, reordered])
    values = np.concatenate([values, shingles.jaccard(reordered[:, 0], reordered[:, 1])])
    same = ask_the_same(meanings, asked, alike, [row.group for row in rows])
    links += _near_duplicates(asked[same], values[same])
    reworded = rephrased.pairs(meanings, [row.group for row in rows])
    links += _near_duplicates(reworded, shingles.jaccard(reworded[:, 0], reworded[:, 1]))
    kept_apart = _near_duplicates(asked[~same][:EXAMPLES], values[~same][:EXAMPLES])
    of, cut = _connect(len(rows), links, firm)
    return Groups(of, links, kept_apart, int((~same).sum()), len(pairs), crowded, int(stock.sum()), cut)


def _equal(reason: str, keys: Sequence[str | int | None]) -> list[Link]:
    first: dict[str | int, int] = {}
    similarity = 1.0 if reason == "duplicate_question" else None
    return [
        Link(reason, first[key], at, similarity)
        for at, key in enumerate(keys)
        if key is not None and first.setdefault(key, at) != at
    ]


def _near_duplicates(pairs: np.ndarray, similarity: np.ndarray) -> list[Link]:
    return [
        Link("near_duplicate", left, right, value)
        for (left, right), value in zip(pairs.tolist(), similarity.tolist(), strict=True)
    ]


# ------------------------------------------------------------------------------------------------------------- topics


def _hashed_sets(matrix: Matrix, words: np.ndarray) -> np.ndarray:
    """One hash of each row's set of words; rows without words have different ones."""
    values = words[matrix.indices]
    sums = np.concatenate([[np.uint64(0)], np.cumsum(values, dtype=np.uint64)])
    hashed = sums[matrix.indptr[1:]] - sums[matrix.indptr[:-1]]
    empty = np.flatnonzero(np.diff(matrix.indptr) == 0)
    hashed[empty] = mix(empty[:, None])
    return hashed


def _word_hashes(count: int) -> np.ndarray:
    return mix(np.stack([np.arange(count), np.full(count, 7)], axis=1))


def _key_topics(meanings: Meanings) -> np.ndarray:
    keys = meanings.keys.maximum(meanings.names).tocsr()
    return _hashed_sets(keys, _word_hashes(keys.shape[1]))


def _rarest_words(meanings: Meanings) -> np.ndarray:
    """Of each question the number of its rarest word."""
    content = meanings.content
    everywhere = np.bincount(content.indices, minlength=content.shape[1])
    row = np.repeat(np.arange(content.shape[0]), np.diff(content.indptr))
    order = np.lexsort((content.indices, everywhere[content.indices], row))
    rarest = -1 - np.arange(content.shape[0])
    filled = np.flatnonzero(np.diff(content.indptr))
    rarest[filled] = content.indices[order[content.indptr[filled]]]
    return rarest.astype(np.uint64)


def _same_words(meanings: Meanings, near: np.ndarray) -> np.ndarray:
    """Pairs of questions with the same words, function words apart, that do not look alike: another order of words; shape (pairs, 2)."""
    count = len(meanings.sequences)
    bags = _hashed_sets(meanings.content, _word_hashes(meanings.content.shape[1]))
    few = np.flatnonzero(np.diff(meanings.content.indptr) < BAG_WORDS)
    bags[few] = mix(np.stack([few, few], axis=1))
    found = [np.empty(0, dtype=np.int64), *pairs_within(bags)[0]]
    known = near[:, 0] * count + near[:, 1]
    pairs = np.setdiff1d(unique(found), known, assume_unique=True)
    return np.stack(np.divmod(pairs, max(1, count)), axis=1)


# ---------------------------------------------------------------------------------------------------------- linkage


def _connect(count: int, links: Sequence[Link], firm: int) -> tuple[list[int], int]:
    """Groups, each named by its first row, and how many were cut; the first `firm` links are never cut."""
    left = np.fromiter((link.left for link in links), dtype=np.int64, count=len(links))
    right = np.fromiter((link.right for link in links), dtype=np.int64, count=len(links))
    kernel = _components(count, left[:firm], right[:firm])
    component = _components(count, left, right)
    group = component.astype(np.int64)
    # Rows with one label or one question count as one.
    kernels_in = np.bincount(component[np.unique(kernel, return_index=True)[1]], minlength=len(component))
    cut = np.flatnonzero(kernels_in > CHAIN)
    if len(cut):
        long = np.zeros(len(kernels_in), dtype=bool)
        long[cut] = True
        chosen = np.flatnonzero(long[component[left]])
        tied: dict[int, set[int]] = {}
        for a, b in zip(kernel[left[chosen]].tolist(), kernel[right[chosen]].tolist(), strict=True):
            if a != b:
                tied.setdefault(a, set()).add(b)
                tied.setdefault(b, set()).add(a)
        found = _complete_linkage(tied)
        inside = np.flatnonzero(long[component])
        base = count
        group[inside] = [base + found.get(k, k + count) for k in kernel[inside].tolist()]  # pyright: ignore[reportOperatorIssue]
    first: dict[int, int] = {}
    return [first.setdefault(c, at) for at, c in enumerate(group.tolist())], len(cut)


def _components(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    graph = sparse.coo_matrix((np.ones(len(left), dtype=bool), (left, right)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _complete_linkage(tied: dict[int, set[int]]) -> dict[int, int]:
    """For each node its cluster: in order, a node joins the first cluster whose members (the first `COMPARED` of them) it is all tied to."""
    cluster_of: dict[int, int] = {}
    members: dict[int, list[int]] = {}
    for node in sorted(tied):
        near = {cluster_of[other] for other in tied[node] if other in cluster_of}
        for cluster in sorted(near):
            if all(other in tied[node] for other in members[cluster][:COMPARED]):
                break
        else:
            cluster = node
            members[cluster] = []
        members[cluster].append(node)
        cluster_of[node] = cluster
    return cluster_of
