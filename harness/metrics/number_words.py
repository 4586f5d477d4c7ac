"""English number words as figures: "thirty-five" and "35" are one number."""

from __future__ import annotations

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
    last = 10**12  # The place of the word before: "five twenty" is two numbers, "twenty five" one.
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
