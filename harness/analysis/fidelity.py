"""How far a format is from the model it was made from, in measures that change before any score does.

Pure functions over texts, token ids and log-probabilities; natural logarithms throughout, so that divergences are in nats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from harness.variants import ADAPTER, MERGED, UNTUNED, VARIANTS

Floats = npt.NDArray[np.floating]

SUFFIX = ".logprobs.npz"
"""Of the file beside a variant's predictions: `ids` (n), `lengths` (n), `tokens` (their sum) and `logprobs` (their sum, vocabulary), float32."""
LEAST = -80.0
"""Lower log-probabilities are replaced by this one: a float32 softmax such as llama.cpp's gives 0 there, whose logarithm is not finite."""


@dataclass(frozen=True)
class Divergence:
    """Two models' next-token distributions at the same positions."""

    mean_kl: float
    """Nats."""
    p99_kl: float
    """Nats; 99th percentile over positions."""
    top1_agreement: float
    """Share of positions, 0..1."""
    positions: int
    median_kl: float
    p999_kl: float
    """Nats; 99.9th percentile over positions."""
    max_kl: float
    rms_dp: float | None
    """Root mean square of the difference in the probability of the reference answer's token, 0..1; None: the tokens are not known."""
    intervals: dict[str, tuple[float, float]]
    """95% intervals of `mean_kl`, `top1_agreement` and `rms_dp`, over questions; empty with a single one."""


def subset(ids: Sequence[str], size: int) -> list[int]:
    """Positions, ascending, of the `size` ids with the smallest sha256: the same questions in every run and every order of the file."""
    order = sorted(range(len(ids)), key=lambda i: (hashlib.sha256(ids[i].encode()).digest(), i))
    return sorted(order[:size])


def identical_share(left: Sequence[str], right: Sequence[str]) -> float | None:
    """Share of answers with the same text: (1/n) sum [left_i = right_i]; None without answers."""
    pairs = list(zip(left, right, strict=True))
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else None


def token_agreement(left: Sequence[Sequence[int]], right: Sequence[Sequence[int]]) -> float | None:
    """Mean over answers of l / max(|a|, |b|), l the length of the longest common prefix of the token ids a and b.

    What follows the first difference was generated after another prefix, and does not count. Two empty answers agree (1); None without answers.
    """
    shares = []
    for a, b in zip(left, right, strict=True):
        common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        shares.append(common / max(len(a), len(b)) if a or b else 1.0)
    return float(np.mean(shares)) if shares else None


def kl(reference: Floats, other: Floats) -> npt.NDArray[np.float64]:
    """Kullback-Leibler divergence at each position: KL(P || Q) = sum_v P(v) (ln P(v) - ln Q(v)), P the reference's.

    Computed in double precision after normalising both again, so that rounding gives no negative divergence. Source: Kullback and Leibler, Ann. Math.
    Statist. 22 (1951) 79-86; llama.cpp's `--kl-divergence` reports the same.

    Args:
        reference, other: natural log-probabilities, shape (positions, vocabulary); values below LEAST, -inf included, are replaced by LEAST.
    Returns:
        Shape (positions,), nats, >= 0.
    Raises:
        ValueError: unequal shapes, as of two vocabularies.
    """
    if reference.shape != other.shape:
        raise ValueError(f"log-probabilities of shapes {reference.shape} and {other.shape}")
    p, q = _normalised(reference), _normalised(other)
    return np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0)


