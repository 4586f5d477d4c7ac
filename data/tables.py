"""Rows from the tables other than the articles: entries of the Seventh Schedule, amendments, cases, definitions, seats and local matters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from facts import HERE, capital, read

LISTS = {"Union": "I", "State": "II", "Concurrent": "III"}
WHICH_LIST = [
    "Which List of the Seventh Schedule includes {x}?",
    "Under which List does the Seventh Schedule place {x}?",
    "{X}: is this in the Union List, the State List or the Concurrent List?",
    "Which of the three Lists of the Seventh Schedule names {x}?",
]
ENTRY = [
    "What is the subject of entry {n} of the {l} List?",
    "What does entry {n} of List {r} cover?",
    "Which matter does entry {n} of the {l} List name?",
]
AMENDED = ["Which amendment {did}?", "Name the amendment that {did}.", "Which Constitution Amendment Act {did}?"]
AMENDMENT = ["What did the {o} Amendment do?", "State the main change made by the {o} Amendment of the Constitution."]
YEAR = [
    "Of which year is the Constitution ({o} Amendment) Act?",
    "Which year stands in the title of the {o} Amendment Act?",
]
HELD = [
    "In which case did the Supreme Court hold that {held}?",
    "Name the judgment of the Supreme Court which held that {held}.",
]
HOLDING = ["What did the Supreme Court hold in {case} ({year})?", "State the holding of {case} ({year})."]
CASE_YEAR = ["In which year did the Supreme Court decide {case}?", "Of which year is the judgment in {case}?"]
MEANS = ['What does "{t}" mean in {a}?', 'How does {a} define "{t}"?', 'What is the meaning of "{t}" under {a}?']
TERM = ["Which expression does {a} define as follows: {m}?", "Which term defined in {a} means this: {m}?"]
SEATS = [
    "How many seats in the Council of States does the Fourth Schedule give to {x}?",
    "State the number of Rajya Sabha seats of {x}.",
]
LOCAL = [
    "Which of the Eleventh and Twelfth Schedules lists {x}?",
    "Is {x} a matter of the Eleventh or of the Twelfth Schedule?",
]


def choose(templates: list[str], *key: str) -> str:
    """One of the templates, chosen by the key alone."""
    return templates[number(*key) % len(templates)]


def number(*key: str) -> int:
    """A large number that depends on the key alone."""
    return int.from_bytes(hashlib.sha256("|".join(key).encode()).digest()[:8], "big")


def table(name: str) -> list[dict]:
    """The rows of one table of `data/facts`."""
    return read(HERE / "facts" / f"{name}.jsonl")


def row(source: dict, kind: str, group: str, question: str, answer: str, *references: str, **more: object) -> dict:
    """One row of the QA file, with the sources of the table row it rests on."""
    made = {
        "question": question,
        "answer": capital(answer),
        "article": None,
        "part": None,
        "kind": kind,
        "group": group,
    } | more
    if references:
        made["references"] = list(references)
    return made | {k: source[k] for k in ("cites", "verified_against", "text_as_of") if k in source}


def entries() -> Iterator[dict]:
    """Every entry's List, and the subject of half of the entries."""
    for e in table("seventh"):
        name, n, x = e["list"], e["entry"], e["subject"]
        where = choose(WHICH_LIST, name, n, x).format(x=x, X=capital(x))
        yield row(
            e, "lookup", "seventh-schedule", where, f"the {name} List", f"List {LISTS[name]}", f"{name} List", name
        )
        if number(name, n, "subject?") % 2:
            question = choose(ENTRY, name, n).format(n=n, l=name, r=LISTS[name])
            yield row(e, "content", "seventh-schedule", question, x)


def amendments() -> Iterator[dict]:
    """What each amendment did, the amendment that did it, and its year."""
    for a in table("amendments"):
        o, n = a["ordinal"], a["number"]
        group = f"amendment-{n}"
        names = [f"{o} Amendment", f"{ordinal(n)} Amendment", f"{ordinal(n)}", o]
        names += [f"The Constitution ({o} Amendment) Act, {a['year']}"] if "year" in a else []
        for did in a["did"]:
            yield row(a, "amendment", group, choose(AMENDED, did).format(did=did), f"the {o} Amendment", *names)
        yield row(a, "amendment", group, choose(AMENDMENT, o).format(o=o), f"It {a['did'][0]}.")
        if "year" in a:
            yield row(a, "term", group, choose(YEAR, o, "year").format(o=o), str(a["year"]))


