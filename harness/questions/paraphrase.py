"""Whether two questions that look alike ask the same thing.

Templates make questions that differ in one word or number and ask different things; paraphrases differ in many words and ask the same. Neither
capitals nor a list of words tells them apart in every language, so the file itself does: a word that varies among the rows that look like
this one fills a slot of their template, whatever its script. Where few rows look alike, each word counts that is not common in the file.

Two questions that look alike ask the same thing unless

- each has numbers, bracketed labels or numerals that the other has not ("Article 14", "Article 15"), or each answer has;
- each has slot words that the other has not ("egypt", "spain"), and the answers do not say the same thing; in a template of `TEMPLATE` rows and
  more an equal answer says little ("yes"), unless the two share another slot word or the whole neighbourhood has that one answer;
- one has a number, name or slot word more, and the answers do not agree.

What an answer says are its words that are in neither question and that few other answers have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy import sparse

from harness.questions.meaning import Matrix, Meanings

TEMPLATE = 8
"""Minimum number of similar rows to learn the varying words from these rows instead of the file."""
FEW_ROWS, COMMON_WORD = 20, 0.05
"""A word of more rows than both of these (a count, a share of the file) is common: it is not a slot word where few rows look alike."""
SLOT = 0.2
"""Maximum share of the similar rows that contain a word, for it to count as varying."""
ANSWERS_AGREE = 0.5
"""Share of the shorter answer's words that the other must contain for the two to agree."""
ONE_ANSWER = 0.8
"""Minimum share of similar rows with one answer, for them to be phrasings of one question."""
ONE_FRAME = 0.5
"""Minimum share of similar rows that differ in the same place, for them to be a template anyway."""
COMMON_IN_ANSWERS = 0.2
"""A word of more answers than this share is common: it is no evidence if two answers share it."""
TYPO_LETTERS = 6
"""Minimum letters of two words that differ in one letter, to count as the same word with a typo."""
STOCK_ROWS = 5
"""Minimum rows with one long answer, for it to be a stock answer."""
STOCK_WORD = 0.5
"""A word of more questions than this share of the file is not a subject that a stock answer could be about."""
COMMON_IN_TEMPLATE, COMMON = (3, 0.01), (8, 0.05)
"""An answer of more rows than both of these (a count, a share of the file) is common: it is no evidence if two rows share it."""
CHUNK = 200_000
"""Pairs processed at once."""


def ask_the_same(meanings: Meanings, pairs: np.ndarray, alike: np.ndarray, labels: Sequence[str | None]) -> np.ndarray:
    """For each pair of rows whether they ask the same thing.

    Args:
        meanings: of all rows.
        pairs: the pairs in question, shape (pairs, 2).
        alike: pairs of rows that look alike, shape (n, 2); they make the neighbourhoods.
        labels: the rows' `group`s.

    Returns:
        A boolean array, shape (pairs,).
    """
    if not len(pairs):
        return np.zeros(0, dtype=bool)
    return _Decision(meanings, pairs, alike, labels).decide()


