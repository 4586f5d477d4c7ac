"""Invariants of the tables of facts, the QA file, the prose and the data card."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from itertools import chain
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"
sys.path.insert(0, str(DATA))

from facts import article_order, facts, parts, read  # noqa: E402
from generate import card, render, rows  # noqa: E402
from prose import corpus  # noqa: E402

# The articles in force after the 106th Amendment (2023), listed independently of the tables. Compared with the public copies in
# civictech-India/constitution-of-india (constitution_of_india.json, in samples) and deepaksood619/deepaksood619.github.io
# (docs/knowledge/law/constitution-of-india/constitution.md, all of it), which misprints 243Y and 338B and predates 330A, 332A and 334A.
OMITTED = {31, 232, 238, 242, 259, 272, 278, 291, 306, 314, 362, *range(379, 392)}
LETTERED = """
    21A 31A 31B 31C 39A 43A 43B 48A 51A 124A 124B 124C 134A 139A 224A 233A 239A 239AA 239AB 239B
    243A 243B 243C 243D 243E 243F 243G 243H 243I 243J 243K 243L 243M 243N 243O 243P 243Q 243R 243S 243T 243U 243V 243W 243X 243Y 243Z
    243ZA 243ZB 243ZC 243ZD 243ZE 243ZF 243ZG 243ZH 243ZI 243ZJ 243ZK 243ZL 243ZM 243ZN 243ZO 243ZP 243ZQ 243ZR 243ZS 243ZT
    244A 246A 258A 269A 279A 290A 300A 312A 323A 323B 330A 332A 334A 338A 338B 342A 350A 350B 361A 361B 363A
    371A 371B 371C 371D 371E 371F 371G 371H 371I 371J 372A 378A 394A
