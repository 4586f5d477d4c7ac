"""How often the gate errs, by simulation (benchmarks/gate_power.py), seeded: the outcome is deterministic."""

import numpy as np
import pytest

from benchmarks.gate_power import MEASURED_SPREAD, share_failed, share_of_drifts_stopped
from harness.analysis.resampling import Totals
from harness.gating.noninferiority import family_p


def test_family_p_is_that_of_one_column_alone_and_no_smaller_with_more():
    rng = np.random.default_rng(0)
    one = rng.normal(0.1, 1, (60, 1))
    alone = family_p(Totals.of(one, np.arange(60)), flips=4000, seed=1)[0]
    same = family_p(Totals.of(np.hstack([one] * 7), np.arange(60)), flips=4000, seed=1)
    assert same == pytest.approx(alone), "seven formats with the same answers count as one"
    unlike = family_p(Totals.of(np.hstack([one, rng.normal(0, 1, (60, 6))]), np.arange(60)), flips=4000, seed=1)[0]
    assert unlike > alone
    assert family_p(Totals.of(np.zeros((9, 2)), np.arange(9)), flips=100, seed=0).tolist() == [1, 1]


def test_harmless_changes_fail_at_most_one_time_in_twenty():
    assert share_failed(150, 0.0) <= 0.05


def test_a_loss_of_ten_points_is_caught_nine_times_in_ten():
    assert share_failed(60, 0.10) >= 0.90


@pytest.mark.slow
def test_both_hold_with_the_variance_between_seeds_that_was_measured():
    assert share_failed(60, 0.0, seed_spread=MEASURED_SPREAD, trainings=5) <= 0.05
    assert share_failed(40, 0.10, seed_spread=MEASURED_SPREAD, trainings=5) >= 0.90


def test_a_kind_of_twenty_questions_that_is_lost_fails():
    assert share_failed(40, 0.0, lost_kind=4) >= 0.90


def test_most_drifts_are_stopped_by_the_best_means():
    with_memory, without = (share_of_drifts_stopped(40, remembered=known) for known in (True, False))
    assert with_memory >= 0.95 > without