class _Decision:
    def __init__(self, meanings: Meanings, pairs: np.ndarray, alike: np.ndarray, labels: Sequence[str | None]):
        self.meanings, self.pairs, self.looks, self.labels = meanings, pairs, alike, labels
        count = len(meanings.sequences)
        self.left, self.right = pairs.T
        left, right = alike.T
        links = sparse.coo_matrix((np.ones(len(left), dtype=np.float32), (left, right)), shape=(count, count)).tocsr()
        self.alike = (links + links.T + sparse.identity(count, format="csr")).tocsr()
        self.n_alike = np.diff(self.alike.indptr)
        self.rare = self._rare(meanings.question)
        self.rare_answer = self._rare(meanings.answer)
        self.uncommon_answer = meanings.answer_content.copy()
        everywhere = np.bincount(meanings.answer.indices, minlength=meanings.answer.shape[1])
        uncommon = everywhere <= max(COMMON[0], COMMON_IN_ANSWERS * count)
        self.uncommon_answer.data *= uncommon[self.uncommon_answer.indices]
        self.uncommon_answer.eliminate_zeros()

    def _rare(self, words: Matrix) -> Matrix:
        """The words of each row that vary among similar rows; if these are few, all but the file's common words."""
        count = words.shape[0]
        everywhere = np.bincount(words.indices, minlength=words.shape[1])
        everywhere_rare = (everywhere <= max(FEW_ROWS, COMMON_WORD * count)) & ~self.meanings.is_function
        rare = words.copy()
        rare.data = everywhere_rare[words.indices].astype(np.float32)
        crowded = np.flatnonzero(self.n_alike >= TEMPLATE)
        for start in range(0, len(crowded), 2_000):
            rows = crowded[start : start + 2_000]
            mine = words[rows]
            # Count plus one, so that multiplying drops no word.
            here = (self.alike[rows] @ words).multiply(mine).tocsr()
            here.sort_indices()
            limit = np.maximum(2, SLOT * self.n_alike[rows])
            varies = here.data <= np.repeat(limit, np.diff(here.indptr))
            at = np.concatenate([np.arange(words.indptr[row], words.indptr[row + 1]) for row in rows])
            rare.data[at] = varies & ~self.meanings.is_function[words.indices[at]]
        rare.eliminate_zeros()
        return rare

    def decide(self) -> np.ndarray:
        """See `ask_the_same`."""
        m = self.meanings
        differ = self._rivals(m.keys, m.known) | self._rivals(m.answer_numbers, m.answer_numbers)
        own_left, own_right = self._own(self.rare, m.question)
        typo = self._typos(own_left, own_right) & ~differ
        both = (own_left > 0) & (own_right > 0) & ~typo
        crowded = np.maximum(self.n_alike[self.left], self.n_alike[self.right]) >= TEMPLATE
        shares_slot = self._common(self.rare, self.rare) >= np.maximum(1, np.minimum(own_left, own_right))
        one_answer = self._one_answer((own_left > 0) | (own_right > 0))
        differ |= both & crowded & ~shares_slot & ~one_answer
        names = self._rivals(m.names, m.known) & ~typo
        differ |= names & ~one_answer
        key_left, key_right = self._own(m.keys, m.known)
        name_left, name_right = self._own(m.names, m.known)
        named = (key_left > 0) | (key_right > 0) | (((name_left > 0) | (name_right > 0)) & ~typo)
        content = self._common(m.content, m.content)
        sizes = np.diff(m.content.indptr)
        mostly = 3 * content >= sizes[self.left] + sizes[self.right]
        same = np.zeros(len(self.pairs), dtype=bool)
        for at in np.flatnonzero(~differ):
            left, right = self.left[at], self.right[at]
            if both[at]:
                apart = self.labels[left] is not None and self.labels[right] is not None
                apart &= self.labels[left] != self.labels[right]
                informed = one_answer[at] or self._answers(left, right, crowded[at]) > 0
                same[at] = mostly[at] and not apart and informed
            elif crowded[at] and (own_left[at] or own_right[at]):
                same[at] = one_answer[at] or self._answers(left, right, True) > 0
            elif named[at]:
                answers = self._answers(left, right, crowded[at])
                same[at] = answers > 0 or (answers == 0 and m.answer_id[left] == m.answer_id[right])
            elif own_left[at] or own_right[at]:
                same[at] = self._answers(left, right, False) >= 0
            else:
                same[at] = True
        return same

    # ------------------------------------------------------------------------------------------ sums over pairs

    def _common(self, a: Matrix, b: Matrix, at: np.ndarray | None = None, *, reverse: bool = False) -> np.ndarray:
        """Sum of a's entries of the left row in the words that b has of the right row, for all pairs or those `at`; or the `reverse`."""
        left, right = (self.right, self.left) if reverse else (self.left, self.right)
        left, right = (left, right) if at is None else (left[at], right[at])
        result = np.empty(len(left))
        for start in range(0, len(left), CHUNK):
            part = slice(start, start + CHUNK)
            result[part] = np.asarray(a[left[part]].multiply(b[right[part]]).sum(axis=1)).ravel()
        return result

    def _own(self, words: Matrix, others: Matrix) -> tuple[np.ndarray, np.ndarray]:
        """How many of the left row's `words` are not among the right one's `others`, and the reverse."""
        sizes = np.diff(words.indptr)
        return sizes[self.left] - self._common(words, others), sizes[self.right] - self._common(
            words, others, reverse=True
        )

    def _rivals(self, words: Matrix, others: Matrix) -> np.ndarray:
        left, right = self._own(words, others)
        return (left > 0) & (right > 0)

    def _typos(self, own_left: np.ndarray, own_right: np.ndarray) -> np.ndarray:
        """Whether the only slot words of the two sides differ by a typo."""
        typo = np.zeros(len(self.pairs), dtype=bool)
        at = np.flatnonzero((own_left == 1) & (own_right == 1))
        if not len(at):
            return typo
        left, right = self.left[at], self.right[at]
        numbered = self.rare.copy()
        # If a side has a single word of its own, its sum of word numbers minus that of the shared words is that word's number.
        numbered.data = numbered.indices.astype(np.float64)
        shared_left = self._common(numbered, self.meanings.question, at)
        shared_right = self._common(numbered, self.meanings.question, at, reverse=True)
        sums = np.asarray(numbered.sum(axis=1)).ravel()
        words = np.stack([sums[left] - shared_left, sums[right] - shared_right], axis=1).round().astype(np.int64)
        vocabulary = self.meanings.vocabulary
        typo[at] = [is_typo(vocabulary[a], vocabulary[b]) for a, b in words.tolist()]
        return typo

    # ------------------------------------------------------------------------------------------------- answers

    def _answers(self, left: int, right: int, strict: bool) -> int:
        """1: the answers agree in something that few answers say; -1: each says something that the other does not; 0: undecided.

        Where it is `strict` they do not agree if each has such words that the other has not.
        """
        m = self.meanings
        if m.answer_id[left] == m.answer_id[right]:
            rows, share = COMMON_IN_TEMPLATE if strict else COMMON
            return int(m.answer_count[left] <= max(rows, share * len(m.sequences)))
        asked = _words(m.question, left) | _words(m.question, right)
        said = self.rare_answer if strict else self.uncommon_answer
        a, b = _words(said, left), _words(said, right)
        rivals = not a <= _words(m.answer, right) and not b <= _words(m.answer, left)
        new = a - asked, b - asked
        if not strict:
            new = new[0] or a, new[1] or b
        shorter = min(map(len, new))
        common = min(len(new[0] & _words(m.answer, right)), len(new[1] & _words(m.answer, left)))
        if shorter and common >= ANSWERS_AGREE * shorter and not (strict and rivals):
            return 1
        return -1 if rivals else 0

    def _one_answer(self, own: np.ndarray) -> np.ndarray:
        """Whether a pair is of a neighbourhood with one answer, whose questions do not all differ in one place: phrasings of one question."""
        m, count = self.meanings, len(self.meanings.sequences)
        equal = m.answer_id[self.left] == m.answer_id[self.right]
        one = np.bincount(
            self.looks[m.answer_id[self.looks[:, 0]] == m.answer_id[self.looks[:, 1]]].ravel(), minlength=count
        )
        one = one >= ONE_ANSWER * (self.n_alike - 1)
        result = own & equal & one[self.left] & one[self.right]
        pairs_of = np.bincount(self.pairs[result].ravel(), minlength=count)
        frames: dict[int, Counter[tuple[int, ...]]] = {}
        for left, right in self.pairs[result].tolist():
            frame = _frame(m.sequences[left], m.sequences[right])
            for row in (left, right):
                frames.setdefault(row, Counter())[frame] += 1
        for row, found in frames.items():
            found.pop((), None)
            one[row] = max(found.values(), default=0) < ONE_FRAME * pairs_of[row]
        return result & one[self.left] & one[self.right]


