"""Prose about the facts, for the embedded base model: statements only, never a question.

A small model learns a fact from many wordings that each state the fact's key and its value in one sentence; so every article gets many.
"""

from __future__ import annotations

import random
from functools import cache

from facts import Fact, Part, capital, facts, parts
from tables import statements

MAIN_SUBJECT = [
    "The subject of {a} is {x}.",
    "The subject matter of {a} is {x}.",
    "{A} of the Constitution deals with {x}.",
]
SUBJECT = [
    "{A} of the Constitution deals with {x}.",
    "{X}: this is what {a} covers.",
    "{A} is about {x}.",
    "The provision of the Constitution on {x} is {a}.",
    "For {x}, see {a}.",
    "{A} covers {x}.",
    "The Constitution of India deals with {x} in {a}.",
    "Whoever wants to read about {x} opens {a}.",
    "{A} is concerned with {x}.",
    "What the Constitution says on {x} stands in {a}.",
    "On {x}, the Constitution speaks in {a}.",
    "A lawyer cites {a} on {x}.",
]
PART = [
    "{A} stands in Part {p}, {t}.",
    "Part {p} of the Constitution ({t}) contains {a}.",
    "{A} belongs to Part {p}.",
    "{A}, on {x}, is placed in Part {p}.",
    "The Part of the Constitution in which {a} stands is Part {p}.",
    "In Part {p}, {t}, {a} deals with {x}.",
]
GIST = [
    "{A} provides: {g}",
    "The rule laid down in {a} is this. {g}",
    "{A}, on {x}, says: {g}",
    "In substance, {a} provides as follows. {g}",
    "{g} So {a} provides.",
    "Summary of {a}: {g}",
    "What {a} lays down about {x} is this: {g}",
    "{g} That is the substance of {a}.",
]
AUTHORITY = [
    "Under {a}, {who} {may} {does}.",
    "{A} leaves it to {who} to {does}.",
    "The authority that {may} {does} is {who}.",
    "Under {a}, the authority that {may} {does} is {who}.",
    "The one that {may} {does}, by {a}, is {who}.",
    "By {a}, to {does} is for {who}.",
    "To {does} is for {who}, as {a} says.",
    "To {does} is for {who}.",
]
POINT = [
    "Under {a}, {what} is {value}.",
    "{What} is {value}.",
    "As {a} states, {what} is {value}.",
    "{A} fixes {what}: {value}.",
    "{What}, according to {a}, is {value}.",
    "{What}: {value}.",
    "Under {a}, {what}: {value}.",
    "{A}, in short. {What}: {value}.",
    "It is {a} that fixes {what}: {value}.",
]
PARTS = [
    "Part {p} of the Constitution is titled {t}. It is devoted to {x} and contains {r}.",
    "The title of Part {p} is {t}.",
    "The Part of the Constitution devoted to {x} is Part {p}.",
    "Part {p}, {t}, is made up of {r}.",
]


def sentences(fact: Fact, rng: random.Random) -> list[str]:
    """One pass over a fact: every attribute in several wordings, drawn at random.

    The short facts get the most sentences: each has a different value, and a small model learns them worst.
    """
    names = [fact.subject, *fact.aliases]
    words = {
        "a": fact.name,
        "A": capital(fact.name),
        "p": fact.part,
        "t": fact.part_title,
        "g": fact.gist,
        "may": fact.may,
    }

    def say(templates: list[str], times: int, names: list[str] = names, **more: str) -> list[str]:
        drawn = [(template, rng.choice(names)) for template in rng.sample(templates, times)]
        return [template.format(**words, x=x, X=capital(x), **more) for template, x in drawn]

    said = say(MAIN_SUBJECT, 1, [fact.subject]) + say(SUBJECT, 1, [fact.subject])
    said += [sentence for alias in fact.aliases for sentence in say(SUBJECT, 1, [alias])]
    said += say(GIST, 3)
    if fact.part:
        said += say(PART, 2)
    if fact.authority:
        who, does = fact.authority
        said += say(AUTHORITY, 3, who=who, Who=capital(who), does=does)
    for point in fact.points:
        said += say(POINT, 4, what=point.what, What=capital(point.what), value=point.value)
    return said


def part_sentences(part: Part, rng: random.Random) -> list[str]:
    """One pass over a Part."""
    return [t.format(p=part.number, t=part.title, x=part.subject, r=part.span) for t in rng.sample(PARTS, 3)]


def corpus(seed: int) -> list[str]:
    """One pass over the Constitution: every sentence is a separate document, all in random order.

    Sentences of one fact are not adjacent: the second could then be copied from the first and would teach nothing.
    """
    rng = random.Random(seed)
    every_fact, every_part, fixed = _read()
    said = [s for f in every_fact for s in sentences(f, rng)] + [s for p in every_part for s in part_sentences(p, rng)]
    said += fixed
    rng.shuffle(said)
    return said


@cache
def _read() -> tuple[list[Fact], list[Part], list[str]]:
    """The facts, the Parts, and the sentences that are the same in every pass: read once for all passes."""
    return facts(), parts(), [s for group in statements() for s in group]