def ordinal(n: int) -> str:
    """`1st`, `42nd`, `103rd`."""
    suffix = "th" if 10 <= n % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{suffix}"


def cases() -> Iterator[dict]:
    """The case of each holding, the holding of each case, and its year."""
    for c in table("cases"):
        group = "case-" + c["case"].lower().replace(" ", "-").replace(".", "")
        names = [c["full"], *c.get("also", [])]
        yield row(c, "case", group, choose(HELD, c["case"]).format(held=c["held"]), c["case"], *names)
        yield row(
            c,
            "case",
            group,
            choose(HOLDING, c["case"]).format(case=c["case"], year=c["year"]),
            f"It held that {c['held']}.",
        )
        if str(c["year"]) not in c["case"]:
            yield row(c, "term", group, choose(CASE_YEAR, c["case"]).format(case=c["case"]), str(c["year"]))


def definitions(parts: dict[str, str]) -> Iterator[dict]:
    """Each defined expression in both directions; `parts` gives the Part of an article."""
    for d in table("definitions"):
        article = d["cites"][0]
        place = {"article": article, "part": parts[article]}
        group, a = f"article-{article.lower()}", f"Article {article}"
        question = choose(MEANS, article, d["term"]).format(t=d["term"], a=a)
        yield row(d, "definition", group, question, d["means"], **place)
        yield row(
            d, "definition", group, choose(TERM, article, d["term"]).format(a=a, m=d["means"]), d["term"], **place
        )


def seats() -> Iterator[dict]:
    """The seats of each State and Union territory in the Council of States."""
    for s in table("seats"):
        yield row(s, "term", "fourth-schedule", choose(SEATS, s["place"]).format(x=s["place"]), str(s["seats"]))


def local_matters() -> Iterator[dict]:
    """The matters that are in only one of the Eleventh and Twelfth Schedules."""
    for m in table("local"):
        name = f"{m['schedule']} Schedule"
        yield row(m, "lookup", name.lower().replace(" ", "-"), choose(LOCAL, m["matter"]).format(x=m["matter"]), name)


def rows(parts: dict[str, str]) -> list[dict]:
    """The rows of every table."""
    return [*entries(), *amendments(), *cases(), *definitions(parts), *seats(), *local_matters()]


def statements() -> list[tuple[str, ...]]:
    """Each table row as a few equivalent sentences for the prose, never a question."""
    said: list[tuple[str, ...]] = []
    for e in table("seventh"):
        name, n, x = e["list"], e["entry"], e["subject"]
        said.append(
            (
                f"The {name} List, List {LISTS[name]} of the Seventh Schedule, names {x} in entry {n}.",
                f"{capital(x)}: entry {n} of the {name} List.",
                f"Among the matters of the {name} List is {x}.",
            )
        )
    for a in table("amendments"):
        o, year = a["ordinal"], f", {a['year']}," if "year" in a else ""
        for did in a["did"]:
            said.append(
                (
                    f"The {o} Amendment {did}.",
                    f"It was the {o} Amendment that {did}.",
                    f"The Constitution ({o} Amendment) Act{year} {did}.",
                )
            )
    for c in table("cases"):
        said.append(
            (
                f"In {c['case']} ({c['year']}) the Supreme Court held that {c['held']}.",
                f"{c['case']}, {c['year']}: {c['held']}.",
            )
        )
    for d in table("definitions"):
        a = f"Article {d['cites'][0]}"
        said.append((f'In {a}, "{d["term"]}" means {d["means"]}.', f'{a} defines "{d["term"]}" as {d["means"]}.'))
    for s in table("seats"):
        said.append((f"The number of seats of {s['place']} in the Council of States is {s['seats']}.",))
    for m in table("local"):
        said.append((f"The {m['schedule']} Schedule lists {m['matter']}.",))
    return said
