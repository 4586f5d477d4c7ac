"""The table of facts: one row an article, a Schedule or a Part, hand-written, in `data/facts/*.jsonl`.

`generate.py` makes the systematic questions from it and `prose.py` the prose behind the embedded base model.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Point:
    """A short fact, worded to fit "<what> is <value>" and "What is <what>?"."""

    what: str
    value: str
    kind: str
    checked: dict | None = None
    """Sources and date of the text, `verified_against` and `text_as_of`, of a point that was checked by `verify.py`."""


@dataclass(frozen=True)
class Fact:
    """What one article, Schedule or the Preamble says."""

    key: str
    """`Article 58`, `Tenth Schedule` or `Preamble`."""
    article: str | None
    part: str | None
    part_title: str | None
    heading: str
    """The official marginal heading; of a Schedule, its subject."""
    subject: str
    """A noun phrase that means this article only: "Article 58 deals with <subject>"."""
    aliases: tuple[str, ...]
    gist: str
    authority: tuple[str, str] | None
    """(who, what they may do)."""
    points: tuple[Point, ...]
    must: bool = False
    """The authority has a duty (the text says "shall")."""
    right: bool = False
    """The authority has a right, not a power."""

    @property
    def name(self) -> str:
        """The name as written within a sentence."""
        return self.key if self.article else f"the {self.key}"

    @property
    def may(self) -> str:
        """The verb between the authority and its act: a power is one it may use, a duty one it is to perform."""
        return "is to" if self.must else "may"

    @property
    def group(self) -> str:
        """Keeps everything about this fact on one side of a split."""
        return self.key.lower().replace(" ", "-")


@dataclass(frozen=True)
class Part:
    """A Part of the Constitution."""

    number: str
    title: str
    subject: str
    articles: str

    @property
    def span(self) -> str:
        """`Articles 36 to 51`, or `Article 368`."""
        return f"Articles {self.articles}" if " to " in self.articles else f"Article {self.articles}"


def read(path: Path) -> list[dict]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def parts() -> list[Part]:
    """Every Part in force, in order."""
    return [Part(r["part"], r["title"], r["subject"], r["articles"]) for r in read(HERE / "facts" / "parts.jsonl")]


def facts() -> list[Fact]:
    """Every article in force in order, then the Preamble and the Schedules."""
    titles = {p.number: p.title for p in parts()}
    rows = [row for path in (HERE / "facts").glob("articles-*.jsonl") for row in read(path)]
    added = clauses()
    articles = [
        _fact(f"Article {r['article']}", r, titles, added)
        for r in sorted(rows, key=lambda r: article_order(r["article"]))
    ]
    schedules = [
        _fact("Preamble" if r.get("preamble") else f"{r['schedule']} Schedule", r, titles, added)
        for r in read(HERE / "facts" / "schedules.jsonl")
    ]
    return articles + schedules


def clauses() -> dict[str, list[Point]]:
    """The clause-level points of the longer articles and of the Schedules, by key."""
    points: dict[str, list[Point]] = {}
    for row in read(HERE / "facts" / "clauses.jsonl"):
        sources = {k: row[k] for k in ("cites", "verified_against", "text_as_of") if k in row}
        points.setdefault(row["key"], []).append(Point(row["what"], row["is"], row["kind"], sources))
    return points


def handwritten() -> list[dict]:
    """The hand-written question-answer pairs, file by file."""
    return [row for path in sorted((HERE / "handwritten").glob("*.jsonl")) for row in read(path)]


def article_order(number: str) -> tuple[int, str]:
    """Sorts 21 before 21A before 22, 239AB before 239B and 243Z before 243ZA."""
    match = re.fullmatch(r"(\d+)([A-Z]*)", number)
    if not match:
        raise ValueError(f"{number!r} is not an article number")
    return int(match[1]), match[2]


def capital(text: str) -> str:
    """The text with its first letter capitalised."""
    return text[:1].upper() + text[1:]


def _fact(key: str, row: dict, titles: dict[str, str], added: dict[str, list[Point]]) -> Fact:
    authority = row.get("authority") or {}
    return Fact(
        key=key,
        article=row.get("article"),
        part=row.get("part"),
        part_title=titles.get(row.get("part", "")),
        heading=row.get("heading", capital(row["subject"])),
        subject=row["subject"],
        aliases=tuple(row.get("aliases") or ()),
        gist=row["gist"],
        authority=(authority["who"], authority["does"]) if authority else None,
        must=bool(authority.get("must")),
        right=bool(authority.get("right")),
        points=(*(Point(p["what"], p["is"], p["kind"]) for p in row.get("points") or ()), *added.get(key, ())),
    )
