"""Which metric decides: exact match where the references are short, token F1 where they are long."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from statistics import median

from harness.errors import ConfigError

SHORT_WORDS = 6
"""Median length of the shortest accepted answer up to which exact match can be expected of a right answer."""
PREFERRED = {
    True: ("exact_match_normalized", "exact_match", "token_f1", "rougeL"),
    False: ("token_f1", "rougeL", "exact_match_normalized", "exact_match"),
}
"""Short references or not -> metrics, the best first."""
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
"""Scripts that put no space between words (Thai, Lao, Burmese, Khmer, kana, Han): two characters count as a word."""


def words(text: str) -> float:
    """Length of a text in words, in any script."""
    return len(UNSPACED.findall(text)) / 2 + len(re.findall(r"\w+", UNSPACED.sub(" ", text)))


def primary_metric(
    measured: Sequence[str], references: Iterable[Sequence[str]], chosen: str = "auto"
) -> tuple[str, str]:
    """(the metric, the reason for it): `chosen` if it was measured, else by the median length of the references.

    Args:
        measured: names of the metrics that were scored; not empty.
        references: the accepted answers of each question.
        chosen: `compare.primary`.

    Raises:
        ConfigError: the chosen metric was not scored.
    """
    if chosen != "auto" and chosen not in measured:
        raise ConfigError(
            f"compare.primary: {chosen!r} was not scored",
            f"use auto or one of {', '.join(measured)}, or add it to score.metrics",
        )
    if chosen in measured:
        return chosen, "compare.primary names it"
    length = median([min(map(words, accepted)) for accepted in references] or [0.0])
    short = length <= SHORT_WORDS
    metric = next((name for name in PREFERRED[short] if name in measured), measured[0])
    return (
        metric,
        f"half of the references have {'at most' if short else 'more than'} {SHORT_WORDS} words (median {length:g})",
    )
