"""Near-duplicates and groups: which rows of a QA file must stay on one side of a split.

Rows are tied by (1) one `group` label, (2) one question, (3) near-duplicate questions, (4) one long answer; a group is what is connected.

Near-duplicates are found among character n-grams: MinHash and locality-sensitive hashing (Broder 1997; Indyk and Motwani 1998; Leskovec,
Rajaraman and Ullman, Mining of Massive Datasets, chapter 3) propose pairs, the exact Jaccard similarity decides which look alike, and
`harness.questions.paraphrase` which of these ask the same. Every decision depends on the two rows only, so rows that are added change nothing between
those that were there.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasketch import MinHash, MinHashLSH
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from harness.questions.dataset import Row
from harness.questions.paraphrase import Meaning, ask_the_same, is_long, normalise

PERMUTATIONS = 128
SEED = 1
RECALL_WEIGHTS = (0.02, 0.98)
"""Cost of a false and of a missed candidate: false ones are thrown out by the exact similarity, missed ones leak."""
WINDOW = 50
"""Look-alikes before it, in each bucket, that a row is compared with: keeps a file made from one template from taking quadratic time."""
CHUNK = 200_000
"""Pairs whose similarity is computed at once."""
QUERIES = 64
"""Questions whose nearest neighbours are looked for at once."""
EXAMPLES = 5
MAX_PENDING = 20_000_000
"""Candidate pairs that are kept before repeated ones are thrown out: 160 MB."""


@dataclass(frozen=True)
class Link:
    """Two rows that stay together (positions in the list of rows), and why."""

    reason: str
    """`group`, `duplicate_question`, `near_duplicate` or `long_answer`."""
    left: int
    right: int
    similarity: float | None
    """Of the questions; None if they were not compared."""


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
    """Rows with more look-alikes than `WINDOW`, which were not compared with all of them."""


# -------------------------------------------------------------------------------------------------- n-gram similarity


class Shingles:
    """The sets of character n-grams of normalised texts, as a 0/1 matrix (texts x n-grams)."""

    def __init__(self, texts: Sequence[str], n: int):
        vocabulary: dict[str, int] = {}
        indices: list[int] = []
        starts = [0]
        for text in map(normalise, texts):
            # A text shorter than n is its own and only n-gram.
            grams = {text[i : i + n] for i in range(max(1, len(text) - n + 1))}
            indices.extend(vocabulary.setdefault(gram, len(vocabulary)) for gram in grams)
            starts.append(len(indices))
        values = np.ones(len(indices), dtype=np.float32)
        self.matrix = sparse.csr_matrix((values, indices, starts), shape=(len(texts), len(vocabulary)))
        self.matrix.sort_indices()
        self.sizes = np.diff(self.matrix.indptr)
        # Hashes of the n-grams themselves: their order in the vocabulary depends on the other rows.
        self.hashes = np.fromiter(
            (zlib.crc32(gram.encode()) for gram in vocabulary), dtype=np.uint64, count=len(vocabulary)
        )

    def jaccard(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """|A ∩ B| / |A ∪ B| of the pairs (left[i], right[i]); shape (pairs,), 0..1."""
        result = np.empty(len(left))
        for start in range(0, len(left), CHUNK):
            part = slice(start, start + CHUNK)
            common = np.asarray(self.matrix[left[part]].multiply(self.matrix[right[part]]).sum(axis=1)).ravel()
            result[part] = common / (self.sizes[left[part]] + self.sizes[right[part]] - common)
        return result

    def nearest(self, queries: Sequence[int], corpus: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """For each query row the most similar corpus row (the first of equals) and that Jaccard similarity; two arrays (queries,)."""
        rows, others = np.asarray(queries, dtype=np.int64), np.asarray(corpus, dtype=np.int64)
        corpus_matrix = self.matrix[others]
        best, similarity = np.empty(len(rows), dtype=np.int64), np.empty(len(rows))
        for start in range(0, len(rows), QUERIES):
            part = slice(start, start + QUERIES)
            # Frequent n-grams make the product dense anyway.
            common = corpus_matrix @ self.matrix[rows[part]].T.toarray()
            scores = common / (self.sizes[others, None] + self.sizes[None, rows[part]] - common)
            at = scores.argmax(axis=0)
            best[part], similarity[part] = others[at], scores[at, np.arange(len(at))]
        return best, similarity


def candidates(shingles: Shingles, threshold: float, topics: Sequence[int]) -> tuple[np.ndarray, int]:
    """Pairs of texts that share a MinHash band, and how many texts stood in buckets too full to compare all.

    Args:
        shingles: the texts.
        threshold: the Jaccard similarity from which a pair should be found (at least 96% of pairs at the threshold are, more above it).
        topics: a hash of what each text is about; within a full bucket equal ones are compared first.

    Returns:
        Pairs, shape (pairs, 2), left before right, each once.
    """
    lsh = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=RECALL_WEIGHTS)
    count, matrix = len(shingles.sizes), shingles.matrix
    sets = (
        shingles.hashes[matrix.indices[a:b]].tolist()
        for a, b in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)
    )
    hashed = MinHash.generator(sets, num_perm=PERMUTATIONS, seed=SEED, hashfunc=int)
    signatures = np.stack([minhash.hashvalues for minhash in hashed]).astype(np.uint32)
    topic = np.asarray(topics, dtype=np.uint64)
    found, crowded = [np.empty(0, dtype=np.int64)], np.zeros(count, dtype=bool)
    for band in range(lsh.b):
        key = _mix(signatures[:, band * lsh.r : (band + 1) * lsh.r])
        pairs, full = _pairs_within(key)
        found += pairs
        if full.any():
            crowded |= full
            found += _pairs_within(_mix(np.stack([key, topic], axis=1)))[0]
        # Most pairs are met in many bands; making them unique now and then keeps memory small without sorting in every band.
        if sum(map(len, found)) > max(MAX_PENDING, 2 * len(found[0])):
            found = [_unique(found)]
    pairs = np.stack(np.divmod(_unique(found), count), axis=1)
    # The share of equal minima estimates the similarity with this standard error, so what is far below cannot be near.
    least = threshold - 5 * (threshold * (1 - threshold) / PERMUTATIONS) ** 0.5
    chunks = [pairs[start : start + CHUNK] for start in range(0, len(pairs), CHUNK)]
    close = [(signatures[chunk[:, 0]] == signatures[chunk[:, 1]]).mean(axis=1) >= least for chunk in chunks]
    return pairs[np.concatenate(close)] if chunks else pairs, int(crowded.sum())


def _unique(parts: Sequence[np.ndarray]) -> np.ndarray:
    # np.unique hashes, which is several times slower than sorting here.
    values = np.sort(np.concatenate(parts))
    return values[np.flatnonzero(np.diff(values, prepend=-1))]


def _mix(columns: np.ndarray) -> np.ndarray:
    """One 64-bit hash of each row; multiplication wraps, as in FNV."""
    key = np.full(len(columns), 14695981039346656037, dtype=np.uint64)
    for column in columns.T:
        key = (key ^ column.astype(np.uint64)) * np.uint64(1099511628211)
        key ^= key >> np.uint64(29)
    return key


def _pairs_within(key: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Pairs of positions with equal keys at most `WINDOW` apart in their bucket, as left * count + right; and who had more than that."""
    order = np.argsort(key, kind="stable")
    key, count = key[order], len(key)
    full = np.zeros(count, dtype=bool)
    pairs, at = [], np.arange(count)
    for apart in range(1, WINDOW + 1):
        at = at[at + apart < count]
        at = at[key[at] == key[at + apart]]
        if not len(at):
            return pairs, full
        pairs.append(order[at] * count + order[at + apart])
    full[order[at + WINDOW]] = True
    return pairs, full


