"""The normalisation of answers: hand-made pairs that are equal or different, each with its reason, and properties."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.metrics import find
from harness.metrics.normalize import VERSIONS, fold, normalize, tokens

CASES = json.loads((Path(__file__).parent / "golden" / "metric_cases.json").read_text(encoding="utf-8"))
TEXT = st.text(st.sampled_from("aA ıİßẞ१٣½²-−.,'*_`#+&%()/\n第شـَ"), max_size=30)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["reason"][:40])
def test_equal_and_different_answers(case):
    exact, f1 = (find(name, normalizer=case["style"]) for name in ("exact_match_normalized", "token_f1"))
    for left, right in case["equal"]:
        assert exact.score_one(left, [right]) == exact.score_one(right, [left]) == 1, (left, right)
        assert f1.score_one(left, [right]) == 1, (left, right)
    for left, right in case["different"]:
        assert exact.score_one(left, [right]) == exact.score_one(right, [left]) == 0, (left, right)


def test_there_are_two_hundred_cases_and_each_style_has_some():
    assert sum(len(case["equal"]) + len(case["different"]) for case in CASES) >= 200
    assert {case["style"] for case in CASES} == set(VERSIONS)


def test_the_normaliser_is_part_of_the_signature():
    for name in ("exact_match_normalized", "token_f1"):
        assert len({find(name, normalizer=style).signature for style in VERSIONS}) == 3
        assert "norm:plain-1" in find(name).signature


@given(TEXT, st.sampled_from(sorted(VERSIONS)))
def test_every_text_has_tokens_and_equals_itself_in_other_white_space(text, style):
    assert tokens(text, style) or style == "code" or not fold(text).strip()
    assert normalize(f"  {text}  ", style) == normalize(text, style)


@given(TEXT)
def test_folding_twice_changes_nothing_more(text):
    assert fold(fold(text)) == fold(text)
