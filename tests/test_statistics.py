"""Formulas against statsmodels and scipy; coverage, size and power by simulation. Simulations are seeded: the outcome is deterministic."""

import math
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from harness.analysis import families, resampling, statistics
from harness.analysis.resampling import Totals, bootstrap_means, cluster_se, jackknife_se, sign_flip_p

DATASETS = 1000
RESAMPLES = 500


def make(rng, n_groups=50, mean_size=4):
    """Scores in 0..1 that are correlated within groups of unequal size."""
    groups = np.repeat(np.arange(n_groups), np.minimum(rng.geometric(1 / mean_size, n_groups), 20))
    level = rng.beta(0.8, 0.8, n_groups)[groups]
    return np.clip(level + rng.normal(0, 0.2, len(groups)), 0, 1), groups


# -------------------------------------------------------------------------------------------- against other implementations


def test_cluster_se_is_that_of_statsmodels():
    rng = np.random.default_rng(0)
    for _ in range(20):
        values, groups = make(rng)
        fit = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": groups})
        totals = Totals.of(values, groups)
        assert totals.mean[0] == pytest.approx(fit.params[0], rel=1e-9)
        assert cluster_se(totals)[0] == pytest.approx(fit.bse[0], rel=1e-9)


def test_with_groups_of_one_the_se_is_that_of_a_mean():
    values = np.random.default_rng(1).random(50)
    totals = Totals.of(values, np.arange(50))
    assert cluster_se(totals)[0] == pytest.approx(stats.sem(values), rel=1e-9)
    # The jackknife of a mean is its standard error (Efron and Tibshirani 1993, equation 11.5).
    assert jackknife_se(totals)[0] == pytest.approx(stats.sem(values), rel=1e-9)


@given(st.integers(0, 400), st.integers(1, 400))
def test_wilson_is_that_of_scipy_and_statsmodels(successes, n):
    successes = min(successes, n)
    low, high = statistics.wilson(successes / n, n)
    exact = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert (low, high) == pytest.approx(proportion_confint(successes, n, method="wilson"), abs=1e-9)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_that_of_statsmodels(wins, losses):
    expected = mcnemar([[5, wins], [losses, 7]], exact=True).pvalue if wins + losses else 1.0
    assert statistics.mcnemar_exact(wins, losses) == pytest.approx(min(1, expected), abs=1e-9)


def test_step_down_max_t_of_one_test_is_its_sign_flip_p():
    values, groups = make(np.random.default_rng(11))
    totals = Totals.of(values - 0.45, groups)
    assert families.adjust(totals, flips=2000, seed=5).p[0] == sign_flip_p(totals, flips=2000, seed=5)[0]


def test_step_down_max_t_is_that_of_an_explicit_loop():
    """Westfall and Young 1993, algorithm 2.8, written out."""
    rng = np.random.default_rng(12)
    totals = Totals.of(rng.normal(0.2, 1, (60, 4)) * [1, 1, 0.5, 0] + [0.3, 0, 0, 0], np.repeat(np.arange(20), 3))
    seen, flipped = resampling.flipped_statistics(totals, flips=500, seed=1)
    remaining, expected, highest = list(range(4)), {}, 0.0
    for k in sorted(remaining, key=lambda k: -seen[k]):
        reached = sum(max(row[c] for c in remaining) >= seen[k] - 1e-9 for row in flipped)
        highest = max(highest, (1 + reached) / 501)
        expected[k] = highest
        remaining.remove(k)
    found = families.adjust(totals, flips=500, seed=1).p
    assert found[:3] == pytest.approx([expected[k] for k in range(3)])
    assert found[3] == 1, "all differences are 0"


def test_copies_of_a_test_cost_nothing_and_few_groups_can_show_a_difference():
    rng = np.random.default_rng(13)
    column = rng.normal(0.6, 0.3, 12)
    groups = np.arange(12)
    alone = families.adjust(Totals.of(column, groups), flips=5000, seed=0).p[0]
    copies = families.adjust(Totals.of(np.column_stack([column] * 120), groups), flips=5000, seed=0).p
    assert copies == pytest.approx(alone)
    # Six groups and 120 tests, all far from 0: Holm's p would be 120 x 2^-5, above 1.
    values = rng.normal(0.6, 0.05, (6, 120))
    assert families.adjust(Totals.of(values, np.arange(6)), flips=5000, seed=0).p.max() < 0.05