# ------------------------------------------------------------------------------------------------------------- groups


def group_rows(rows: Sequence[Row], shingles: Shingles, *, threshold: float, long_answer_words: int) -> Groups:
    """Ties rows that must stay on one side; `shingles` are those of the questions, in the order of `rows`."""
    meanings = [Meaning.of(row) for row in rows]
    links: list[Link] = []
    for reason, keys in (
        ("group", [row.group for row in rows]),
        ("duplicate_question", [normalise(row.question) for row in rows]),
        (
            "long_answer",
            [
                m.answer if is_long(row.answer, long_answer_words) else None
                for row, m in zip(rows, meanings, strict=True)
            ],
        ),
    ):
        first: dict[str, int] = {}
        for at, key in enumerate(keys):
            if key is not None and first.setdefault(key, at) != at:
                links.append(Link(reason, first[key], at, 1.0 if reason == "duplicate_question" else None))

    topics = [zlib.crc32("\0".join(sorted(m.keys)).encode()) for m in meanings]
    pairs, crowded = candidates(shingles, threshold, topics)
    similarity = shingles.jaccard(pairs[:, 0], pairs[:, 1])
    near, values = pairs[similarity >= threshold], similarity[similarity >= threshold]
    # Templates make most of these pairs, and Python is too slow for them: what surely differs is sorted out at once.
    same = ~_surely_rival_keys(meanings, near)
    for at in np.flatnonzero(same):
        same[at] = ask_the_same(meanings[near[at, 0]], meanings[near[at, 1]])
    links += _near_duplicates(near[same], values[same])
    kept_apart = _near_duplicates(near[~same][:EXAMPLES], values[~same][:EXAMPLES])
    return Groups(_connect(len(rows), links), links, kept_apart, int((~same).sum()), len(pairs), crowded)


def _near_duplicates(pairs: np.ndarray, similarity: np.ndarray) -> list[Link]:
    return [
        Link("near_duplicate", left, right, value)
        for (left, right), value in zip(pairs.tolist(), similarity.tolist(), strict=True)
    ]


def _surely_rival_keys(meanings: Sequence[Meaning], pairs: np.ndarray) -> np.ndarray:
    """For each pair whether each question is known to have keys that the other has not: bits of Bloom filters, so some are missed."""
    keys, words = _bits([m.keys for m in meanings]), _bits([m.words for m in meanings])
    rival = np.empty(len(pairs), dtype=bool)
    for start in range(0, len(pairs), CHUNK):
        left, right = pairs[start : start + CHUNK].T
        rival[start : start + CHUNK] = np.any(keys[left] & ~words[right], axis=1) & np.any(
            keys[right] & ~words[left], axis=1
        )
    return rival


def _bits(sets: Sequence[frozenset[str]]) -> np.ndarray:
    bits = np.zeros((len(sets), 256), dtype=bool)
    for at, words in enumerate(sets):
        bits[at, [zlib.crc32(word.encode()) & 255 for word in words]] = True
    return np.packbits(bits, axis=1).view(np.uint64)


def _connect(count: int, links: Sequence[Link]) -> list[int]:
    """Connected components; each named by its first row."""
    left, right = [link.left for link in links], [link.right for link in links]
    graph = sparse.coo_matrix((np.ones(len(links), dtype=bool), (left, right)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    first: dict[int, int] = {}
    return [first.setdefault(c, at) for at, c in enumerate(component.tolist())]