def _words(matrix: Matrix, row: int) -> set[int]:
    return set(matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]].tolist())


def _frame(left: Sequence[int], right: Sequence[int]) -> tuple[int, ...]:
    """The words around the place where two questions differ; () if they have neither beginning nor end in common."""
    shorter = min(len(left), len(right))
    start = next((i for i in range(shorter) if left[i] != right[i]), shorter)
    end = next((i for i in range(shorter - start) if left[-1 - i] != right[-1 - i]), shorter - start)
    return (*left[:start], -1, *left[len(left) - end :]) if start or end else ()


@cache
def is_typo(left: str, right: str) -> bool:
    """Whether two words of `TYPO_LETTERS` letters and more differ in one letter, changed, missing or too many, or in two exchanged."""
    if (
        abs(len(left) - len(right)) > 1
        or min(len(left), len(right)) < TYPO_LETTERS - 1
        or max(len(left), len(right)) < TYPO_LETTERS
    ):
        return False
    if not (left.isalpha() and right.isalpha()):
        return False
    shorter = min(len(left), len(right))
    start = next((i for i in range(shorter) if left[i] != right[i]), shorter)
    if (
        left[start + 1 :] == right[start + 1 :]
        or left[start:] == right[start + 1 :]
        or left[start + 1 :] == right[start:]
    ):
        return True
    return left[start : start + 2] == right[start : start + 2][::-1] and left[start + 2 :] == right[start + 2 :]


def stock_answers(meanings: Meanings, long: Sequence[bool]) -> np.ndarray:
    """For each row whether its answer is one that the file gives to many different questions ("Imprisonment for 7 years and fine.").

    It is not if its questions have a word in common, at least half of them, that the questions with other answers have hardly: then they ask
    about one thing.
    """
    stock = np.zeros(len(long), dtype=bool)
    everywhere = np.bincount(meanings.content.indices, minlength=meanings.content.shape[1])
    # What most questions of the file ask about distinguishes none of them.
    topical = everywhere <= max(STOCK_ROWS, STOCK_WORD * len(long))
    wanted = np.asarray(long) & (meanings.answer_count > STOCK_ROWS)
    order = np.flatnonzero(wanted)
    order = order[np.argsort(meanings.answer_id[order], kind="stable")]
    for rows in np.split(order, np.flatnonzero(np.diff(meanings.answer_id[order])) + 1):
        if not len(rows):
            continue
        found, counts = np.unique(meanings.content[rows].indices, return_counts=True)
        own = (counts >= len(rows) / 2) & (counts >= everywhere[found] / 2) & topical[found]
        stock[rows] = not own.any()
    return stock
