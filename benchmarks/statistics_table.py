"""Each statistic of the harness against another implementation, on synthetic data.

python benchmarks/statistics_table.py              prints the table of docs/statistics.md; 1 if a difference is larger than allowed
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import statsmodels.api as sm
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.chrf import CHRF
from scipy import spatial, special, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from harness.analysis import families, fidelity, statistics
from harness.analysis.resampling import (
    Floats,
    Totals,
    bootstrap_means,
    cluster_se,
    flipped_statistics,
    jackknife_se,
    sign_flip_p,
)
from harness.metrics import find

Values = Iterator[tuple[Any, Any]]
EXACT = 1e-9
RESAMPLES = 20_000
WORDS = "Article 21 21A the President of India shall not may by law Part III clause 1 liberty equality speech".split()


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    statistic: str
    outside: str
    values: Callable[[np.random.Generator], Values]
    """Yields (ours, theirs)."""
    allowed: float = EXACT
    unit: str = ""
    """Unit of the difference, where it is not that of the statistic."""

    def measure(self) -> tuple[int, float]:
        """(cases, largest difference)."""
        differences = [abs(ours - theirs) for ours, theirs in self.values(np.random.default_rng(0))]
        return len(differences), max(differences)


def clustered(rng: np.random.Generator, n_groups: int = 50) -> tuple[Floats, np.ndarray]:
    """Scores in 0..1 that are correlated within groups of 1 to 20, and the groups."""
    groups = np.repeat(np.arange(n_groups), np.minimum(rng.geometric(0.25, n_groups), 20))
    return np.clip(rng.beta(0.8, 0.8, n_groups)[groups] + rng.normal(0, 0.2, len(groups)), 0, 1), groups


def pairs_of(rng: np.random.Generator, words: list[str], most: int = 25) -> Iterator[tuple[str, str]]:
    """A thousand answers with their references, of 1 to `most` of these words."""
    for _ in range(1000):
        left, right = (" ".join(rng.choice(words, rng.integers(1, most + 1))) for _ in range(2))
        yield left, right


# ----------------------------------------------------------------------------------------------------- means and intervals


def clustered_se(rng: np.random.Generator) -> Values:
    for _ in range(200):
        values, groups = clustered(rng)
        fit = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": groups})
        yield cluster_se(Totals.of(values, groups))[0], float(fit.bse[0])


def plain_se(rng: np.random.Generator) -> Values:
    for n in range(2, 202):
        totals = Totals.of(values := rng.random(n), np.arange(n))
        yield from ((float(se(totals)[0]), float(stats.sem(values))) for se in (cluster_se, jackknife_se))


def t_interval(rng: np.random.Generator) -> Values:
    for n in range(2, 202):
        values = rng.normal(0.5, 0.01, n)
        ci95 = statistics.mean_intervals(values, np.arange(n), resamples=0, seed=0)[0].ci95
        assert ci95 is not None
        yield from zip(ci95, stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values)), strict=True)


def bootstrap_quantiles(rng: np.random.Generator) -> Values:
    """In standard errors."""
    for seed in range(10):
        values, groups = clustered(rng)
        totals = Totals.of(values, groups)
        ours = np.quantile(bootstrap_means(totals, resamples=RESAMPLES, seed=seed)[:, 0], [0.025, 0.975])
        theirs = stats.bootstrap(
            (totals.sums[:, 0], totals.counts[:, 0]),
            lambda s, n, axis: s.sum(axis) / n.sum(axis),
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=seed,
        ).confidence_interval
        yield from zip(ours / cluster_se(totals)[0], np.array(theirs) / cluster_se(totals)[0], strict=True)


def wilson(rng: np.random.Generator) -> Values:
    for n in (1, 2, 7, 30, 408, 5000):
        for k in {0, 1, n // 3, n // 2, n - 1, n}:
            by_scipy = stats.binomtest(k, n).proportion_ci(method="wilson")
            for theirs in ((by_scipy.low, by_scipy.high), proportion_confint(k, n, method="wilson")):
                yield from zip(statistics.wilson(k / n, n), theirs, strict=True)


# ------------------------------------------------------------------------------------------------------------ differences


def mcnemar_p(rng: np.random.Generator) -> Values:
    for wins in range(40):
        for losses in range(40):
            found: Any = mcnemar([[5, wins], [losses, 7]], exact=True)
            yield statistics.mcnemar_exact(wins, losses), min(1.0, found.pvalue) if wins + losses else 1.0


def sign_flips(rng: np.random.Generator) -> Values:
    """In standard errors of the simulated p."""
    flips = 5 * RESAMPLES
    for seed in range(50):
        left, right = rng.random(10), rng.random(10)
        exact = stats.permutation_test(
            (left, right), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=2**10
        ).pvalue
        error = math.sqrt(exact * (1 - exact) / flips)
        yield sign_flip_p(Totals.of(left - right, np.arange(10)), flips=flips, seed=seed)[0] / error, exact / error


def max_t(rng: np.random.Generator) -> Values:
    """Against the definition, written out: the share of flips whose largest remaining statistic reaches the one seen."""
    for size in (1, 2, 7, 20):
        totals = Totals.of(rng.normal(0.1, 1, (30, size)), np.arange(30))
        seen, flipped = flipped_statistics(totals, flips=500, seed=0)
        highest, expected = 0.0, np.empty(size)
        order = list(np.argsort(-seen))
        for rank, k in enumerate(order):
            reached = sum(max(row[c] for c in order[rank:]) >= seen[k] - EXACT for row in flipped)
            highest = expected[k] = max(highest, (1 + reached) / 501)
        yield from zip(families.adjust(totals, flips=500, seed=0).p, expected, strict=True)


def equivalence(rng: np.random.Generator) -> Values:
    """1 where the verdict is tied: two one-sided tests at 2.5% each."""
    for n in rng.integers(10, 200, 500):
        left = rng.normal(0.5, 0.1, n)
        right = left + rng.normal(rng.uniform(-0.03, 0.03), 0.03, n)
        d = statistics.paired_differences(left, right, np.arange(n), resamples=0, seed=0)[0]
        tied = statistics.verdict(d.value, d.ci95, 1.0, margin=0.02) == "tied"
        yield float(tied), float(ttost_paired(left, right, -0.02, 0.02)[0] <= 0.025)


def detectable(rng: np.random.Generator) -> Values:
    """As a share of the effect."""
    for n in (30, 100, 400, 4000):
        quantile = float(stats.t.ppf(0.975, n - 1))
        ours = families.detectable(0.02, n, quantile * math.sqrt(n / (n - 1 + quantile**2)))
        theirs = TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8) * 0.02 * math.sqrt(n)
        yield (ours or 0.0) / theirs, 1.0


# --------------------------------------------------------------------------------------------------------------- fidelity


def divergence(rng: np.random.Generator) -> Values:
    for _ in range(50):
        p, q = (special.log_softmax(rng.normal(0, 3, (4, 2048)), axis=-1) for _ in range(2))
        yield from zip(fidelity.kl(p, q), np.asarray(stats.entropy(np.exp(p), np.exp(q), axis=-1)), strict=True)


def top1(rng: np.random.Generator) -> Values:
    for _ in range(50):
        p = special.log_softmax(rng.normal(0, 3, (40, 512)), axis=-1)
        q = special.log_softmax(p + rng.normal(0, 1, p.shape), axis=-1)
        found = fidelity.divergence([p], [q])
        assert found is not None
        yield found.top1_agreement, 1 - spatial.distance.hamming(p.argmax(axis=-1), q.argmax(axis=-1))


def flips(rng: np.random.Generator) -> Values:
    for n in range(1, 101):
        before, after = rng.integers(0, 3, (2, n))
        yield (
            fidelity.flip_rate([str(x) for x in before], [str(x) for x in after]),
            float(spatial.distance.hamming(before, after)),
        )


# ---------------------------------------------------------------------------------------------------------------- metrics


def rouge(kind: str) -> Callable[[np.random.Generator], Values]:
    def values(rng: np.random.Generator) -> Values:
        scorer = RougeScorer([kind])
        for prediction, reference in pairs_of(rng, [*WORDS, "\n"]):
            yield (
                find(kind).score_one(prediction, [reference]) or 0.0,
                scorer.score(reference, prediction)[kind].fmeasure,
            )

    return values


def token_f1(rng: np.random.Generator) -> Values:
    """On words that the normalisation leaves unchanged, where both texts have some."""
    chrf = CHRF(char_order=0, word_order=1, beta=1, eps_smoothing=False)
    kept = [word.lower() for word in WORDS if word != "the"]
    for prediction, reference in pairs_of(rng, kept):
        yield (
            find("token_f1").score_one(prediction, [reference]) or 0.0,
            chrf.sentence_score(prediction, [reference]).score / 100,
        )


def exact_match(rng: np.random.Generator) -> Values:
    for prediction, reference in pairs_of(rng, ["a", "b "], most=4):
        yield (
            find("exact_match").score_one(prediction, [reference]) or 0.0,
            float(np.char.equal(*np.char.strip([prediction, reference]))),
        )


ROWS = [
    Row("standard error of a mean, in groups", "statsmodels OLS, cluster-robust", clustered_se),
    Row("standard errors of a mean, closed form and jackknife, groups of one", "scipy.stats.sem", plain_se),
    Row("t interval of a mean", "scipy.stats.t.interval", t_interval),
    Row(
        "cluster bootstrap, 2.5% and 97.5% quantiles",
        "scipy.stats.bootstrap",
        bootstrap_quantiles,
        0.1,
        "standard errors",
    ),
    Row("Wilson interval", "scipy binomtest, statsmodels proportion_confint", wilson),
    Row("exact McNemar p", "statsmodels mcnemar", mcnemar_p),
    Row("sign-flip p", "scipy.stats.permutation_test, all patterns", sign_flips, 4.0, "standard errors"),
    Row("step-down max-T p", "Westfall and Young's algorithm, written out", max_t),
    Row("verdict tied", "statsmodels ttost_paired at 2.5%", equivalence, 0.0),
    Row("minimum detectable effect", "statsmodels TTestPower.solve_power", detectable, 0.01, "of the effect"),
    Row("KL divergence", "scipy.stats.entropy", divergence),
    Row("top-1 agreement", "scipy.spatial.distance.hamming", top1),
    Row("flip rate", "scipy.spatial.distance.hamming", flips),
    *(Row(f"ROUGE {kind}", "rouge_score", rouge(kind), 0.0) for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum")),
    Row("token F1", "sacrebleu chrF of words alone, beta 1", token_f1),
    Row("exact match", "numpy.char.equal", exact_match, 0.0),
]


def main() -> int:
    """Prints the table; returns 1 if a difference is larger than allowed."""
    print("| statistic | against | cases | largest difference | allowed |\n| --- | --- | ---: | ---: | ---: |")
    failed = 0
    for row in ROWS:
        cases, largest = row.measure()
        failed += largest > row.allowed
        unit = f" {row.unit}" if row.unit else ""
        print(
            f"| {row.statistic} | {row.outside} | {cases} | {largest:.2g}{unit} | {row.allowed:.2g}{unit} |", flush=True
        )
    return int(failed > 0)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
