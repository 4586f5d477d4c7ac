"""Similar questions: character n-grams, near-duplicate candidates, and the nearest question of the other side.

Near-duplicates are found among character n-grams: MinHash and locality-sensitive hashing (Broder 1997; Indyk and Motwani 1998; Leskovec,
Rajaraman and Ullman, Mining of Massive Datasets, chapter 3) propose pairs, and the exact Jaccard similarity decides which look alike. All of it
is linear in the number of rows, but for `Shingles.nearest` on small files, which compares every pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from harness.questions.normalised import normalised

Matrix = Any
"""A `scipy.sparse.csr_matrix`, whose types are incomplete."""
PERMUTATIONS = 128
SEED = 1
RECALL_WEIGHTS = (0.02, 0.98)
"""Cost of a false and of a missed candidate: false ones are thrown out by the exact similarity, missed ones leak."""
WINDOW, LEAST_WINDOW = 20, 4
"""Look-alikes before it, in each bucket, that a row is compared with: keeps a file made from one template from taking quadratic time."""
WINDOW_ROWS = 100_000
"""Rows up to which that many are; with more of them fewer, so that the pairs of a large file fit into memory (`window`)."""
CHUNK = 200_000
"""Pairs whose similarity is computed at once."""
TEXTS = 20_000
"""Texts that are cut into n-grams at once."""
SIGNED = 1_000
"""Texts whose signatures are computed at once: their hashes fit into a processor's cache."""
QUERIES = 64
"""Questions whose nearest neighbours are looked for at once."""
MAX_PENDING = 20_000_000
"""Candidate pairs that are kept before repeated ones are thrown out: 160 MB."""
EXACT_PAIRS = 20_000_000
"""Pairs up to which `nearest` compares all: some three seconds."""
PROBES = 16
"""n-grams of a question by which `nearest` looks for others in a larger file: half the rarest, half spread over the rest."""
POSTINGS = 200
"""Questions looked at for each of these n-grams."""
COMPARED = 20
"""Of them, how many that share the most n-grams are compared in full."""
COLUMNS = 2**31 - 1


