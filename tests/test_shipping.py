"""Ship, do not ship, or cannot tell: by limits, by the gate's tests, with the number of questions that would decide."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config import Config
from harness.gating import shipping
from harness.records import Alarm, Breakdown, Comparison, Cost, MetricValue, Shipping, VariantResult
from tests.helpers.report_fixture import pair

METRIC = "exact_match_normalized"
SIZES = {"base": 10, "adapter": 12, "merged_16bit": 10, "gguf_q8_0": 5, "gguf_q4_k_m": 3}


def decided(
    rights: Mapping[str, list[int] | np.ndarray], *, size: int = 4, changes: dict | None = None, **ship
) -> Shipping:
    """The decision on variants that were right (1) or wrong (0) on the questions, in groups of `size`."""
    scores = {name: np.asarray(values, dtype=float) for name, values in rights.items()}
    n = len(next(iter(scores.values())))
    groups = [f"g{i // size}" for i in range(n)]
    results = {
        name: VariantResult(
            metrics={METRIC: MetricValue(value=None, ci95=None, n=n, n_unscored=0, signature="s")},
            cost=Cost(
                tokens_per_second=100.0,
                seconds=1,
                load_seconds=1,
                generated_tokens=1,
                peak_memory_bytes=1,
                size_bytes=SIZES.get(name, 0) * 10**9,
            ),
            backend="transformers",
            finish={},
        )
        for name, values in scores.items()
    }
    comparison = Comparison(
        run="r",
        split_id="s",
        n=n,
        n_groups=len(set(groups)),
        variants=results,
        pairs=[],
        primary=METRIC,
        baselines={},
        provenance={},
    )
    config = Config.model_validate({"compare": {"resamples": 300}, "ship": ship})
    return shipping.decide(comparison.model_copy(update=changes or {}), scores, groups, config)


def verdicts(found: Shipping) -> dict[str, str]:
    return {candidate.variant: candidate.verdict for candidate in found.candidates}


WRONG, RIGHT = [0] * 120, [1] * 120
MIXED = [1, 0, 1, 1, 0, 1] * 20
GAINED = {"base": WRONG, "adapter": MIXED, "merged_16bit": MIXED, "gguf_q8_0": MIXED}


def test_the_smallest_file_that_is_as_good_is_shipped():
    found = decided(GAINED | {"gguf_q4_k_m": MIXED})
    assert (found.decision, found.variant, found.title) == ("ship", "gguf_q4_k_m", "Ship: yes, as GGUF Q4_K_M")
    assert "gains 67 points over Base" in found.reason and "scores as Merged 16-bit on every question" in found.reason
    assert found.next_step.startswith("Keep it this good: harness baseline save --run r")


def test_a_file_that_gives_the_same_text_everywhere_has_lost_nothing():
    same = pair(left="gguf_q8_0", right="merged_16bit", metric=METRIC, verdict="identical", ci95=(-0.03, 0.03))
    found = decided(GAINED, changes={"pairs": [same]})
    assert (found.decision, found.variant) == ("ship", "gguf_q8_0")
    assert "gives the same text as Merged 16-bit on all 120 questions" in found.reason
    assert next(c for c in found.candidates if c.variant == "gguf_q8_0").loss_at_most == 0


def test_defaults_are_said_and_limits_that_were_set_are_not_called_so():
    assert "a format may lose 2 points (Adapter, GGUF Q8_0)" in decided(GAINED).limits
    assert "Nothing is set under ship:" in decided(GAINED).limits
    limits = decided(GAINED, least_gain=0.05, max_size_gb=6, min_tokens_per_second=10).limits
    assert (
        limits
        == "Limits: at least 5 points better than the base, a format may lose 2 points (Adapter, GGUF Q8_0), at most 6.00 GB, at least 10 tokens/s."
    )


def test_no_gain_is_not_shipped():
    for answers in (MIXED, WRONG):
        found = decided({"base": MIXED, "adapter": answers, "merged_16bit": answers})
        assert (found.decision, found.variant) == ("do not ship", None)
        assert found.reason.startswith("Merged 16-bit does not gain enough over Base")
        assert found.next_step.startswith("Read the questions")


def test_a_gain_that_is_not_sure_asks_for_a_number_of_questions():
    some = np.array(WRONG)
    some[:40:10] = 1
    found = decided({"base": WRONG, "adapter": some, "merged_16bit": some}, size=1)
    assert found.decision == "cannot tell" and found.title == "Cannot tell yet"
    assert found.further_questions and f"{found.further_questions:,} more questions" in found.next_step


def test_a_format_that_loses_too_much_is_left_and_a_doubtful_one_counted():
    lost, doubtful = np.array(MIXED), np.array(MIXED)
    lost[:60], doubtful[[0, 2]] = 0, 0
    found = decided(GAINED | {"gguf_q4_k_m": lost})
    assert found.variant == "gguf_q8_0" and verdicts(found)["gguf_q4_k_m"] == "fail"
    found = decided(GAINED | {"gguf_q4_k_m": doubtful}, largest_format_loss=0.02)
    assert found.variant == "gguf_q8_0" and verdicts(found)["gguf_q4_k_m"] == "unknown"
    check = next(c for c in found.candidates if c.variant == "gguf_q4_k_m").checks[-1]
    if check.further_questions:
        assert "would show whether GGUF Q4_K_M (3.00 GB) is as good" in found.next_step


def test_an_allowed_loss_says_how_many_questions_would_show_that_there_is_none():
    fewer = np.array(MIXED)
    fewer[0] = 0
    found = decided(GAINED | {"gguf_q4_k_m": fewer}, largest_format_loss=0.2)
    assert found.variant == "gguf_q4_k_m"
    if found.further_questions:
        assert f"less than 2 points would take about {found.further_questions:,} more" in found.next_step
    assert decided(GAINED).further_questions is None


def test_size_and_speed():
    assert verdicts(decided(GAINED, max_size_gb=6)) == {"adapter": "fail", "merged_16bit": "fail", "gguf_q8_0": "pass"}
    found = decided(GAINED, max_size_gb=1)
    assert found.decision == "do not ship" and "10.00 GB" in found.reason and "max_size_gb" in found.next_step
    assert decided(GAINED, min_tokens_per_second=200).decision == "do not ship"


@pytest.mark.parametrize(("interval", "verdict"), [((0.6, 0.9), "pass"), ((0.1, 0.4), "fail"), ((0.3, 0.8), "unknown")])
def test_a_kind_must_surely_reach_its_share(interval, verdict):
    kinds = [
        Breakdown(by="kind", bucket="scenario", variant=v, metric=METRIC, value=sum(interval) / 2, ci95=interval, n=40)
        for v in GAINED
    ]
    found = decided(GAINED, changes={"breakdowns": kinds}, kinds={"scenario": 0.5})
    assert set(verdicts(found).values()) == {verdict}
    assert decided(GAINED, kinds={"scenario": 0.5}).decision == "cannot tell", "no question of that kind was asked"


def test_an_alarm_makes_a_variant_doubtful_and_one_of_the_base_does_not():
    alarms = [Alarm(code="runaway", variant=v, message="m", value=0.3, limit=0.02) for v in ("base", "gguf_q8_0")]
    found = decided(GAINED, changes={"alarms": alarms})
    assert verdicts(found) == {"adapter": "pass", "merged_16bit": "pass", "gguf_q8_0": "unknown"}
    assert found.variant == "merged_16bit"


def test_without_a_base_the_gain_is_unknown_and_without_a_model_all_is():
    found = decided({"adapter": MIXED, "merged_16bit": MIXED})
    assert found.decision == "cannot tell" and "predict.variants" in found.next_step
    assert decided({"base": MIXED}).decision == "cannot tell"


def test_models_from_elsewhere_are_judged_against_the_best_of_them():
    found = decided({"base": WRONG, "mine": RIGHT, "old": MIXED})
    assert (found.reference, found.variant) == ("mine", "mine") and verdicts(found)["old"] == "fail"
    own = decided({"mine": MIXED, "mine.base": WRONG})
    assert (own.base, own.variant) == ("mine.base", "mine")


def test_unscored_questions_are_left_out():
    values = np.array(MIXED, dtype=float)
    values[:6] = np.nan
    assert decided(GAINED | {"gguf_q8_0": values}).variant == "gguf_q8_0"
    assert verdicts(decided(GAINED | {"gguf_q8_0": values * np.nan}))["gguf_q8_0"] != "pass"


@given(st.integers(10, 2000), st.floats(-0.5, 0.5), st.floats(0.001, 0.3), st.floats(-0.3, 0.3))
def test_more_questions_are_asked_the_nearer_the_limit_lies(n, value, half, limit):
    ci95 = (value - half, value + half)
    further = shipping.further_questions(n, value, ci95, limit)
    if further is None:
        assert abs(value - limit) < half / 3
    else:
        assert further >= 1
        nearer = shipping.further_questions(n, value, ci95, (value + limit) / 2)
        assert nearer is None or nearer >= further
        assert further % 10 ** max(0, len(str(further)) - 2) == 0, "two digits that matter"


def test_that_many_questions_decide_four_times_in_five():
    n, true, limit, spread = 100, 0.05, 0.0, 0.4
    further = shipping.further_questions(n, true, (true - 1.96 * spread / n**0.5, true + 1.96 * spread / n**0.5), limit)
    assert further is not None
    draws = np.random.default_rng(0).normal(true, spread, size=(2000, n + further))
    errors = draws.std(axis=1, ddof=1) / draws.shape[1] ** 0.5
    decides = float((draws.mean(axis=1) - 1.96 * errors > limit).mean())
    assert 0.77 < decides < 0.84


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_what_is_shipped_keeps_its_limits(seed, base, tuned):
    rng = np.random.default_rng(seed)
    draw = {"base": rng.random(80) < base, "adapter": rng.random(80) < tuned, "merged_16bit": rng.random(80) < tuned}
    found = decided(draw)
    assert (found.decision == "ship") == ("pass" in verdicts(found).values())
    for candidate in found.candidates:
        if candidate.verdict == "pass":
            assert candidate.gain_ci95 is not None and candidate.gain_ci95[0] >= 0.02 - 1e-9
            assert candidate.allowed_loss is None or (candidate.loss_at_most or 0.0) <= candidate.allowed_loss + 1e-9