def test_the_sign_flip_test_is_scipys_permutation_test():
    rng = np.random.default_rng(2)
    left, right = rng.random(10), rng.random(10)
    exact = stats.permutation_test(
        (left, right),
        lambda a, b: np.mean(a - b),
        permutation_type="samples",
        n_resamples=np.inf,  # pyright: ignore[reportArgumentType] SciPy documents it: all permutations
    ).pvalue
    found = sign_flip_p(Totals.of(left - right, np.arange(10)), flips=200_000, seed=0)[0]
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 200_000))


def test_a_p_value_is_never_0():
    assert sign_flip_p(Totals.of(np.ones(100), np.arange(100)), flips=99, seed=0)[0] == 1 / 100


def test_minimum_detectable_effect_of_one_test_against_statsmodels_power():
    from statsmodels.stats.power import TTestPower

    se, n = 0.02, 400
    critical = (
        math.sqrt(n / (n - 1 + (t := float(stats.t.ppf(0.975, n - 1))) ** 2)) * t
    )  # the flipped statistic at that t
    mde = families.detectable(se, n, critical)
    assert mde is not None
    # A paired t test of n differences of standard deviation se sqrt(n).
    power = TTestPower().power(effect_size=mde / (se * math.sqrt(n)), nobs=n, alpha=0.05)
    assert power == pytest.approx(0.8, abs=0.003)
    assert families.detectable(0.0, n, critical) is None
    assert families.detectable(se, 4, 2.0) is None, "no four groups reach this"


# ------------------------------------------------------------------------------------------------------------- bootstrap


def test_the_bootstrap_se_is_the_closed_form_whatever_the_number_of_resamples():
    values, groups = make(np.random.default_rng(3), n_groups=60)
    totals = Totals.of(values, groups)
    expected = cluster_se(totals)[0] * math.sqrt(59 / 60)
    for resamples in (1000, 4000, 20_000):
        found = bootstrap_means(totals, resamples=resamples, seed=0)[:, 0].std(ddof=1)
        # Monte Carlo error of a standard deviation is 1/sqrt(2 B); the ratio's own nonlinearity is below 2% here.
        assert found == pytest.approx(expected, rel=4 / math.sqrt(2 * resamples) + 0.02)


def test_the_bootstrap_draws_whole_groups_as_an_explicit_loop_does():
    values, groups = make(np.random.default_rng(4), n_groups=12)
    totals = Totals.of(values, groups)
    drawn = np.random.default_rng(7).integers(0, 12, size=(50, 12), dtype=np.int64)
    expected = [np.concatenate([values[groups == g] for g in row]).mean() for row in drawn]
    assert bootstrap_means(totals, resamples=50, seed=7)[:, 0] == pytest.approx(expected, rel=1e-12)


def test_chunks_do_not_change_a_result(monkeypatch):
    values, groups = make(np.random.default_rng(5))
    totals = Totals.of(values, groups)
    whole = bootstrap_means(totals, resamples=500, seed=1), sign_flip_p(totals, flips=500, seed=1)
    monkeypatch.setattr(resampling, "CHUNK", 1000)
    assert bootstrap_means(totals, resamples=500, seed=1) == pytest.approx(whole[0], rel=1e-12)
    assert sign_flip_p(totals, flips=500, seed=1) == pytest.approx(whole[1])


def test_unscored_questions_count_in_neither_sum_nor_n():
    values, groups = make(np.random.default_rng(6))
    holes = values.copy()
    holes[::3] = np.nan
    whole = statistics.mean_intervals(np.column_stack([values, holes]), groups, resamples=300, seed=0)
    assert whole[1].n == np.count_nonzero(~np.isnan(holes))
    assert whole[1].value == pytest.approx(np.nanmean(holes))
    alone = Totals.of(values[~np.isnan(holes)], groups[~np.isnan(holes)])
    assert whole[1].se == pytest.approx(cluster_se(alone)[0])


