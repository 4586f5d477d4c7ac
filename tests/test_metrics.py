import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from harness.errors import ConfigError
from harness.metrics import METRICS as KNOWN
from harness.metrics import as_evaluate, find
from harness.metrics.normalize import normalize
from harness.metrics.text import legal_tokens, words
from harness.registry import default_metrics
from tests.helpers.golden_metrics import LEGAL, ROUGE, ROUGE_CLASSES

METRICS = default_metrics("legal")
GOLDEN = Path(__file__).parent / "golden"
DEVANAGARI = json.loads((GOLDEN / "devanagari.json").read_text(encoding="utf-8"))["cases"]
ANSWERS = st.text(st.sampled_from("the a an 21A (1) क्षि é राष्ट्र 人 , . ' “ ” - shall not\n"), max_size=30)
ASCII = st.text(st.characters(max_codepoint=127), max_size=60)


# ------------------------------------------------------------------------------------------------------ normalisation


@pytest.mark.parametrize("left, right", LEGAL["must_differ"])
def test_legal_text_that_must_differ(left, right):
    assert normalize(left, "legal") != normalize(right, "legal")
    assert find("exact_match_normalized", normalizer="legal").score_one(left, [right]) == 0
    f1 = find("token_f1", normalizer="legal").score_one(left, [right])
    assert f1 is not None and f1 < 1


@pytest.mark.parametrize("left, right", LEGAL["must_equal"])
def test_legal_text_that_must_be_equal(left, right):
    assert normalize(left, "legal") == normalize(right, "legal")
    assert find("exact_match_normalized", normalizer="legal").score_one(left, [right]) == 1
    assert find("token_f1", normalizer="legal").score_one(left, [right]) == 1


@given(ANSWERS)
def test_normalisation_ignores_case_and_outer_space(text):
    assert normalize(f"  {text.upper()} \n", "legal") == normalize(text, "legal")


def test_normalisation_never_leaves_nothing_of_a_word():
    for word in ("A", "an", "THE", "(a)", "१", "ॐ"):
        assert legal_tokens(word), word


# ------------------------------------------------------------------------------------------------------------ token F1


def test_token_f1_counts_each_token_as_often_as_it_occurs():
    f1 = find("token_f1").score_one
    assert f1("right right right", ["right"]) == 0.5  # precision 1/3, recall 1; as sets it would be 1
    assert f1("right", ["right right right"]) == 0.5
    # SQuAD's own f1_score on the same tokens: precision 2/3, recall 2/4.
    assert f1("president of india", ["prime minister of india"]) == pytest.approx(4 / 7)
    assert f1("", ["right"]) == 0
    assert f1("", [""]) == 1


def test_exact_match_is_raw_but_for_the_outer_space():
    exact = find("exact_match").score_one
    assert exact(" The President\n", ["The President"]) == 1
    assert exact("the President", ["The President"]) == 0
    assert exact("The President.", ["The President"]) == 0


# --------------------------------------------------------------------------------------------------------------- ROUGE


@pytest.mark.parametrize("reference, prediction, kind, stemmer, expected", ROUGE)
def test_rouge_golden(reference, prediction, kind, stemmer, expected):
    assert ROUGE_CLASSES[kind](stemmer=stemmer).score_one(prediction, [reference]) == pytest.approx(expected, abs=1e-12)


@given(ASCII, ASCII, st.booleans())
def test_rouge_is_the_packages_own_on_ascii(prediction, reference, stemmer):
    theirs = RougeScorer(list(ROUGE_CLASSES), use_stemmer=stemmer).score(reference, prediction)
    for kind, metric in ROUGE_CLASSES.items():
        assert metric(stemmer=stemmer).score_one(prediction, [reference]) == theirs[kind].fmeasure