class Shingles:
    """The sets of character n-grams of normalised texts, as a 0/1 matrix (texts x hashes of n-grams).

    Scripts that say more with a character have shorter n-grams: two characters of Han and kana, three of Hangul.
    """

    def __init__(self, texts: Sequence[str], n: int):
        indices: list[np.ndarray] = []
        sizes: list[np.ndarray] = []
        for start in range(0, len(texts), TEXTS):
            found, counts = _ngrams([normalised(text) for text in texts[start : start + TEXTS]], n)
            indices.append(found)
            sizes.append(counts)
        self.sizes = np.concatenate(sizes) if sizes else np.zeros(0, dtype=np.int64)
        columns = np.concatenate(indices) if indices else np.zeros(0, dtype=np.int32)
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        ones = np.ones(len(columns), dtype=np.float32)
        self.matrix: Matrix = sparse.csr_matrix((ones, columns, starts), shape=(len(texts), COLUMNS))
        self.matrix.has_sorted_indices = True
        self.matrix.has_canonical_format = True

    def jaccard(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """|A ∩ B| / |A ∪ B| of the pairs (left[i], right[i]); shape (pairs,), 0..1."""
        result = np.empty(len(left))
        for start in range(0, len(left), CHUNK):
            part = slice(start, start + CHUNK)
            common = np.asarray(self.matrix[left[part]].multiply(self.matrix[right[part]]).sum(axis=1)).ravel()
            result[part] = common / (self.sizes[left[part]] + self.sizes[right[part]] - common)
        return result

    def nearest(self, queries: Sequence[int], corpus: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """For each query row the most similar corpus row (the first of equals) and that Jaccard similarity; two arrays (queries,).

        Exact up to `EXACT_PAIRS` pairs; beyond, the best of the rows that share one of `PROBES` n-grams, up to `POSTINGS` rows for each, which
        may miss a nearer one (`nearest_method` says which).
        """
        rows, others = np.asarray(queries, dtype=np.int64), np.asarray(corpus, dtype=np.int64)
        if is_exact(len(rows), len(others)):
            return self._nearest_of_all(rows, others)
        return self._nearest_of_candidates(rows, others)

    def _nearest_of_all(self, rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        corpus, asked = self.matrix[others], self.matrix[rows]
        used = np.unique(corpus.indices)
        corpus, asked = _compact(corpus, used), _compact(asked, used)
        best, similarity = np.empty(len(rows), dtype=np.int64), np.empty(len(rows))
        for start in range(0, len(rows), QUERIES):
            part = slice(start, start + QUERIES)
            # Frequent n-grams make the product dense anyway.
            common = corpus @ asked[part].T.toarray()
            scores = common / (self.sizes[others, None] + self.sizes[None, rows[part]] - common)
            at = scores.argmax(axis=0)
            best[part], similarity[part] = others[at], scores[at, np.arange(len(at))]
        return best, similarity

    def _nearest_of_candidates(self, rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        corpus = self.matrix[others]
        grams, counts, postings = _postings(corpus)
        rarest = np.argsort(counts, kind="stable")
        best, similarity = np.empty(len(rows), dtype=np.int64), np.empty(len(rows))
        for start in range(0, len(rows), 2_000):
            part = rows[start : start + 2_000]
            probes = _probes(_compact(self.matrix[part], grams), rarest)
            shared: Matrix = (probes @ postings).tocsr()
            # A question that shares nothing is compared with the first.
            empty = np.flatnonzero(np.diff(shared.indptr) == 0)
            left = np.concatenate([np.repeat(np.arange(len(part)), np.diff(shared.indptr)), empty])
            right = np.concatenate([shared.indices, np.zeros(len(empty), dtype=np.int64)]).astype(np.int64)
            weight = np.concatenate([shared.data, np.zeros(len(empty), dtype=shared.data.dtype)])
            # The 20 that share most of the probes are compared in full, of equals the first: one sorted number holds
            # row, weight and position.
            keyed = (left * (PROBES + 1) + (PROBES - weight).astype(np.int64)) << 32 | right
            keyed.sort()
            left = (keyed >> 32) // (PROBES + 1)
            starts = np.searchsorted(left, np.arange(len(part)))
            kept = np.arange(len(left)) - starts[left] < COMPARED
            left, right = left[kept], keyed[kept] & 0xFFFFFFFF
            scores = self.jaccard(part[left], others[right])
            order = np.lexsort((right, -scores, left))
            first = order[np.searchsorted(left[order], np.arange(len(part)))]
            best[start : start + len(part)], similarity[start : start + len(part)] = others[right[first]], scores[first]
        return best, similarity


def is_exact(queries: int, corpus: int) -> bool:
    """Whether `Shingles.nearest` compares all pairs."""
    return queries * corpus <= EXACT_PAIRS


def nearest_method(queries: int, corpus: int) -> str:
    """How `Shingles.nearest` finds the nearest question, for the record."""
    if is_exact(queries, corpus):
        return "exact: all pairs"
    return f"approximate: the best of the rows that share one of {PROBES} n-grams, at most {POSTINGS} rows for each"


def _compact(matrix: Matrix, used: np.ndarray) -> Matrix:
    """The matrix with only the sorted columns `used`, numbered from 0."""
    at = np.searchsorted(used, matrix.indices)
    at[at == len(used)] = 0
    kept = used[at] == matrix.indices if len(used) else np.zeros(len(at), dtype=bool)
    starts = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    return sparse.csr_matrix(
        (np.ones(int(kept.sum()), dtype=np.float32), at[kept], starts), shape=(matrix.shape[0], max(1, len(used)))
    )


def _postings(corpus: Matrix) -> tuple[np.ndarray, np.ndarray, Matrix]:
    """The n-grams of a corpus in order, how many rows have each, and n-grams x rows; of a frequent one only `POSTINGS` rows, evenly spaced."""
    count = corpus.shape[0]
    keyed = np.repeat(np.arange(count, dtype=np.int64), np.diff(corpus.indptr))
    keyed |= corpus.indices.astype(np.int64) << 32
    keyed.sort()
    columns = (keyed >> 32).astype(np.int32)
    first = np.flatnonzero(np.diff(columns, prepend=-1))
    grams, counts = columns[first], np.diff(np.append(first, len(columns)))
    rank = np.arange(len(keyed)) - np.repeat(first, counts)
    step = np.repeat(np.maximum(1, counts // POSTINGS), counts)
    kept = (rank % step == 0) & (rank // step < POSTINGS)
    rows = (keyed[kept] & 0xFFFFFFFF).astype(np.int32)
    each = np.bincount(np.repeat(np.arange(len(grams)), counts)[kept], minlength=len(grams))
    starts = np.concatenate([[0], np.cumsum(each)])
    shape = (len(grams), count)
    return grams, counts, sparse.csr_matrix((np.ones(len(rows), dtype=np.float32), rows, starts), shape=shape)


def _probes(asked: Matrix, rarest: np.ndarray) -> Matrix:
    """Of each row its `PROBES` n-grams to look others up by; `rarest` are all n-grams (columns), the rarest first."""
    row = np.repeat(np.arange(asked.shape[0]), np.diff(asked.indptr))
    place = np.empty(len(rarest), dtype=np.int64)
    place[rarest] = np.arange(len(rarest))
    keyed = np.sort(row << 32 | place[asked.indices])
    rank = np.arange(len(keyed)) - asked.indptr[row]
    rest = np.diff(asked.indptr)[row] - PROBES // 2
    step = np.maximum(1, rest // (PROBES // 2))
    spread = rank - PROBES // 2
    kept = (rank < PROBES // 2) | ((spread % step == 0) & (spread // step < PROBES // 2))
    chosen = rarest[keyed[kept] & 0xFFFFFFFF]
    return sparse.csr_matrix((np.ones(len(chosen), dtype=np.float32), (row[kept], chosen)), shape=asked.shape)


# ------------------------------------------------------------------------------------------------------------ n-grams


def _ngrams(texts: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """The sorted hashes (below `COLUMNS`) of each text's n-grams, one text after the other, and how many each has."""
    joined = "".join(texts)
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    text_of = np.repeat(np.arange(len(texts)), lengths)
    left_over = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(codes))
    size = np.full(len(codes), n)
    size[_between(codes, 0xAC00, 0xD7A3)] = min(n, 3)
    size[_between(codes, 0x3040, 0x30FF) | _between(codes, 0x3400, 0x9FFF) | _between(codes, 0x20000, 0x3FFFF)] = min(
        n, 2
    )
    whole = left_over >= size
    # A text shorter than n is its own and only n-gram.
    bare = np.bincount(text_of[whole], minlength=len(texts)) == 0
    whole[(np.cumsum(lengths) - lengths)[bare & (lengths > 0)]] = True
    # Its end counts as a character, or "ab" would be an n-gram of "abc".
    at = np.flatnonzero(whole)
    hashes = np.full(len(at), 14695981039346656037, dtype=np.uint64)
    for k in range(n):
        inside = (k < size[at]) & (k < left_over[at])
        code = np.where(inside, codes[np.minimum(at + k, len(codes) - 1)] + np.uint64(1), np.uint64(0))
        hashes = (hashes ^ code) * np.uint64(1099511628211)
        hashes ^= hashes >> np.uint64(29)
    hashes = (hashes * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(33)
    hashes[hashes == COLUMNS] = 0
    keyed = np.sort(text_of[at].astype(np.uint64) << np.uint64(32) | hashes)
    if len(keyed):
        # np.unique hashes, which is several times slower than sorting here.
        keyed = keyed[np.concatenate([[True], keyed[1:] != keyed[:-1]])]
    empty = np.flatnonzero(lengths == 0).astype(np.uint64)
    if len(empty):
        keyed = np.sort(np.concatenate([keyed, empty << np.uint64(32)]))
    counts = np.bincount((keyed >> np.uint64(32)).astype(np.int64), minlength=len(texts))
    return (keyed & np.uint64(0xFFFFFFFF)).astype(np.int32), counts


def _between(codes: np.ndarray, first: int, last: int) -> np.ndarray:
    return (codes >= first) & (codes <= last)


# --------------------------------------------------------------------------------------------------------- candidates


def candidates(shingles: Shingles, threshold: float, topics: Sequence[np.ndarray]) -> tuple[np.ndarray, int]:
    """Pairs of texts that share a MinHash band, and how many texts stood in buckets too full to compare all.

    Args:
        shingles: the texts.
        threshold: the Jaccard similarity from which a pair should be found (at least 96% of pairs at the threshold are, more above it).
        topics: hashes of what each text is about, each of shape (texts,); within a full bucket equal ones are compared first.

    Returns:
        Pairs, shape (pairs, 2), left before right, each once.
    """
    from datasketch import MinHashLSH  # brings scipy along, which an unchanged split need not wait for

    lsh = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=RECALL_WEIGHTS)
    count = len(shingles.sizes)
    signatures = _signatures(shingles)
    found, crowded = [np.empty(0, dtype=np.int64)], np.zeros(count, dtype=bool)
    for band in range(lsh.b):
        key = mix(signatures[:, band * lsh.r : (band + 1) * lsh.r])
        pairs, full = pairs_within(key)
        found += pairs
        if full.any():
            crowded |= full
            for topic in topics:
                found += pairs_within(mix(np.stack([key, topic], axis=1)))[0]
        # Most pairs are met in many bands; making them unique now and then keeps memory small without sorting in every band.
        if sum(map(len, found)) > max(MAX_PENDING, 2 * len(found[0])):
            found = [unique(found)]
    pairs = np.stack(np.divmod(unique(found), max(1, count)), axis=1)
    # The share of equal minima estimates the similarity with this standard error, so what is far below cannot be near.
    least = threshold - 5 * (threshold * (1 - threshold) / PERMUTATIONS) ** 0.5
    chunks = [pairs[start : start + SIGNED] for start in range(0, len(pairs), SIGNED)]
    equal = (np.packbits(signatures[chunk[:, 0]] == signatures[chunk[:, 1]], axis=1) for chunk in chunks)
    close = [np.bitwise_count(bits).sum(axis=1) / PERMUTATIONS >= least for bits in equal]
    return pairs[np.concatenate(close)] if chunks else pairs, int(crowded.sum())


def _signatures(shingles: Shingles) -> np.ndarray:
    """MinHash signatures, shape (texts, PERMUTATIONS): the least of each text's hashes under random linear maps modulo 2^64, upper half."""
    rng = np.random.default_rng(SEED)
    factors = rng.integers(1, 2**63, PERMUTATIONS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    shifts = rng.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64)
    count, starts = len(shingles.sizes), shingles.matrix.indptr
    signatures = np.empty((count, PERMUTATIONS), dtype=np.uint32)
    for first in range(0, count, SIGNED):
        last = min(first + SIGNED, count)
        hashes = shingles.matrix.indices[starts[first] : starts[last]].astype(np.uint64)
        hashes = (hashes + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(31)
        values = np.empty_like(hashes)
        for i in range(PERMUTATIONS):
            np.multiply(hashes, factors[i], out=values)
            values += shifts[i]
            # The least upper half is the upper half of the least.
            least = np.minimum.reduceat(values, starts[first:last] - starts[first])
            signatures[first:last, i] = least >> np.uint64(32)
    return signatures


def unique(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The different values, sorted."""
    # np.unique hashes, which is several times slower than sorting here.
    values = np.sort(np.concatenate(parts))
    return values[np.flatnonzero(np.diff(values, prepend=-1))]


def mix(columns: np.ndarray) -> np.ndarray:
    """One 64-bit hash of each row; multiplication wraps, as in FNV."""
    key = np.full(len(columns), 14695981039346656037, dtype=np.uint64)
    for column in columns.T:
        key = (key ^ column.astype(np.uint64)) * np.uint64(1099511628211)
        key ^= key >> np.uint64(29)
    return key


def window(count: int) -> int:
    """How far apart in a bucket two of `count` texts may stand to be compared."""
    return max(LEAST_WINDOW, min(WINDOW, WINDOW * WINDOW_ROWS // max(1, count)))


def pairs_within(key: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Pairs of positions with equal keys at most `window` apart in their bucket, as left * count + right; and who had more than that."""
    order = np.argsort(key, kind="stable")
    key, count = key[order], len(key)
    furthest = window(count)
    full = np.zeros(count, dtype=bool)
    pairs, at = [], np.arange(count)
    for apart in range(1, furthest + 1):
        at = at[at + apart < count]
        at = at[key[at] == key[at + apart]]
        if not len(at):
            return pairs, full
        pairs.append(order[at] * count + order[at + apart])
    full[order[at + furthest]] = True
    return pairs, full