def divergence(
    reference: Sequence[Floats], other: Sequence[Floats], tokens: Sequence[npt.NDArray[np.integer]] | None = None
) -> Divergence | None:
    """What `llama-perplexity --kl-divergence` prints, over the T positions of all questions; None without positions.

    Mean (1/T) sum_t KL_t, its median, maximum, 99th and 99.9th percentile, interpolated linearly; top-1 agreement (1/T) sum_t [argmax P_t =
    argmax Q_t]; RMS of the difference in probability sqrt((1/T) sum_t (Q_t(v_t) - P_t(v_t))^2), v_t the reference answer's token.
    llama.cpp's own error bars take positions for independent; `intervals` do not (see `_interval`).

    Args:
        reference, other: for each question what `kl` takes. Raises as it does.
        tokens: the reference answers' token ids, for each question shape (positions,).
    """
    pairs = list(zip(reference, other, strict=True))
    by_question = [kl(p, q) for p, q in pairs]
    values = np.concatenate(by_question or [np.empty(0)])
    if not len(values):
        return None
    agree = [(p.argmax(axis=-1) == q.argmax(axis=-1)).astype(np.float64) for p, q in pairs]
    squares = []
    for (p, q), ids in zip(pairs, tokens or [], strict=tokens is not None):
        at = np.arange(len(ids))
        squares.append((np.exp(q[at, ids].astype(np.float64)) - np.exp(p[at, ids].astype(np.float64))) ** 2)
    intervals = {"mean_kl": _interval(by_question), "top1_agreement": _interval(agree)}
    if squares and (found := _interval(squares)):
        intervals["rms_dp"] = (found[0] ** 0.5, found[1] ** 0.5)
    p99, p999 = np.percentile(values, [99, 99.9])
    return Divergence(
        mean_kl=float(values.mean()),
        p99_kl=float(p99),
        top1_agreement=float(np.concatenate(agree).mean()),
        positions=len(values),
        median_kl=float(np.median(values)),
        p999_kl=float(p999),
        max_kl=float(values.max()),
        rms_dp=float(np.concatenate(squares).mean() ** 0.5) if squares else None,
        intervals={name: interval for name, interval in intervals.items() if interval is not None},
    )


def _interval(by_question: Sequence[Floats]) -> tuple[float, float] | None:
    """95% interval of the mean over all positions, cut at 0; None for fewer than two questions.

    Positions of one answer depend on each other, so that questions are the sample: the mean is a ratio of two sums over them, sum s_q / sum n_q, with
    the linearised variance K / (K - 1) sum (s_q - m n_q)^2 / N^2 and Student's t with K - 1 degrees of freedom. Source: Cochran, Sampling
    Techniques (3rd edition, 1977), sections 2.11 and 9A.2 (ratio to size).
    """
    rows = [values for values in by_question if len(values)]
    if len(rows) < 2:
        return None
    sums, sizes = np.array([values.sum() for values in rows]), np.array([len(values) for values in rows])
    mean = sums.sum() / sizes.sum()
    spread = ((sums - mean * sizes) ** 2).sum() * len(rows) / (len(rows) - 1)
    half = float(stats.t.ppf(0.975, len(rows) - 1)) * spread**0.5 / sizes.sum()
    return max(float(mean - half), 0.0), float(mean + half)


def flip_rate(before: Sequence[str], after: Sequence[str]) -> float:
    """Share of answers whose text changed when the same model was asked again; 0 without answers."""
    same = identical_share(before, after)
    return 0.0 if same is None else 1.0 - same


def steps(names: Collection[str]) -> list[tuple[str, str]]:
    """(format, what it is compared with) for the adapter and its formats among `names`: each with MERGED and with the format before it.

    The format before `merged_4bit` is the adapter, which has a 4-bit base too; GGUF files are made from MERGED, so none is compared with
    `merged_4bit`. Merging onto the 16-bit base and quantising again to 4 bits are thus two rows. No pair is measured twice.
    """
    present = [variant for name, variant in VARIANTS.items() if name not in UNTUNED and name in names]
    found: list[tuple[str, str]] = []
    for place, variant in enumerate(present):
        earlier = present[:place]
        before = [o.name for o in earlier if o.name == ADAPTER or not (variant.is_leaf or o.is_leaf)]
        against = [MERGED] if MERGED in (o.name for o in earlier) else []
        found += [(variant.name, other) for other in dict.fromkeys([*against, *before[-1:]])]
    return found


def _normalised(logprobs: Floats) -> npt.NDArray[np.float64]:
    values = np.maximum(logprobs.astype(np.float64), LEAST)
    return values - np.logaddexp.reduce(values, axis=-1, keepdims=True)
