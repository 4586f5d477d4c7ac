import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.metrics import find
from harness.metrics.citations import Citation, citations

GOLDEN = json.loads((Path(__file__).parent / "golden" / "citations.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("text, expected", GOLDEN["cases"])
def test_golden_citations(text, expected):
    assert sorted(" ".join(filter(None, c)) for c in citations(text)) == sorted(expected)


@pytest.mark.parametrize("prediction, reference, expected", GOLDEN["scores"])
def test_golden_scores(prediction, reference, expected):
    assert find("citation_f1").score_one(prediction, [reference]) == (
        None if expected is None else pytest.approx(expected)
    )


def test_what_is_scored_depends_on_the_reference_alone():
    score = find("citation_f1").score_one
    for prediction in ("", "Article 14", "Part III", "नहीं"):
        assert score(prediction, ["The President"]) is None
        assert score(prediction, ["The President", "Article 53"]) is not None


@pytest.mark.parametrize("answer", ["President", "the president.", "Parliament"])
def test_an_answer_equal_to_any_reference_is_right(answer):
    assert find("citation_f1").score_one(answer, ["President", "Parliament", "Article 5"]) == 1


@given(st.integers(1, 395), st.sampled_from(["", "A", "ZA"]), st.integers(1, 9), st.sampled_from("abcdeg"))
def test_every_way_to_write_a_clause_names_the_same(article, suffix, clause, letter):
    label = f"{article}{suffix}"
    named = {
        Citation("article", label),
        Citation("clause", f"{label}({clause})"),
        Citation("clause", f"{label}({clause})({letter})"),
    }
    for text in (
        f"Article {label}({clause})({letter})",
        f"under article {label} ({clause}) ({letter}) of the Constitution",
        f"sub-clause ({letter}) of clause ({clause}) of article {label}",
        f"Article {label}, clause ({clause}), sub-clause ({letter})",
    ):
        assert citations(text) == named


@given(st.lists(st.integers(1, 395), min_size=2, max_size=6))
def test_lists_of_articles(numbers):
    text = "Articles " + ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
    assert citations(text) == {Citation("article", str(n)) for n in numbers}


PIECES = "Article,Articles,Section,s.,IPC,Act,Amendment,forty,धारा,clause,clauses,sub-clause,Part,Schedule,ſecond,Second,19,21-A,(1),(a),(ii),to,and,of,-,IV,२१,अनुच्छेद,खंड,İ,ı".split(
    ","
)


@given(st.lists(st.sampled_from([*PIECES, ","]), max_size=12))
def test_any_text_is_read_and_gives_clean_labels(pieces):
    for citation in citations(" ".join(pieces)):
        assert citation.kind in ("article", "clause", "part", "schedule", "section", "amendment")
        assert citation.label and not any(c in " ,-:;" for c in citation.label)


@pytest.mark.parametrize(
    "text",
    [
        "Articles " + "1, " * 5000,
        "Article 1" + " " * 20_000 + "x",
        "clauses (1)" * 5000,
        "first, " * 5000,
        "(" * 20_000,
        "Section 1 of the " + "Indian " * 5000,
        "forty " * 5000 + "amendment",
        "Article " + "forty " * 5000,
    ],
)
def test_long_texts_take_no_time(text):
    began = time.perf_counter()
    citations(text)
    assert time.perf_counter() - began < 5
