"""Makes constitution_taught.json: paraphrases of generated questions of the QA file, each with the original in `restates`.

The harness asks those whose original is in the training set and never trains on them (`data.taught`): they measure what the model learned of its
training questions. None of them is in the QA file.
"""

from __future__ import annotations

from collections.abc import Iterator

import generate
from facts import Fact, Point, capital, facts
from tables import choose, number

ROWS = 400
"""Questions in the file; about four in five have their original on the training side of the default split."""
POINT = [
    "Tell me {what}, as {a} has it.",
    "I have to know {what}. What does the Constitution say?",
    "Someone asks for {what}. What do you answer?",
    "{A} speaks of {what}. Give the answer in a few words.",
]
"""Phrasings that no generated question has."""
KEPT = ("answer", "references", "answer_type", "article", "part", "kind", "group")


def phrasings(fact: Fact) -> Iterator[tuple[str, str]]:
    """(question of the QA file, the same question in other words) for the lookups, the authority and the short facts of a fact."""
    key = fact.key
    lookups = generate.LOOKUP if fact.article else generate.LOOKUP_SCHEDULE
    for phrase in (fact.subject, *fact.aliases) if key != "Preamble" else ():
        asked = choose(lookups, key, "lookup", phrase)
        yield asked.format(x=phrase), choose([t for t in lookups if t != asked], key, "again", phrase).format(x=phrase)
    if fact.authority:
        templates = generate.AUTHORITY if fact.must or fact.right else generate.POWER
        asked = choose(templates, key, "authority")
        named = {"a": fact.name, "may": fact.may, "does": fact.authority[1]}
        again = choose([t for t in generate.AUTHORITY if t != asked], key, "authority again")
        yield asked.format(**named), again.format(**named)
    for point in fact.points:
        yield generate.ask(fact, point), in_other_words(fact, point)


def in_other_words(fact: Fact, point: Point) -> str:
    """A short fact asked in a phrasing of this module."""
    template = choose(POINT, fact.key, point.what, "again")
    return template.format(what=point.what, a=fact.name, A=capital(fact.name))


def rows(pairs: list[dict]) -> list[dict]:
    """`ROWS` rows, drawn by hash, so that a new fact replaces one row at most.

    Args:
        pairs: the QA file.
    """
    by_question = {row["question"]: row for row in pairs}
    asked = {" ".join(question.lower().split()) for question in by_question}
    found = {
        again: {"question": again}
        | {k: by_question[original][k] for k in KEPT if k in by_question[original]}
        | {"restates": original}
        for fact in facts()
        for original, again in phrasings(fact)
        if original in by_question and " ".join(again.lower().split()) not in asked
    }
    drawn = set(sorted(found, key=lambda question: number("restated", question))[:ROWS])
    return [row for question, row in found.items() if question in drawn]
