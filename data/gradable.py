"""What makes a row gradable by rule: further right answers in figures and words, the kind of answer, and the points a long answer needs."""

from __future__ import annotations

import re

UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMBERS = {word: n for n, word in enumerate(UNITS)} | {word: 10 * n for n, word in enumerate(TENS, 2)}
PARTS = {"half": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "tenth": 10, "twelfth": 12, "twentieth": 20}
SCALES = {"hundred": 100, "thousand": 1000, "lakh": 100_000, "lakhs": 100_000}
NUMBER = r"(?:{0})(?:[ -](?:and )?(?:{0}))*".format("|".join([*NUMBERS, *SCALES]))
WORD_NUMBER = re.compile(rf"\b{NUMBER}\b", re.IGNORECASE)
FRACTION = re.compile(rf"\b({'|'.join(NUMBERS)})[ -]({'|'.join(PARTS)})s?\b", re.IGNORECASE)
UNIT = r"(?:years?|months?|days?|weeks?|hours?|members?|seats?|per cent|rupees|items?|States?|judges?|Judges?|persons?|languages?|matters?)"
FIGURE = re.compile(r"\d[\d,]*(?:\.\d+)?")
OFFICES = {
    "President": "President of India",
    "Vice-President": "Vice-President of India",
    "Parliament": "Parliament of India",
    "Supreme Court": "Supreme Court of India",
    "Prime Minister": "Prime Minister of India",
    "Attorney-General": "Attorney-General for India",
    "Comptroller and Auditor-General": "Comptroller and Auditor-General of India",
    "Election Commission": "Election Commission of India",
    "Governor": "Governor of the State",
    "Chief Election Commissioner": "Chief Election Commissioner of India",
    "House of the People": "Lok Sabha",
    "Council of States": "Rajya Sabha",
    "Legislative Assembly": "Vidhan Sabha",
    "Legislative Council": "Vidhan Parishad",
}
SHORT = 8
"""An answer of more words than this is `long`: no model gives it word for word."""
NAMED = re.compile(
    r"\b(?:President|Vice-President|Parliament|Governor|Supreme Court|High Courts?|Prime Minister|Chief Minister|Speaker|Chairman|"
    r"Election Commission|Finance Commission|House of the People|Council of States|Legislative Assembly|Legislative Council|"
    r"State Legislature|Consolidated Fund|Chief Justice|Comptroller and Auditor-General|Council of Ministers)\b"
)


def value_of(words: str) -> int:
    """The number that English number words stand for, as "two thousand five hundred"."""
    total = current = 0
    for word in re.split(r"[ -]", words.lower()):
        if word in NUMBERS:
            current += NUMBERS[word]
        elif word == "hundred":
            current = max(current, 1) * 100
        elif word in SCALES:
            total, current = total + max(current, 1) * SCALES[word], 0
    return total + current


