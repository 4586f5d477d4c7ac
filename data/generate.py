"""Writes data/constitution_qa.json and the counts in data/README.md from the table of facts and the hand-written rows (`make data`).

Which phrasing a fact gets is decided by a hash of the fact, so that a new fact changes no other row.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator

import croissant
import gradable
import tables
from facts import HERE, Fact, Part, Point, capital, facts, handwritten, parts
from tables import choose, number

# A subject may be a clause ("who may stand for election"), so each phrasing takes it as an object and agrees with any number.
LOOKUP = [
    "Which article of the Constitution deals with {x}?",
    "Which article of the Constitution of India is about {x}?",
    "Name the article that covers {x}.",
    "Which article concerns {x}?",
    "What is the number of the article on {x}?",
    "Which article would a lawyer cite on {x}?",
    "In which article does the Constitution deal with {x}?",
    "A student wants to read about {x}. Which article should the student open?",
]
LOOKUP_SCHEDULE = [
    "Which Schedule to the Constitution deals with {x}?",
    "In which Schedule does one find {x}?",
    "Name the Schedule that covers {x}.",
]
SUBJECT = [
    "What does {a} deal with?",
    "What is the subject of {a}?",
    "What is {a} of the Constitution about?",
    "Name the subject matter of {a}.",
    "With what subject is {a} concerned?",
    "What matter does {a} of the Constitution of India cover?",
]
GIST = [
    "What does {a} provide?",
    "What rule does {a} lay down?",
    "State in one sentence what {a} provides.",
    "Summarise {a} of the Constitution.",
    "What is the substance of {a}?",
]
GIST_SCHEDULE = ["Describe {a} in one sentence.", "Summarise {a} to the Constitution.", "What is the substance of {a}?"]
PART = [
    "In which Part of the Constitution does {a} stand?",
    "Which Part of the Constitution contains {a}?",
    "To which Part does {a} belong?",
    "Under which Part is {a} placed?",
]
AUTHORITY = [
    "Who {may} {does}?",
    "Under {a}, who {may} {does}?",
    "According to {a}, who {may} {does}?",
    "Under the Constitution, who {may} {does}?",
]
POWER = [*AUTHORITY, "Who is empowered to {does}?", "To whom does {a} give the power to {does}?"]
POINT = ["{Who} is {what}?", "{State} {what}."]
POINT_IN_ARTICLE = [*POINT, "Under {a}, {who} is {what}?", "According to {a}, {who} is {what}?"]
PHRASINGS = [
    "I am looking for {what}. What does {a} say?",
    "{A} settles {what}. {Who} is it?",
    "What answer does {a} give on {what}?",
    "Can you state {what} under {a}?",
]
THREE_WAYS = 110
"""Short facts that are asked in three ways."""
PART_ROWS = 60
"""Questions for the Part of an article: a table of ranges answers them, so that few are kept."""
PERSON = re.compile(r"the (person|officer|maker|owner|addressee|Chair\w+|ex officio Chair\w+)\b")
COUNTS = re.compile(r"(?<=<!-- counts -->\n).*?(?=<!-- /counts -->)", re.DOTALL)


def pair(fact: Fact, kind: str, question: str, answer: str, *references: str) -> dict:
    """One row of the QA file."""
    row = {
        "question": question,
        "answer": answer,
        "article": fact.article,
        "part": fact.part,
        "kind": kind,
        "group": fact.group,
    }
    return row | {"references": list(references)} if references else row


def about(fact: Fact, ask_part: set[str], three_ways: set[str]) -> Iterator[dict]:
    """The systematic questions about one fact."""
    a, n = fact.name, fact.key
    lookups = LOOKUP if fact.article else LOOKUP_SCHEDULE
    if fact.key != "Preamble":
        for phrase in (fact.subject, *fact.aliases):
            yield pair(fact, "lookup", choose(lookups, n, "lookup", phrase).format(x=phrase), n)
        yield pair(
            fact,
            "content",
            choose(SUBJECT, n, "subject").format(a=a),
            capital(fact.subject),
            *map(capital, fact.aliases),
            fact.heading,
        )
    if not fact.article or choose(["yes", "no"], n, "gist?") == "yes":
        yield pair(fact, "content", choose(GIST if fact.article else GIST_SCHEDULE, n, "gist").format(a=a), fact.gist)
    if fact.article in ask_part:
        yield pair(fact, "part", choose(PART, n, "part").format(a=a), f"Part {fact.part}")
    if fact.authority:
        who, does = fact.authority
        templates = AUTHORITY if fact.must or fact.right else POWER
        yield pair(
            fact, "authority", choose(templates, n, "authority").format(a=a, may=fact.may, does=does), capital(who)
        )
    for point in fact.points:
        name = {"fact": slug(fact, point)} if slug(fact, point) in three_ways else {}
        for question in [ask(fact, point), *(phrasings(fact, point) if name else ())]:
            yield pair(fact, point.kind, question, capital(point.value)) | name | (point.checked or {})


def slug(fact: Fact, point: Point) -> str:
    """The name of a short fact that is asked in several ways."""
    return f"{fact.group}-{number(fact.key, point.what) % 10**6:06}"


def phrasings(fact: Fact, point: Point) -> list[str]:
    """Two further ways to ask for a short fact."""
    first = number(fact.key, point.what, "phrasing") % len(PHRASINGS)
    chosen = [PHRASINGS[first], PHRASINGS[(first + 1) % len(PHRASINGS)]]
    who = "Who" if PERSON.match(point.what) else "What"
    return [template.format(a=fact.name, A=capital(fact.name), what=point.what, Who=who) for template in chosen]


def fewest(keys: list[str], n: int, purpose: str) -> set[str]:
    """`n` of the keys, drawn by hash: a new key displaces one at most."""
    return set(sorted(keys, key=lambda key: number(purpose, key))[:n])


def ask(fact: Fact, point: Point) -> str:
    """A question for a short fact, naming its article unless the fact names its Schedule by itself."""
    who = "who" if PERSON.match(point.what) else "what"
    state = "Name" if point.kind == "content" else "State"
    template = choose(POINT if fact.key in point.what else POINT_IN_ARTICLE, fact.key, point.what)
    return template.format(a=fact.name, what=point.what, who=who, Who=capital(who), State=state)


def about_part(part: Part) -> Iterator[dict]:
    """The systematic questions about one Part."""
    shared = {"article": None, "part": part.number, "group": f"part-{part.number.lower()}"}
    yield {
        "question": f"Which Part of the Constitution is devoted to {part.subject}?",
        "answer": f"Part {part.number}",
        "kind": "lookup",
    } | shared
    yield {
        "question": f"What is the title of Part {part.number} of the Constitution?",
        "answer": part.title,
        "kind": "content",
    } | shared
    which = "Which article makes" if part.span.startswith("Article ") else "Which articles make"
    yield {"question": f"{which} up Part {part.number}?", "answer": part.span, "kind": "lookup"} | shared


KEPT = (
    "references",
    "answer_type",
    "must_mention",
    "answerable",
    "twin",
    "fact",
    "cites",
    "verified_against",
    "text_as_of",
)


def by_hand() -> Iterator[dict]:
    """The hand-written rows, each in the group of its article, Schedule or the Preamble."""
    for row in handwritten():
        key = (
            f"article-{row['article']}"
            if row.get("article")
            else f"{row['schedule']}-schedule"
            if row.get("schedule")
            else "preamble"
        )
        kept = {k: row.get(k) for k in ("question", "answer", "article", "part", "kind")} | {
            "group": row.get("group", key.lower()),
            "source": "hand",
        }
        yield kept | {k: row[k] for k in KEPT if k in row}


def gradable_row(row: dict) -> dict:
    """The row with every further right answer, its kind of answer, and the points that a long answer needs.

    The answer to a yes-no question is the one word; the sentence that gives the reason is its first reference.
    """
    kind = gradable.answer_type(row)
    made = {k: v for k, v in row.items() if k not in ("references", "must_mention", "answer_type")}
    accepted = gradable.references(row)
    if kind == "yes-no" and (short := gradable.yes_or_no(row["answer"])) and short != row["answer"]:
        made["answer"] = short
        accepted = [row["answer"], *(form for form in accepted if form != short)]
    if accepted:
        made["references"] = accepted
    made["answer_type"] = kind
    points = gradable.must_mention(row) if kind in ("long", "list") or row.get("must_mention") else []
    return made | {"must_mention": points} if points else made


def rows() -> list[dict]:
    """The whole file, without the questions that would stand in it twice."""
    every = facts()
    ask_part = fewest([f.article for f in every if f.article], PART_ROWS, "part")
    three_ways = fewest([slug(f, p) for f in every for p in f.points], THREE_WAYS, "three ways")
    part_of = {f.article: f.part for f in every if f.article and f.part}
    everything = [r for f in every for r in about(f, ask_part, three_ways)] + [
        r for p in parts() for r in about_part(p)
    ]
    everything += tables.rows(part_of) + list(by_hand())
    first: dict[str, dict] = {}
    for row in everything:
        first.setdefault(" ".join(row["question"].lower().split()), row)
    return [gradable_row(row) for row in first.values()]


def render(pairs: list[dict]) -> str:
    """The QA file: a JSON list, one row a line."""
    return "[\n" + ",\n".join(json.dumps(r, ensure_ascii=False) for r in pairs) + "\n]\n"


def counts(pairs: list[dict]) -> str:
    """The data card's tables: pairs by kind, generated and by hand, and by Part."""
    hand = Counter(r["kind"] for r in pairs if r.get("source") == "hand")
    kinds = Counter(r["kind"] for r in pairs)
    places = Counter(r["part"] or place(r["group"]) for r in pairs)
    lines = ["| kind | generated | by hand | pairs |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {kind} | {n - hand[kind]:,} | {hand[kind]:,} | {n:,} |" for kind, n in kinds.most_common()]
    lines += [f"| **all** | **{kinds.total() - hand.total():,}** | **{hand.total():,}** | **{kinds.total():,}** |", ""]
    lines += ["| Part | title | articles | pairs |", "| --- | --- | --- | ---: |"]
    lines += [f"| {p.number} | {p.title} | {p.articles} | {places[p.number]:,} |" for p in parts()]
    lines += [f"| | {name} | | {places[name]:,} |" for name in ("Preamble", "Schedules", "Amendments", "Cases")]
    return "\n".join([*lines, "", *properties(pairs)]) + "\n"