def test_nothing_scored_has_no_number():
    estimate = statistics.mean_intervals(np.full(5, np.nan), list("aabbc"), resamples=100, seed=0)[0]
    assert (estimate.value, estimate.ci95, estimate.n) == (None, None, 0)
    difference = statistics.paired_differences(np.full(5, np.nan), np.ones(5), list("aabbc"), resamples=100, seed=0)[0]
    assert (difference.value, difference.p, difference.mde) == (None, None, None)


def test_one_group_has_a_mean_and_no_interval():
    estimate = statistics.mean_intervals([0.0, 1.0], ["a", "a"], resamples=100, seed=0)[0]
    assert (estimate.value, estimate.ci95) == (0.5, None)


def test_the_same_seed_gives_the_same_numbers():
    values, groups = make(np.random.default_rng(8))
    first = statistics.mean_intervals(values, groups, resamples=200, seed=3)
    assert first == statistics.mean_intervals(values, groups, resamples=200, seed=3)
    assert first != statistics.mean_intervals(values, groups, resamples=200, seed=4)


# ------------------------------------------------------------------------------------------------------------------ edges


def test_a_rate_of_0_or_1_has_an_interval():
    groups = np.repeat(np.arange(102), 4)
    for value in (0.0, 1.0):
        estimate = statistics.mean_intervals(np.full(408, value), groups, resamples=200, seed=0)[0]
        assert estimate.ci95 is not None
        assert estimate.ci95[1] - estimate.ci95[0] > 0.01
        assert value in estimate.ci95
        # Four questions a group count for one: wider than of 408, at least as wide as of 102.
        assert estimate.ci95[1] - estimate.ci95[0] >= np.diff(statistics.wilson(value, 102))[0]
        assert "effective n 102.0" in estimate.method


@given(st.integers(2, 30), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_intervals_hold_the_mean_and_stay_in_bounds(n_groups, seed):
    rng = np.random.default_rng(seed)
    values, groups = make(rng, n_groups)
    values = np.column_stack([values, values > 0.9])
    for e in statistics.mean_intervals(values, groups, resamples=100, seed=seed):
        assert e.ci95 is not None and e.value is not None
        assert 0 <= e.ci95[0] <= e.value + 1e-12 and e.value - 1e-12 <= e.ci95[1] <= 1


def test_a_against_a_has_p_exactly_1_and_is_tied_only_if_there_are_enough_groups():
    values, groups = make(np.random.default_rng(9))
    d = statistics.paired_differences(values, values, groups, resamples=1000, seed=0)[0]
    assert (d.value, d.p, d.p_adjusted, d.mde) == (0, 1, 1, None)
    assert (d.wins, d.losses, d.ties) == (0, 0, len(values))
    assert d.ci95 is not None and d.ci95[0] == -d.ci95[1] < -0.02
    assert statistics.verdict(d.value, d.ci95, d.p_adjusted, margin=0.02) == "undecided"
    assert statistics.verdict(d.value, d.ci95, d.p_adjusted, margin=0.02, identical=True) == "identical"
    many = statistics.paired_differences(np.ones(400), np.ones(400), np.arange(400), resamples=100, seed=0)[0]
    assert statistics.verdict(many.value, many.ci95, many.p_adjusted, margin=0.02) == "tied"


def test_two_questions_show_no_tie():
    d = statistics.paired_differences([1.0, 0.0], [1.0, 0.0], ["a", "b"], resamples=100, seed=0)[0]
    assert statistics.verdict(d.value, d.ci95, d.p_adjusted, margin=0.02) == "undecided"


@given(st.integers(2, 80), st.integers(1, 9), st.integers(0, 50))
@example(n_groups=2, mean_size=8, seed=0)
@settings(max_examples=40, deadline=None)
def test_one_right_answer_more_never_lowers_the_upper_end(n_groups, mean_size, seed):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), rng.integers(1, mean_size + 1, n_groups))
    none, one = np.zeros(len(groups)), np.zeros(len(groups))
    one[rng.integers(len(groups))] = 1
    below, above = (statistics.mean_intervals(v, groups, resamples=100, seed=0)[0].ci95 for v in (none, one))
    assert below and above and above[1] >= below[1] - 1e-12


