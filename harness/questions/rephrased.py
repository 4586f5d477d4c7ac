"""Questions in other words: one uncommon answer, and the rare words of the question in common ("Who wrote X?", "Name the author of X.").

They need not look alike, so the near-duplicate test does not meet them. A template's questions are distinguished by their slots, which are not
shared, while what they share is not rare.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.questions.meaning import Matrix, Meanings

SAME_ANSWER_ROWS = 8
"""An answer of more rows is common: weak evidence if two questions share it."""
RARE_ROWS, RARE_SHARE = 3, 0.001
"""A word of a question is rare in the file up to the larger of these (a count, a share of the rows)."""
SHARED = 0.5
"""Twice the rare words in common, as a share of the content words of both questions, from which they ask about the same."""
CHUNK = 200_000


def pairs(meanings: Meanings, labels: Sequence[str | None]) -> np.ndarray:
    """Pairs of rows that ask the same in other words, shape (pairs, 2), the earlier row first; pairs with two labels are left to the labels."""
    found = _with_one_answer(meanings)
    labelled = np.array([label is not None for label in labels], dtype=bool)
    found = found[~(labelled[found[:, 0]] & labelled[found[:, 1]])]
    content = meanings.content
    everywhere = np.bincount(content.indices, minlength=content.shape[1])
    rare = content.copy()
    rare.data = (everywhere <= max(RARE_ROWS, RARE_SHARE * content.shape[0]))[rare.indices].astype(np.float32)
    sizes = np.diff(content.indptr)
    chunks = [found[start : start + CHUNK] for start in range(0, len(found), CHUNK)]
    kept = [
        2 * _common(rare, content, chunk) >= SHARED * np.maximum(1, sizes[chunk[:, 0]] + sizes[chunk[:, 1]])
        for chunk in chunks
    ]
    found = found[np.concatenate(kept)] if kept else found
    differ = _rivals(meanings.keys, meanings.known, found) | _rivals(meanings.names, meanings.known, found)
    return found[~differ]


def _with_one_answer(meanings: Meanings) -> np.ndarray:
    """Pairs of rows with the same informative answer, which few rows have."""
    says = np.diff(meanings.answer_content.indptr) > 0
    few = (meanings.answer_count > 1) & (meanings.answer_count <= SAME_ANSWER_ROWS)
    rows = np.flatnonzero(says & few)
    rows = rows[np.argsort(meanings.answer_id[rows], kind="stable")]
    answer = meanings.answer_id[rows]
    found = [np.empty((0, 2), dtype=np.int64)]
    for apart in range(1, SAME_ANSWER_ROWS):
        at = np.flatnonzero(answer[:-apart] == answer[apart:])
        found.append(np.stack([rows[at], rows[at + apart]], axis=1))
    return np.concatenate(found)


def _common(left: Matrix, right: Matrix, found: np.ndarray) -> np.ndarray:
    return np.asarray(left[found[:, 0]].multiply(right[found[:, 1]]).sum(axis=1)).ravel()


def _rivals(words: Matrix, known: Matrix, found: np.ndarray) -> np.ndarray:
    """Whether each row of a pair has `words` that the other lacks."""
    sizes = np.diff(words.indptr)
    reverse = found[:, ::-1]
    own_left = sizes[found[:, 0]] > _common(words, known, found)
    return own_left & (sizes[found[:, 1]] > _common(words, known, reverse))
