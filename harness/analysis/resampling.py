"""Scores in groups: group totals, their standard errors, and their resampling.

Questions of one group (paraphrases, shared answers) are right or wrong together, so the group, not the question, is the unit that is drawn,
left out, or flipped. Every function takes many columns (a metric of a variant each) at once, and a score of NaN is unscored: it counts
in neither sum nor n.

Notation, for one column: group g has n_g scored questions whose scores sum to S_g; G groups; N = sum of n_g; the mean is m = sum S_g / N, a
ratio of two group totals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

CHUNK = 4_000_000
"""Elements of a resampling matrix in memory at a time (32 MB)."""
MOST_GROUPS = 4_000
"""Most groups that are drawn or flipped one by one; more of them are pooled into this many (`Totals.pooled`)."""


@dataclass(frozen=True)
class Totals:
    """Group totals of K columns, the sufficient statistics of everything below.

    Args:
        sums: S_g, shape (G, K).
        counts: n_g, shape (G, K).
    """

    sums: Floats
    counts: Floats

    @classmethod
    def of(cls, values: ArrayLike, groups: Sequence[Any] | NDArray[Any]) -> Totals:
        """Totals of scores of shape (n, K) or (n,), NaN where unscored, over n group labels."""
        scores = np.asarray(values, dtype=np.float64)
        scores = scores[:, None] if scores.ndim == 1 else scores
        labels, index = np.unique(np.asarray(groups), return_inverse=True)
        scored = ~np.isnan(scores)
        filled = np.where(scored, scores, 0.0)

        def total(column: NDArray[Any]) -> NDArray[Any]:
            return np.bincount(index, weights=column, minlength=len(labels))

        shape = (len(labels), scores.shape[1])
        sums, counts = np.empty(shape), np.empty(shape)
        for k in range(shape[1]):
            sums[:, k], counts[:, k] = total(filled[:, k]), total(scored[:, k])
        return cls(sums, counts)

    def pooled(self) -> Totals:
        """The same totals in `MOST_GROUPS` groups at most: groups are added together at regular intervals.

        Groups are independent, so pooled ones are too, and sums and their variances stay the same: a bootstrap of pooled groups has the same
        expectation, and flipping pooled groups is as exact a test. The variance loses 2% of precision (the root of 2 / 4,000), the width of an
        interval 1%.
        """
        if len(self.sums) <= MOST_GROUPS:
            return self
        # Padded with empty groups, which change no sum.
        missing = np.zeros((-len(self.sums) % MOST_GROUPS, self.sums.shape[1]))
        shape = (-1, MOST_GROUPS, self.sums.shape[1])
        sums, counts = (np.concatenate([part, missing]).reshape(shape).sum(axis=0) for part in (self.sums, self.counts))
        return Totals(sums, counts)

    @property
    def n_groups(self) -> NDArray[np.int64]:
        """Groups with a scored question, shape (K,)."""
        return (self.counts > 0).sum(axis=0)

    @property
    def mean(self) -> Floats:
        """Shape (K,); NaN where nothing was scored."""
        return _ratio(self.sums.sum(axis=0), self.counts.sum(axis=0))

    @property
    def effective_groups(self) -> Floats:
        """Kish's effective number of groups, N^2 / sum n_g^2, shape (K,): G if all are of one size, fewer else.

        Source: Kish, Survey Sampling (1965), section 11.7.
        """
        return _ratio(self.counts.sum(axis=0) ** 2, (self.counts**2).sum(axis=0))


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0)


def cluster_se(totals: Totals) -> Floats:
    """Cluster-robust standard error of the means, shape (K,); NaN with fewer than two groups.

    se^2 = G/(G-1) * sum_g (S_g - m n_g)^2 / N^2. Source: Liang and Zeger, Biometrika 73 (1986) 13-22, with the CR1 factor; it is the standard
    error of an intercept-only least-squares fit with clustered covariance (statsmodels `cov_type="cluster"`).
    """
    groups = totals.n_groups.astype(np.float64)
    residuals = totals.sums - np.nan_to_num(totals.mean) * totals.counts
    factor = np.where(groups > 1, _ratio(groups, groups - 1), np.nan)
    return _ratio(np.sqrt(factor * (residuals**2).sum(axis=0)), totals.counts.sum(axis=0))


def jackknife_se(totals: Totals) -> Floats:
    """Leave-one-group-out standard error of the means, shape (K,); NaN with fewer than two groups.

    se^2 = (G-1)/G * sum_g (m_(g) - m)^2, m_(g) the mean without group g. It is CR3, larger than `cluster_se` where a few groups hold much of the
    data. Source: MacKinnon, Nielsen and Webb, J. Applied Econometrics 38 (2023) 671-694, section 3.
    """
    groups = totals.n_groups.astype(np.float64)
    total, n = totals.sums.sum(axis=0), totals.counts.sum(axis=0)
    without = _ratio(total - totals.sums, n - totals.counts)
    squares = np.where(totals.counts > 0, (without - totals.mean) ** 2, 0.0).sum(axis=0)
    return np.where(groups > 1, np.sqrt(_ratio(groups - 1, groups) * squares), np.nan)


def satterthwaite_df(totals: Totals) -> Floats:
    """Degrees of freedom of `jackknife_se` by Satterthwaite's rule, shape (K,); NaN with fewer than two groups.

    The questions of a group are assumed to agree wholly (intraclass correlation 1), the conservative case. Then S_g = n_g u_g with independent u_g,
    the jackknife's deviations are A u with A = D (I - 1 w'), D = diag(n_g / (N - n_g)), w_g = n_g / N, and df = tr(A'A)^2 / tr((A'A)^2). It is G - 1
    for groups of one size, and fewer where a few groups hold much of the data. Source: Bell and McCaffrey, Survey Methodology 28 (2002) 169-181,
    section 4, for CR3 instead of CR2.
    """
    found = np.full(totals.counts.shape[1], np.nan)
    for k in range(len(found)):
        counts = totals.counts[totals.counts[:, k] > 0, k]
        if len(counts) < 2:
            continue
        n = counts.sum()
        a = (counts / (n - counts))[:, None] * (np.eye(len(counts)) - counts / n)
        squared = a.T @ a
        found[k] = np.trace(squared) ** 2 / (squared**2).sum()
    return found


# --------------------------------------------------------------------------------------------------------- resampling


def bootstrap_means(totals: Totals, *, resamples: int, seed: int) -> Floats:
    """Means of `resamples` cluster-bootstrap samples, shape (resamples, K): G groups drawn with replacement, whole.

    Each sample is a row of multinomial weights on the group totals, so all columns share one matrix product and 10,000 samples of 100,000
    questions never touch a question; more than `MOST_GROUPS` groups are pooled. Source: Davison and Hinkley, Bootstrap Methods and their Application (1997), section 3.8;
    Field and Welsh, J. R. Statist. Soc. B 69 (2007) 369-390.
    """
    pooled = totals.pooled()
    n_groups, columns = pooled.sums.shape
    both = np.hstack([pooled.sums, pooled.counts])
    means = np.empty((resamples, columns))
    generator = np.random.default_rng(seed)
    for rows in _chunks(resamples, n_groups):
        size = rows.stop - rows.start
        drawn = generator.integers(0, n_groups, size=(size, n_groups), dtype=np.int64)
        drawn += np.arange(size)[:, None] * n_groups
        weights = np.bincount(drawn.ravel(), minlength=size * n_groups).reshape(size, n_groups)
        product = weights.astype(np.float64) @ both
        means[rows] = _ratio(product[:, :columns], product[:, columns:])
    # A sample without a scored question has no mean; only columns with a handful of groups can have one.
    return np.where(np.isnan(means), totals.mean, means)


def sign_flip_p(totals: Totals, *, flips: int, seed: int) -> Floats:
    """Two-sided p-values of mean differences being 0, shape (K,), by flipping the sign of each group's total at random.

    If left and right are exchangeable within groups, every pattern of signs is as likely as the one seen, whatever the correlation inside a
    group; p = (1 + #{|T*| >= |T|}) / (1 + flips), which is never 0, and exactly 1 when all differences are 0. Sources: Fisher, The Design of
    Experiments (1935), section 21; whole-block flips: Winkler et al., NeuroImage 92 (2014) 381-397; the added 1: Phipson and Smyth,
    Stat. Appl. Genet. Mol. Biol. 9 (2010) art. 39.
    """
    totals = totals.pooled()
    n_groups, columns = totals.sums.shape
    seen = np.abs(totals.sums.sum(axis=0))
    # Sums taken in another order differ in the last bits; a flip that gives the same total must count.
    threshold = seen - 1e-9 * np.maximum(1.0, np.abs(totals.sums).sum(axis=0))
    reached = np.zeros(columns, dtype=np.int64)
    generator = np.random.default_rng(seed)
    for rows in _chunks(flips, n_groups):
        signs = generator.integers(0, 2, size=(rows.stop - rows.start, n_groups), dtype=np.int8).astype(np.float64)
        signs *= 2
        signs -= 1
        reached += (np.abs(signs @ totals.sums) >= threshold).sum(axis=0)
    return np.where(totals.n_groups > 0, (1 + reached) / (1 + flips), np.nan)


def flipped_statistics(totals: Totals, *, flips: int, seed: int) -> tuple[Floats, Floats]:
    """|sum_g S_g| / sqrt(sum_g S_g^2) of each column as seen, shape (K,), and with the groups' signs flipped at random, shape (flips, K).

    The same flips serve all columns, so that the joint distribution keeps their dependence. 0 for a column of zeros.
    """
    totals = totals.pooled()
    n_groups, columns = totals.sums.shape
    scale = np.sqrt((totals.sums**2).sum(axis=0))
    scaled = np.divide(totals.sums, scale, out=np.zeros_like(totals.sums), where=scale > 0)
    flipped = np.empty((flips, columns))
    generator = np.random.default_rng(seed)
    for rows in _chunks(flips, n_groups):
        signs = generator.integers(0, 2, size=(rows.stop - rows.start, n_groups), dtype=np.int8).astype(np.float64)
        flipped[rows] = np.abs((2 * signs - 1) @ scaled)
    return np.abs(scaled.sum(axis=0)), flipped


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, CHUNK // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))