def test_satterthwaites_degrees_of_freedom():
    equal = resampling.satterthwaite_df(Totals.of(np.zeros(40), np.repeat(np.arange(8), 5)))[0]
    assert equal == pytest.approx(7)
    one_large = resampling.satterthwaite_df(Totals.of(np.zeros(40), np.repeat(np.arange(8), [26, *[2] * 7])))[0]
    assert one_large < 2
    assert np.isnan(resampling.satterthwaite_df(Totals.of(np.zeros(4), np.zeros(4)))[0])


def test_swapping_the_sides_mirrors_the_result():
    rng = np.random.default_rng(10)
    left, groups = make(rng)
    right = np.clip(left + rng.normal(-0.05, 0.2, len(left)), 0, 1)
    a = statistics.paired_differences(left, right, groups, resamples=500, seed=0)[0]
    b = statistics.paired_differences(right, left, groups, resamples=500, seed=0)[0]
    assert b.value is not None and b.ci95 is not None
    assert a.value == pytest.approx(-b.value)
    assert a.ci95 == pytest.approx((-b.ci95[1], -b.ci95[0]))
    assert (a.p, a.wins, a.losses) == (b.p, b.losses, b.wins)


@pytest.mark.parametrize(
    "delta, ci95, p_adjusted, expected",
    [
        (0.10, (0.05, 0.15), 0.001, "better"),
        (-0.10, (-0.15, -0.05), 0.001, "worse"),
        (0.00, (-0.01, 0.01), 1.0, "tied"),
        (0.01, (0.005, 0.015), 0.001, "tied"),  # real, and too small to matter
        (0.00, (-0.02, 0.02), 1.0, "tied"),  # on the margin
        (0.00, (-0.021, 0.02), 1.0, "undecided"),
        (0.10, (0.05, 0.15), 0.06, "undecided"),  # not after correction
        (0.10, (-0.01, 0.21), 0.01, "undecided"),  # test and interval disagree
        (None, None, None, "undecided"),
    ],
)
def test_verdicts(delta, ci95, p_adjusted, expected):
    assert statistics.verdict(delta, ci95, p_adjusted, margin=0.02) == expected


# ------------------------------------------------------------------------------------------------------------- simulation


def rates(rng, sizes, p, correlation):
    """0/1 answers: the rate of a group is Beta with mean p and intraclass correlation `correlation`."""
    concentration = (1 - correlation) / correlation
    rate = np.repeat(rng.beta(p * concentration, (1 - p) * concentration, len(sizes)), sizes)
    return (rng.random(len(rate)) < rate).astype(float)


def group_sizes(rng, kind):
    n_groups = int(rng.integers(40, 61))
    return np.full(n_groups, 5) if kind == "equal" else np.minimum(rng.geometric(0.25, n_groups), 20)


def covers(ci95, truth):
    return ci95[0] <= truth <= ci95[1]


@pytest.mark.parametrize("kind", ["equal", "unequal"])
@pytest.mark.parametrize("p, correlation", [(0.03, 0.2), (0.2, 0.4), (0.6, 0.5), (0.9, 0.3)])
def test_intervals_of_rates_cover(kind, p, correlation):
    rng = np.random.default_rng(20)
    hits = 0
    for seed in range(DATASETS):
        sizes = group_sizes(rng, kind)
        values, groups = rates(rng, sizes, p, correlation), np.repeat(np.arange(len(sizes)), sizes)
        hits += covers(statistics.mean_intervals(values, groups, resamples=RESAMPLES, seed=seed)[0].ci95, p)
    # Near 0 and 1 Wilson's interval on the cautious effective size covers more.
    assert 0.93 <= hits / DATASETS <= (0.99 if p < 0.1 or p >= 0.9 else 0.975)


@pytest.mark.parametrize(
    "p, correlation, n_groups", [(0.03, 0.3, 52), (0.03, 0.6, 52), (0.03, 0.6, 150), (0.01, 0.6, 150)]
)
def test_intervals_of_rare_outcomes_cover(p, correlation, n_groups):
    """85 to 92% before the design effect was shrunken towards its worst case."""
    rng = np.random.default_rng(25)
    hits = 0
    for seed in range(400):
        sizes = np.minimum(rng.geometric(1 / 7, n_groups), 50)
        values, groups = rates(rng, sizes, p, correlation), np.repeat(np.arange(n_groups), sizes)
        hits += covers(statistics.mean_intervals(values, groups, resamples=100, seed=seed)[0].ci95, p)
    assert hits / 400 >= 0.93


