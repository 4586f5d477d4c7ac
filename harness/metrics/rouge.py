"""ROUGE as in the `rouge_score` package, with a tokenizer for every script.

The package's own tokenizer keeps a-z and 0-9 only, so that Devanagari scores 0 against itself (huggingface/evaluate #256). Ours is equal to it on
ASCII text. No stemming by default: it changes ROUGE-1 by tenths, so it is part of the signature.

Texts of one line are counted here, and their scores are the package's own to the last bit: it fills a table of Python lists for each longest
common subsequence, which takes a second for two texts of 2,000 words. Texts of several lines go through the package.

As in the package, ROUGE-2 of a one-word reference is 0, and ROUGE of a text without words is 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from itertools import pairwise
from typing import TYPE_CHECKING

from harness.metrics.base import Metric
from harness.metrics.text import WORDS, words

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer


class Rouge(Metric):
    """F-measure of one kind of ROUGE.

    Args:
        stemmer: apply Porter's stemmer to words of four letters and more, as the package does when asked.
    """

    tokenizer = WORDS
    library = f"rouge_score-{version('rouge-score')}"

    def __init__(self, stemmer: bool = False):
        self.stemmer = "porter" if stemmer else "none"

    def score_pair(self, prediction: str, reference: str) -> float:
        """F-measure in 0..1."""
        stemmer = self.stemmer == "porter"
        # Without line breaks a text is one sentence, and the summary-level LCS is the LCS.
        if self.name == "rougeLsum" and "\n" in prediction + reference:
            return float(_summary_scorer(stemmer).score(reference, prediction)["rougeLsum"].fmeasure)
        return _scores(prediction, reference, stemmer)["rougeL" if self.name == "rougeLsum" else self.name]


class Rouge1(Rouge):
    """Overlap of words."""

    name = "rouge1"
    description = "ROUGE-1 F: overlap of words."


class Rouge2(Rouge):
    """Overlap of word pairs."""

    name = "rouge2"
    description = "ROUGE-2 F: overlap of pairs of words."


class RougeL(Rouge):
    """Longest common subsequence of words."""

    name = "rougeL"
    description = "ROUGE-L F: longest common subsequence of words."


class RougeLsum(Rouge):
    """Longest common subsequence line by line (union LCS); sentences are lines, as in the package."""

    name = "rougeLsum"
    description = "ROUGE-Lsum F: union of longest common subsequences over the lines of the text."


@lru_cache(maxsize=256)  # The kinds of ROUGE are asked for one after the other on the same pair.
def _scores(prediction: str, reference: str, stemmer: bool) -> dict[str, float]:
    tokenizer = _tokenizer(stemmer)
    found, wanted = tokenizer.tokenize(prediction), tokenizer.tokenize(reference)
    pairs = Counter(pairwise(found)), Counter(pairwise(wanted))
    return {
        "rouge1": _f((Counter(found) & Counter(wanted)).total(), len(found), len(wanted)),
        "rouge2": _f((pairs[0] & pairs[1]).total(), len(found) - 1, len(wanted) - 1),
        "rougeL": _f(lcs_length(found, wanted), len(found), len(wanted)),
    }


def _f(common: int, found: int, wanted: int) -> float:
    """F-measure, in the package's order of operations: another would differ in the last bit."""
    precision, recall = common / max(found, 1), common / max(wanted, 1)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def lcs_length(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time as the bits of one integer.

    Bit i of the row is 0 where left[: i + 1] has a longer one with what was read of `right` than left[:i] has. Source: Crochemore, Iliopoulos, Pinzon
    and Reid, Inf. Process. Lett. 80 (2001) 279-285, in the form of Hyyrö, Proc. 15th Australasian Workshop on Combinatorial Algorithms (2004).
    """
    whole = (1 << len(left)) - 1
    places: dict[str, int] = {}
    for i, token in enumerate(left):
        places[token] = places.get(token, 0) | 1 << i
    row = whole
    for token in right:
        matches = row & places.get(token, 0)
        row = ((row + matches) | (row - matches)) & whole
    return len(left) - row.bit_count()


@lru_cache
def _tokenizer(stemmer: bool) -> Tokenizer:
    return Tokenizer(stemmer)


@lru_cache
def _summary_scorer(stemmer: bool) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeLsum"], tokenizer=_tokenizer(stemmer))


class Tokenizer:
    """`words`, with or without stemming, as `rouge_score` wants its tokenizers."""

    def __init__(self, stemmer: bool = False):
        self._stem = None
        if stemmer:
            from nltk.stem.porter import PorterStemmer

            self._stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        """Words of a text, in order."""
        found = words(text)
        return [self._stem(w) if len(w) > 3 else w for w in found] if self._stem else found
