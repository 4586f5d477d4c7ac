"""ROUGE by the `rouge_score` package, with a tokenizer that knows every script.

The package's own tokenizer keeps a-z and 0-9 only, so that Devanagari scores 0 against itself (huggingface/evaluate #256). Ours is equal to
it on ASCII text. No stemming by default: it moves ROUGE-1 by tenths, so it stands in the signature.

As in the package, ROUGE-2 of a one-word reference is 0, and ROUGE of a text without words is 0.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version
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
        # Without line breaks a text is one sentence, and the summary-level LCS is the LCS.
        kind = "rougeL" if self.name == "rougeLsum" and "\n" not in prediction + reference else self.name
        return _scores(prediction, reference, self.stemmer == "porter", kind == "rougeLsum")[kind]


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
def _scores(prediction: str, reference: str, stemmer: bool, summary: bool) -> dict[str, float]:
    scores = _scorer(stemmer, summary).score(reference, prediction)
    return {kind: float(score.fmeasure) for kind, score in scores.items()}


@lru_cache
def _scorer(stemmer: bool, summary: bool) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeLsum"] if summary else ["rouge1", "rouge2", "rougeL"], tokenizer=Tokenizer(stemmer))


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
