"""English number words as figures: "thirty-five" and "35" are one number."""

from __future__ import annotations

import re
from collections.abc import Sequence

SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"""
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
VALUES = {word: number for number, word in enumerate(SMALL.split())} | {
    word: 10 * number for number, word in enumerate(TENS.split(), 2)
}
MULTIPLES = {
    "hundred": 100,
    "thousand": 1_000,
    "lakh": 100_000,
    "lakhs": 100_000,
    "million": 10**6,
    "crore": 10**7,
    "crores": 10**7,
    "billion": 10**9,
}

ORDINALS = {
    word: number
    for number, word in enumerate(
        "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth sixteenth seventeenth "
        "eighteenth nineteenth".split(),
        1,
    )
} | {word[:-1] + "ieth": 10 * number for number, word in enumerate(TENS.split(), 2)}
SMALL_WORD = "(?:" + "|".join(sorted(VALUES, key=len, reverse=True)) + ")"


def figures(words: Sequence[str]) -> list[str]:
    """The words with every run of number words replaced by one figure; "one hundred and eighty" is 180, "ten lakh" 1000000."""
    result: list[str] = []
    at = 0
    while at < len(words):
        value, end = _number_at(words, at)
        result.append(words[at] if value is None else str(value))
        at = end
    return result


def _number_at(words: Sequence[str], start: int) -> tuple[int | None, int]:
    """The number that begins at a word, or None; and the position after it."""
    if words[start] not in VALUES and not (
        words[start].isdecimal() and words[start + 1 : start + 2] and words[start + 1] in MULTIPLES
    ):
        return None, start + 1
    total, current, at = 0, 0, start
    last = 10**12  # The decimal place of the word before: "five twenty" is two numbers, "twenty five" one.
    while at < len(words):
        word = words[at]
        if word in VALUES:
            value = VALUES[word]
            place = 10 if value < 20 else 100
            if last < place or (value >= 10 and last < 100) or (value == 0 and at > start):
                break
            current, last = current + value, 1 if value < 20 else 10
        elif at == start:
            current, last = int(word), 1
        elif word in MULTIPLES and current:
            multiple = MULTIPLES[word]
            if multiple == 100:
                current, last = current * 100, 100
            else:
                total, current, last = total + current * multiple, 0, multiple
        elif not (word == "and" and at + 1 < len(words) and words[at + 1] in VALUES and last >= 100):
            break
        at += 1
    return total + current, at


def spelled_figures(text: str, heads: Sequence[str]) -> str:
    """The text with the number words after one of the heads as a figure: "Article twenty-one" is "Article 21".

    Args:
        heads: regular expressions of the words that a number follows.
    """
    if not any(character.isalpha() for character in text):
        return text
    spelled = rf"\b((?:{'|'.join(heads)})\.?\s+)({SMALL_WORD}(?:(?:\s+|-)(?:{SMALL_WORD}|hundred|and(?=\s+{SMALL_WORD}\b)))*)\b"
    return re.sub(
        spelled, lambda m: m[1] + " ".join(figures(re.split(r"[\s-]+", m[2].lower()))), text, flags=re.IGNORECASE
    )


def ordinal_figures(text: str, noun: str) -> str:
    """The text with ordinals in words as figures where the noun follows: "Forty-second Amendment" is "42nd Amendment"."""
    if noun not in text.lower():
        return text
    hundred = r"(?:(?:one\s+)?hundred\s+(?:and\s+)?)?"
    tens = rf"(?:(?:{TENS.replace(' ', '|')})[\s-]+)?"
    pattern = rf"\b({hundred})({tens})({'|'.join(sorted(ORDINALS, key=len, reverse=True))})(?=\s+(?:constitution(?:al)?\s+)?{noun}s?\b)"

    def figure(m: re.Match[str]) -> str:
        value = 100 * bool(m[1]) + VALUES.get(m[2].strip(" \t\n-").lower(), 0) + ORDINALS[m[3].lower()]
        return f"{value}th"

    return re.sub(pattern, figure, text, flags=re.IGNORECASE)