@pytest.mark.parametrize("n_groups", [5, 8])
def test_intervals_of_few_unequal_groups_cover(n_groups):
    rng = np.random.default_rng(26)
    hits = 0
    for seed in range(400):
        sizes = np.minimum(rng.geometric(0.15, n_groups), 50)
        values, groups = rates(rng, sizes, 0.5, 0.3), np.repeat(np.arange(n_groups), sizes)
        hits += covers(statistics.mean_intervals(values, groups, resamples=0, seed=seed)[0].ci95, 0.5)
    assert hits / 400 >= 0.93


@pytest.mark.parametrize("n_groups", [5, 10, 20, 52, 150])
def test_a_loss_in_whole_topics_is_seldom_called_tied(n_groups):
    """A true loss of 3 points, margin 2: called tied 86 to 6% of the time while an interval of [0, 0] counted."""
    rng = np.random.default_rng(27)
    tied = 0
    for seed in range(200):
        sizes = np.minimum(rng.geometric(1 / 7, n_groups), 50)
        groups = np.repeat(np.arange(n_groups), sizes)
        before = rng.random(len(groups)) < 0.6
        after = before & ~np.repeat(rng.random(n_groups) < 0.05, sizes)
        d = statistics.paired_differences(after.astype(float), before.astype(float), groups, resamples=100, seed=seed)[
            0
        ]
        tied += statistics.verdict(d.value, d.ci95, d.p_adjusted, margin=0.02) == "tied"
    assert tied / 200 <= 0.05


@pytest.mark.parametrize("kind", ["equal", "unequal"])
def test_intervals_of_graded_scores_cover(kind):
    rng = np.random.default_rng(21)
    hits = 0
    for seed in range(DATASETS):
        sizes = group_sizes(rng, kind)
        level = np.repeat(rng.beta(0.8, 0.8, len(sizes)), sizes)
        values, groups = rng.beta(2 * level + 1e-3, 2 * (1 - level) + 1e-3), np.repeat(np.arange(len(sizes)), sizes)
        hits += covers(statistics.mean_intervals(values, groups, resamples=RESAMPLES, seed=seed)[0].ci95, 0.5)
    assert 0.93 <= hits / DATASETS <= 0.97


def pair_of_variants(rng, kind, gain):
    """Two variants on questions of one difficulty a group; the left is truly better by `gain`, in whole groups."""
    sizes = group_sizes(rng, kind)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    difficulty = rng.uniform(0.1, 0.5, len(sizes))
    gains = gain + rng.uniform(-0.1, 0.1, len(sizes))
    left, right = (rng.random(len(groups)) < np.repeat(rate, sizes) for rate in (difficulty + gains, difficulty))
    return left.astype(float), right.astype(float), groups


@pytest.mark.parametrize("kind", ["equal", "unequal"])
@pytest.mark.parametrize("gain", [0.0, 0.2])
def test_intervals_of_differences_cover(kind, gain):
    rng = np.random.default_rng(22)
    hits = 0
    for seed in range(DATASETS):
        left, right, groups = pair_of_variants(rng, kind, gain)
        hits += covers(statistics.paired_differences(left, right, groups, resamples=RESAMPLES, seed=seed)[0].ci95, gain)
    assert 0.93 <= hits / DATASETS <= 0.97


@pytest.mark.parametrize("kind", ["equal", "unequal"])
def test_false_alarms_are_at_most_5_percent(kind):
    """Truly equal, answers of a group correlated: at most one in twenty A/A comparisons may be called a difference."""
    rng = np.random.default_rng(23)
    low_p = alarms = question_wise = 0
    for seed in range(DATASETS):
        sizes = group_sizes(rng, kind)
        groups = np.repeat(np.arange(len(sizes)), sizes)
        # Whole groups flip together, which a test that takes questions for independent mistakes for evidence.
        left, right = (rates(rng, sizes, 0.5, 0.6) for _ in range(2))
        d = statistics.paired_differences(left, right, groups, resamples=RESAMPLES, seed=seed)[0]
        assert d.p is not None
        low_p += d.p <= 0.05
        alarms += statistics.verdict(d.value, d.ci95, d.p_adjusted, margin=0.02) in ("better", "worse")
        question_wise += statistics.mcnemar_exact(d.wins, d.losses) <= 0.05
    # The p-value's own rate is a binomial share around 5%; the verdict asks for the interval as well.
    assert low_p / DATASETS <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / DATASETS)
    assert alarms / DATASETS <= 0.05
    assert question_wise / DATASETS > 0.10, "the simulation must be one in which clustering matters"