""".split()
ARTICLES = {str(n) for n in range(1, 396) if n not in OMITTED} | set(LETTERED)
# Repealed, and so without rows, but a sentence may name them.
NAMEABLE = ARTICLES | {str(n) for n in OMITTED} | set("2A 31D 32A 35A 131A 144A 226A 228A 257A 268A 329A 359A".split())
PARTS = "I II III IV IVA V VI VIII IX IXA IXB X XI XII XIII XIV XIVA XV XVI XVII XVIII XIX XX XXI XXII".split()
ORDINALS = "First Second Third Fourth Fifth Sixth Seventh Eighth Ninth Tenth Eleventh Twelfth".split()
KINDS = {
    "lookup",
    "content",
    "part",
    "authority",
    "term",
    "definition",
    "scenario",
    "exception",
    "procedure",
    "comparison",
}
KINDS |= {"amendment", "case", "transition"}

FACTS = facts()
COMMITTED = (DATA / "constitution_qa.json").read_text(encoding="utf-8")
ROWS = json.loads(COMMITTED)


def normalised(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def sentences(text: str) -> str:
    """The text normalised sentence by sentence, so that nothing matches across a full stop."""
    return " | ".join(normalised(sentence) for sentence in re.split(r"(?<=[.?])\s", text))


def texts(row: dict) -> list[str]:
    return [row["question"], row["answer"], *row.get("references", [])]


def offending(rows: list[dict], wrong) -> list[str]:
    return [row["question"] for row in rows if wrong(row)]


def ambiguous(phrases) -> dict[str, set[str]]:
    """The phrases that mean more than one fact."""
    owners = defaultdict(set)
    for phrase, key in phrases:
        owners[normalised(phrase)].add(key)
    return {phrase: keys for phrase, keys in owners.items() if len(keys) > 1}


def test_the_file_and_the_card_are_what_the_generator_makes():
    made = rows()
    assert render(made) == COMMITTED, "run `make data`"
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    assert card(readme, made) == readme, "run `make data`"
    assert f"| **{len(made):,}** |" in readme


def test_size():
    assert len(ROWS) >= 6000
    assert sum(r["kind"] == "scenario" for r in ROWS) >= 500
    assert sum(r.get("source") == "hand" for r in ROWS) >= 1500
    assert sum(r["kind"] == "part" for r in ROWS) <= 60
    assert not offending(ROWS, lambda r: r["kind"] == "scenario" and r.get("source") != "hand")


def test_every_article_in_force_has_one_row_of_facts_and_questions():
    numbers = [f.article for f in FACTS if f.article]
    assert len(ARTICLES) == 471
    assert set(numbers) == ARTICLES
    assert len(numbers) == len(ARTICLES)
    assert {r["article"] for r in ROWS} - {None} == ARTICLES


def test_articles_are_in_official_order():
    numbers = [f.article for f in FACTS if f.article]
    assert numbers == sorted(numbers, key=article_order)
    assert [n for n in numbers if n.startswith("239")] == ["239", "239A", "239AA", "239AB", "239B"]


def test_every_part_and_schedule_is_covered():
    assert [p.number for p in parts()] == PARTS
    assert {r["part"] for r in ROWS} - {None} == set(PARTS)
    groups = {r["group"] for r in ROWS}
    assert {f"{o.lower()}-schedule" for o in ORDINALS} | {"preamble"} <= groups


def test_articles_lie_within_the_range_of_their_part():
    ranges = {p.number: [article_order(n) for n in p.articles.split(" to ")] for p in parts()}
    for fact in FACTS:
        if fact.article:
            assert ranges[fact.part][0] <= article_order(fact.article) <= ranges[fact.part][-1], fact.key
    flat = list(chain.from_iterable(ranges.values()))
    assert flat == sorted(flat), "the Parts overlap"
    part_of = {f.article: f.part for f in FACTS}
    assert not offending(ROWS, lambda r: r["article"] and r["part"] != part_of[r["article"]])


def test_schedules_name_articles_in_force():
    named = [n for row in read(DATA / "facts" / "schedules.jsonl") for n in row["articles"]]
    assert set(named) <= ARTICLES


def test_fields():
    assert {r["kind"] for r in ROWS} == KINDS
    assert not offending(
        ROWS, lambda r: not all(isinstance(t, str) and t.strip() == t != "" for t in [*texts(r), r["group"]])
    )
    assert not offending(ROWS, lambda r: "references" in r and not r["references"])
    assert not offending(ROWS, lambda r: len(set(texts(r))) < len(texts(r)))
    assert not offending(ROWS, lambda r: r["article"] and r["group"] != f"article-{r['article'].lower()}")
    allowed = {
        "question",
        "answer",
        "references",
        "article",
        "part",
        "kind",
        "group",
        "source",
        "answer_type",
        "must_mention",
    }
    allowed |= {"answerable", "twin", "fact", "cites", "verified_against", "text_as_of"}
    assert not offending(ROWS, lambda r: set(r) - allowed)


def test_text_is_printable_ascii():
    assert {c for r in ROWS for t in texts(r) for c in t if not " " <= c <= "~"} == set()
    assert not offending(ROWS, lambda r: any(re.search(r"  | [,.;?]|\.\.|[{}]", t) for t in texts(r)))


def test_no_question_is_there_twice():
    asked = Counter(normalised(r["question"]) for r in ROWS)
    assert [q for q, n in asked.items() if n > 1] == []


def test_questions_are_questions_and_answers_are_short():
    assert not offending(ROWS, lambda r: not r["question"].endswith(("?", ".")))
    assert not offending(ROWS, lambda r: "?" in r["answer"])
    assert not offending(ROWS, lambda r: len(re.findall(r"(?<!per cent)[.!](?= [A-Z]|$)", r["answer"])) > 3)


@pytest.mark.parametrize(
    ("pattern", "known"),
    [
        (r"\bArticles? (\d+[A-Z]{0,2})\b", NAMEABLE),
        (r"\bPart ([IVX]+[AB]?)\b", {*PARTS, "VII"}),
        (r"\b([A-Z]\w+(?:th|st|nd|rd)) Schedule\b", set(ORDINALS)),
    ],
)
def test_what_a_row_names_exists(pattern: str, known: set[str]):
    named = {(name, r["question"]) for r in ROWS for t in texts(r) for name in re.findall(pattern, t)}
    assert named
    assert [(name, q) for name, q in named if name not in known] == []


def test_a_lookup_answers_with_its_own_article():
    lookups = [r for r in ROWS if r["kind"] == "lookup" and r["article"] and r.get("source") != "hand"]
    assert len(lookups) >= 2 * len(ARTICLES) - 5
    assert not offending(lookups, lambda r: r["answer"] != f"Article {r['article']}")
    named = {n for r in ROWS if r["kind"] == "lookup" for n in re.findall(r"\bArticles? (\d+[A-Z]*)", r["answer"])}
    assert named == ARTICLES


def test_a_phrase_means_one_fact():
    assert ambiguous((phrase, f.key) for f in FACTS for phrase in (f.subject, *f.aliases)) == {}
    assert ambiguous((p.what, f.key) for f in FACTS for p in f.points) == {}
    assert ambiguous((f.authority[1], f.key) for f in FACTS if f.authority) == {}


def test_tables_hold_phrases_not_sentences():
    phrases = [
        (f.key, t)
        for f in FACTS
        for t in [f.subject, *f.aliases, *chain(*((p.what, p.value) for p in f.points)), *(f.authority or ())]
    ]
    assert [(key, t) for key, t in phrases if not t or t != t.strip() or t.endswith((".", "?", ","))] == []
    assert [f.key for f in FACTS if not re.fullmatch(r"[A-Z].*[^.]\.", f.gist)] == []


def head(phrase: str) -> str:
    """The noun that the verb of "What is <phrase>?" agrees with."""
    prepositions = "of|in|on|for|to|by|at|from|with|within|without|before|after|until|up|as|between"
    stop = rf" (?:{prepositions}|that|which|whose|who|when|if|a|an|the|\w+(?:ing|ed))\b"
    return re.split(stop, re.sub(r"^(the|an?) ", "", phrase))[0].split()[-1]


def test_what_is_asks_for_one_thing():
    singular = {"basis", "census", "class", "means", "process"}
    plural = [
        (f.key, p.what) for f in FACTS for p in f.points if head(p.what).endswith("s") and head(p.what) not in singular
    ]
    assert plural == []
    assert [(f.key, p.what) for f in FACTS for p in f.points if not p.what.startswith(("the ", "a ", "an "))] == []


@pytest.fixture(scope="module")
def prose() -> str:
    return "\n".join(corpus(0))


def test_prose_asks_nothing(prose: str):
    assert "?" not in prose
    stated = sentences(prose)
    assert not offending(ROWS, lambda r: sentences(r["question"]) in stated)


def test_prose_states_every_fact(prose: str):
    for fact in FACTS:
        assert fact.subject in prose, fact.key
        assert fact.gist in prose, fact.key
        for point in fact.points:
            whole = re.compile(rf"{re.escape(point.what[1:])}[^.]*{re.escape(point.value)}")
            assert len(whole.findall(prose)) >= 3, (fact.key, point.what)


def test_prose_is_reproducible_and_varies():
    assert corpus(3) == corpus(3) != corpus(4)