def in_words(n: int) -> str:
    """English words for 0 to 999."""
    if n < 20:
        return UNITS[n]
    if n < 100:
        return TENS[n // 10 - 2] + (f"-{UNITS[n % 10]}" if n % 10 else "")
    return f"{UNITS[n // 100]} hundred" + (f" and {in_words(n % 100)}" if n % 100 else "")


def in_figures(text: str) -> str:
    """The text with its number words as figures: "35 years", "2/3 of the members"."""
    text = FRACTION.sub(lambda m: f"{NUMBERS[m[1].lower()]}/{PARTS[m[2].lower()]}", text)
    return WORD_NUMBER.sub(lambda m: str(value_of(m[0])), text)


def number_forms(answer: str) -> list[str]:
    """The same short answer in figures, in words, and as a bare number where the unit goes without saying."""
    if len(answer.split()) > SHORT:
        return []
    if bare := re.match(r"(?:not (?:less|more) than|at least|at most) (?=\S)", answer, re.IGNORECASE):
        rest = answer[bare.end() :]
        return [rest, *([in_figures(answer)] if in_figures(answer) != answer else []), *number_forms(rest)]
    figures = in_figures(answer)
    forms = [figures] if figures != answer else []
    whole = re.fullmatch(rf"({FIGURE.pattern})(?: {UNIT})?", figures)
    plain = whole[1].replace(",", "") if whole else ""
    if whole and plain.isdigit():
        forms += (
            [plain, f"{int(plain):,}"]
            if int(plain) > 999 and not re.fullmatch(r"(?:18|19|20)\d\d", figures)
            else [plain]
        )
        if int(plain) < 1000:
            forms += [re.sub(FIGURE, in_words(int(plain)), figures, count=1).capitalize(), in_words(int(plain))]
    if "per cent" in figures:
        forms += [figures.replace(" per cent", "%"), figures.replace("per cent", "percent")]
    return forms


def office_forms(answer: str) -> list[str]:
    """The "of India" form of an office, and the name in daily use of a House."""
    bare = re.sub(r"^[Tt]he ", "", answer)
    return [f"The {OFFICES[bare]}", OFFICES[bare]] if bare in OFFICES else []


def place_forms(answer: str) -> list[str]:
    """The bare number of an article, Part or amendment, and a Schedule with its article of speech."""
    if found := re.fullmatch(r"Article (\d+[A-Z]*)((?:\(\w+\))*)", answer):
        return [f"{found[1]}{found[2]}", f"Article {found[1]}{found[2]} of the Constitution"]
    if found := re.fullmatch(r"Part ([IVX]+[AB]?)", answer):
        return [found[1]]
    if found := re.fullmatch(r"(\w+) Schedule", answer):
        return [f"{answer} to the Constitution"]
    return []


def yes_or_no(answer: str) -> str | None:
    """`Yes` or `No` where the answer opens with it."""
    found = re.match(r"(Yes|No)\b(?=[.,;: ]|$)", answer)
    return found[1] if found and not answer.startswith(("No ", "Yes ")) else None


def references(row: dict) -> list[str]:
    """Every further answer that is right by rule, the row's own first and each once; never the answer itself."""
    answer = row["answer"]
    forms = [*row.get("references", [])]
    for text in (answer, *forms[:]):
        forms += number_forms(text)
    forms += office_forms(answer) + place_forms(answer)
    if short := yes_or_no(answer):
        forms.append(short)
    return [f for f in dict.fromkeys(forms) if f and f != answer]


def answer_type(row: dict) -> str:
    """`yes-no`, `list`, `short` or `long`: which metric judges the answer."""
    if row.get("answer_type"):
        return row["answer_type"]
    if yes_or_no(row["answer"]):
        return "yes-no"
    return "short" if len(row["answer"].split()) <= SHORT else "long"


def must_mention(row: dict) -> list[str]:
    """The points an answer has to make, alternatives of one point separated by `|`.

    A row's own list goes first; without one, its articles, numbers and offices are the points.
    """
    if row.get("must_mention"):
        return row["must_mention"]
    answer = row["answer"]
    points = [f"Article {n}|{n}" for n in re.findall(r"\bArticles? (\d+[A-Z]*)", answer)]
    rest = re.sub(r"\b(?:Articles?|clauses?|entry|paragraph) \d+[A-Z]*(?:\(\w+\))*", "", answer)
    fractions = [m[0] for m in FRACTION.finditer(rest)]
    points += [f"{f}|{in_figures(f)}" for f in fractions]
    rest = FRACTION.sub("", rest)
    points += [
        f"{m[0]}|{value_of(m[0])}" for m in WORD_NUMBER.finditer(rest) if m[0].lower() not in ("one", "two", "zero")
    ]
    points += [m[0].rstrip(",") for m in FIGURE.finditer(rest)]
    points += [m[0] for m in NAMED.finditer(rest)]
    return list(dict.fromkeys(points))