def place(group: str) -> str:
    """The line of the card's second table for a row outside the Parts."""
    names = {"preamble": "Preamble", "amendment": "Amendments", "case": "Cases"}
    return next((name for start, name in names.items() if group.startswith(start)), "Schedules")


def properties(pairs: list[dict]) -> list[str]:
    """The card's third table: what the optional fields hold."""
    said = Counter(gradable.yes_or_no(r["answer"]) for r in pairs if r["answer_type"] == "yes-no")
    types = Counter(r["answer_type"] for r in pairs)
    scenarios = [r for r in pairs if r["kind"] == "scenario"]
    several = [r for r in scenarios if len(r.get("cites", ())) > 1]
    counted = {
        **{f"`answer_type` {name}": n for name, n in types.most_common()},
        "answers Yes / No": f"{said['Yes']} / {said['No']}",
        "rows with further `references`": sum("references" in r for r in pairs),
        "rows with `must_mention`": sum("must_mention" in r for r in pairs),
        "facts asked in three ways": len({r["fact"] for r in pairs if "fact" in r}),
        "questions that must not be answered, each beside a twin": sum(r.get("answerable") is False for r in pairs),
        "scenarios that cite two articles or more": len(several),
        "rows with `verified_against`": sum("verified_against" in r for r in pairs),
    }
    return [
        "| property | rows |",
        "| --- | ---: |",
        *(f"| {k} | {v if isinstance(v, str) else format(v, ',')} |" for k, v in counted.items()),
    ]


def card(text: str, pairs: list[dict]) -> str:
    """The data card with its tables brought up to date."""
    return COUNTS.sub(lambda _: counts(pairs), text)


def main() -> None:
    """Writes the QA file, its questions in other words and the data card's tables."""
    import restate  # it takes its phrasings from this module

    pairs, readme = rows(), HERE / "README.md"
    text = render(pairs)
    (HERE / "constitution_qa.json").write_text(text, encoding="utf-8")
    (HERE / "constitution_taught.json").write_text(render(restate.rows(pairs)), encoding="utf-8")
    (HERE / "croissant.json").write_text(croissant.render(text), encoding="utf-8")
    readme.write_text(card(readme.read_text(encoding="utf-8"), pairs), encoding="utf-8")
    print(f"constitution_qa.json: {len(pairs):,} pairs")


if __name__ == "__main__":
    main()