def test_a_long_answer_takes_no_time_and_has_the_same_score():
    rng = random.Random(0)
    prediction, reference = (" ".join(rng.choices("abcdefgh", k=1500)) for _ in range(2))
    began = time.perf_counter()
    found = find("rougeL").score_one(prediction, [reference])
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    assert found == RougeScorer(["rougeL"]).score(reference, prediction)["rougeL"].fmeasure
    assert seconds < (time.perf_counter() - began) / 10


def test_words_keep_combining_marks_and_split_unspaced_scripts():
    assert words("राष्ट्रपति की शक्ति।") == ["राष्ट्रपति", "की", "शक्ति"]
    assert words("இந்தியாவின் குடியரசுத்") == ["இந்தியாவின்", "குடியரசுத்"]
    assert words("中国 China") == ["中", "国", "china"]
    assert words("क्\u200dष naïve_x") == ["क्ष", "naïve", "x"]


# ---------------------------------------------------------------------------------------------------------- every metric


@pytest.mark.parametrize("name", METRICS)
@given(prediction=ANSWERS, reference=ANSWERS)
def test_every_score_is_a_fraction(name, prediction, reference):
    score = find(name).score_one(prediction, [reference])
    assert score is None or 0 <= score <= 1
    if find(name).binary:
        assert score in (0, 1)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("text", ["Article 21A of Part III, clause (1)", "अनुच्छेद 21 और सातवीं अनुसूची", "Article 5 第一条"])
def test_an_answer_agrees_with_itself_in_every_script(name, text):
    assert find(name).score_one(text, [text]) == 1


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("prediction, reference, expected", DEVANAGARI)
def test_devanagari_golden(name, prediction, reference, expected):
    score = find(name).score_one(prediction, [reference])
    assert score == (None if expected[name] is None else pytest.approx(expected[name], abs=1e-12))


@pytest.mark.parametrize("name", METRICS)
def test_the_best_reference_counts_and_none_gives_none(name):
    metric = find(name)
    assert metric.score_one("Article 14 of Part III", ["Article 15", "Article 14 of Part III"]) == 1
    assert metric.score_one("Article 14", []) is None


@pytest.mark.parametrize("name", METRICS)
def test_the_signature_names_everything_that_moves_a_score(name):
    fields = find(name).signature.split("|")
    assert fields[0] == name
    assert [field.partition(":")[0] for field in fields[1:]] == ["v", "norm", "tok", "stem", "lib"]


def test_stemming_changes_the_signature():
    assert ROUGE_CLASSES["rouge1"](stemmer=True).signature != ROUGE_CLASSES["rouge1"]().signature
    assert "stem:none" in find("rouge1").signature
    assert "rouge_score-0." in find("rouge1").signature


def test_compute_takes_no_mean_over_nothing():
    result = find("citation_f1").compute(predictions=["x", "y"], references=["The President", "Parliament"])
    assert result["citation_f1"] is None
    assert (result["n"], result["n_unscored"]) == (0, 2)
    with pytest.raises(ValueError):
        find("exact_match").compute(predictions=["x"], references=[])


def test_an_unknown_metric_is_a_config_error():
    with pytest.raises(ConfigError, match="bleu"):
        find("bleu")
    assert set(METRICS) | {"semantic_similarity", "list_f1", "point_recall"} == set(KNOWN)


# -------------------------------------------------------------------------------------------------------------- evaluate


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_works_alone_as_evaluate_metric(name):
    import evaluate

    metric = as_evaluate(name)
    assert isinstance(metric, evaluate.Metric)
    predictions = ["Article 14 of the Constitution", "Article 15", "none"]
    several = [["Article 14", "x"], ["Article 15"], ["Article 16", "y"]]
    assert metric.compute(predictions=predictions, references=several) == find(name).compute(
        predictions=predictions, references=several
    )
    single = [r[0] for r in several]
    assert metric.compute(predictions=predictions, references=single) == find(name).compute(
        predictions=predictions, references=single
    )


def test_finding_a_metric_imports_no_heavy_library():
    code = "import sys; from harness.metrics import find; find('token_f1'); print({'evaluate','datasets','torch','rouge_score'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "set()"
    )