def family_of_variants(rng, n_groups, loss, copies=7):
    """Seven formats of one model and the model: six answer the same but for 2% of the groups, one loses `loss` of the questions, spread over groups."""
    sizes = np.minimum(rng.geometric(0.25, n_groups), 20)
    groups = np.repeat(np.arange(n_groups), sizes)
    before = (rng.random(len(groups)) < 0.6).astype(float)
    columns = []
    for k in range(copies):
        changed = np.repeat(rng.random(n_groups) < 0.4, sizes)
        after = np.where(changed, (rng.random(len(groups)) < 0.6 - (loss / 0.4 if k == 0 else 0)).astype(float), before)
        columns.append(after)
    return np.column_stack(columns), np.column_stack([before] * copies), groups


def test_the_family_keeps_its_error_rate():
    rng = np.random.default_rng(28)
    alarms = 0
    for seed in range(300):
        left, right, groups = family_of_variants(rng, 60, 0.0)
        found = statistics.paired_differences(left, right, groups, resamples=300, seed=seed, family=[0] * 7)
        alarms += any(statistics.verdict(d.value, d.ci95, d.p_adjusted, 0.02) in ("better", "worse") for d in found)
    assert alarms / 300 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 300)


def test_a_loss_of_the_detectable_size_is_found_four_times_in_five():
    """The detectable effect is that of the verdict, including the correction for the family."""
    rng = np.random.default_rng(29)
    mdes = []
    for seed in range(60):
        left, right, groups = family_of_variants(rng, 60, 0.1)
        d = statistics.paired_differences(left, right, groups, resamples=300, seed=seed, family=[0] * 7)[0]
        mdes.append(d.mde)
    loss = float(np.mean(mdes))
    found = 0
    for seed in range(400):
        left, right, groups = family_of_variants(rng, 60, loss)
        d = statistics.paired_differences(left, right, groups, resamples=300, seed=seed, family=[0] * 7)[0]
        found += statistics.verdict(d.value, d.ci95, d.p_adjusted, 0.02) == "worse"
    assert found / 400 == pytest.approx(0.8, abs=0.04)


# ------------------------------------------------------------------------------------------------------------------- docs


def test_the_table_of_the_docs_is_what_the_benchmark_prints(capsys):
    from benchmarks import statistics_table

    assert statistics_table.main() == 0, "a difference is larger than allowed"
    printed = capsys.readouterr().out.splitlines()
    page = (Path(__file__).parents[1] / "docs" / "statistics.md").read_text(encoding="utf-8").splitlines()
    start = page.index(printed[0])
    # The differences themselves depend on the last bits of a machine's arithmetic.
    documented, found = (
        [line.split(" | ")[:3] for line in lines] for lines in (page[start : start + len(printed)], printed)
    )
    assert documented == found


def test_pooled_groups_keep_totals_and_their_standard_error() -> None:
    """More than `MOST_GROUPS` groups are pooled before they are drawn: the sums stay, and the spread within 5%."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(9_001), rng.integers(1, 4, 9_001))
    topic = rng.random(9_001)[groups]
    totals = resampling.Totals.of((rng.random(len(groups)) < topic).astype(float), groups)
    pooled = totals.pooled()
    assert len(pooled.sums) == resampling.MOST_GROUPS
    assert np.allclose(pooled.sums.sum(axis=0), totals.sums.sum(axis=0))
    assert pooled.counts.sum() == totals.counts.sum()
    drawn = resampling.bootstrap_means(totals, resamples=2_000, seed=1)
    assert drawn.std() == pytest.approx(resampling.cluster_se(totals)[0], rel=0.05)
    few = resampling.Totals(totals.sums[:4_000], totals.counts[:4_000])
    assert few.pooled() is few
