"""Answers to "name the ..." as sets of items."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.metrics import find
from harness.metrics.lists import items

NAMES = st.lists(
    st.sampled_from("Goa,Sikkim,Tamil Nadu,गोवा,東京,Law,Order,1,000".split(",")), min_size=2, max_size=6, unique=True
)


@pytest.mark.parametrize(
    "prediction, reference, expected",
    [
        ("1. Assam\n2. Goa\n3. Sikkim", "Goa, Sikkim and Assam", 1),
        ("They are: Goa; Sikkim.", "Sikkim & Goa", 1),
        ("असम, गोवा तथा सिक्किम", "गोवा, सिक्किम और असम", 1),
        ("大阪、東京", "東京、大阪", 1),
        ("2000 and 1000", "1,000, 2,000", 1),
        ("Ministry of Finance, Ministry of Law and Justice", "Ministry of Law and Justice, Ministry of Finance", 1),
        ("Goa", "Goa, Sikkim and Assam", 0.5),
        ("Goa, Goa, Goa", "Goa and Sikkim", 2 / 3),
        ("Goa, Sikkim, Assam, Kerala", "Goa and Sikkim", 2 / 3),
        ("North Goa", "Goa and Sikkim", 0),
        ("", "Goa and Sikkim", 0),
        ("Goa", "Goa", None),
        ("anything", "The House may, by a resolution of not less than two thirds of those present, remove him.", None),
    ],
)
def test_the_items_of_a_list_count_in_any_order(prediction, reference, expected):
    found = find("list_f1").score_one(prediction, [reference])
    assert found == (None if expected is None else pytest.approx(expected))


@given(NAMES, st.randoms(use_true_random=False), st.sampled_from([", ", "; ", "\n", " and ", "\n- ", " & "]))
def test_order_and_separator_do_not_matter(names, random, separator):
    shuffled = random.sample(names, len(names))
    assert items(separator.join(shuffled)) == items(", ".join(names))


@given(st.text(max_size=40), st.text(max_size=40))
def test_scores_are_shares_and_symmetric(left, right):
    metric = find("list_f1")
    forth, back = metric.score_one(left, [right]), metric.score_one(right, [left])
    assert forth is None or 0 <= forth <= 1
    if forth is not None and back is not None:
        assert forth == back
