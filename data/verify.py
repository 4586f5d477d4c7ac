"""Checks the rows with `cites` against public copies of the Constitution, and records the copies that confirm each row.

    python data/verify.py --official constitution-2024.txt --wiki WIKI --parts PARTS --schedules SCHEDULES [--stamp]

- `--official`: the text of the official edition as on 1 May 2024, by `pypdf` out of `backend/Datasets/Constitution.pdf` of
  Smart-India-Hackathon-24/Samvidhan_Seekho_1703_SIH-24
- `--wiki`: a checkout of jaishrm07/Indian-Constitution-wiki (`src/content/articles`, `src/content/cases`)
- `--parts`: a checkout of Ayush12358/TheConstitutionOfIndia (`PART_*`, `SCHEDULE_*`, `AMENDMENTS`, `docs/amendments.csv`)
- `--schedules`: a checkout of anoopdixith/TheConstitutionOfIndia (`SCHEDULE_*`), for entries of the Schedules that have not changed

A copy confirms a row if it contains every provision that the row cites, every number of the answer, and the names and most of the content
words of the answer. Numbers and words of the question are not looked for, since a scenario may introduce its own. Two copies are needed. Rows
that fail are listed; `reviewed.txt` names the questions that a person compared with the text and found right although the script could not.
`--stamp` writes `verified_against` and `text_as_of` into the tables and the hand-written files.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections import Counter
from pathlib import Path

from facts import HERE, article_order, facts, read
from gradable import FIGURE, FRACTION, NUMBERS, PARTS, WORD_NUMBER, value_of

NAMES = {
    "official": "Government of India, official edition as on 1 May 2024",
    "wiki": "jaishrm07/Indian-Constitution-wiki, 2026-04-16",
    "parts": "Ayush12358/TheConstitutionOfIndia, 2026-08-08",
    "schedules": "anoopdixith/TheConstitutionOfIndia, 2015-04-23",
    "exams": "Agni98/constitution-for-exams, read 2026-11-25",
}
TEXT_AS_OF = "2026-04-16"
ORDINALS = "First Second Third Fourth Fifth Sixth Seventh Eighth Ninth Tenth Eleventh Twelfth".split()
SHARE = 0.6
"""Share of the content words of an answer that the cited text must contain."""
STOP = set(
    """the and that this with for from not but are was were has have had may can shall must its his her their them they who whom whose which
    what when where under article articles schedule constitution only into upon such any all one two each every same than then there those
    yes because does do did been being also other others more most less least while until unless between without within both by of to in on
    or as at it is be an if no so over out up after before about against his he she
    allows allow lets let says say excludes forbids forbid saves names name gives give proviso requires require keeps keep covers makes make
    treats takes bars bar excepts except reaches asks applies apply speaks begins stands works provides protects expressly obliges lists
    him here used cannot never questioned disappears ends end explanation duty entitles limits extends own said itself""".split()
)


def articles_of_wiki(folder: Path) -> dict[str, str]:
    """Article number to official text, out of the front matter of each page."""
    found = {}
    for path in (folder / "src/content/articles").glob("article-*.md"):
        text = path.read_text(encoding="utf-8")
        number = re.search(r"^number: '?([0-9A-Z]+)'?", text, re.MULTILINE)
        body = re.search(r"^officialText: *(.*?)^(?=\w+:|---)", text, re.MULTILINE | re.DOTALL)
        if number and body:
            found[number[1]] = body[1]
    return found


def texts_of_parts(folder: Path) -> dict[str, str]:
    """Article number or Schedule to text, out of one file a Part or Schedule, and `Amendment N` to the Act and its summary."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("PART_*/*.md")):
        text = path.read_text(encoding="utf-8")
        starts = list(re.finditer(r"^#{0,4} *(?:\d+[A-Z]*\. )?\[?(\d+[A-Z]{0,2})\. ?(?=[\[A-Z“])", text, re.MULTILINE))
        for start, end in zip(starts, [*starts[1:], None], strict=False):
            found[start[1]] = found.get(start[1], "") + text[start.start() : end.start() if end else None]
    for n, name in enumerate(ORDINALS, 1):
        found[f"{name} Schedule"] = (folder / f"SCHEDULE_{n}/SCHEDULE{n}.md").read_text(encoding="utf-8")
    found["Preamble"] = (folder / "PREAMBLE/Preamble.md").read_text(encoding="utf-8")
    for row in csv.DictReader((folder / "docs/amendments.csv").open(encoding="utf-8")):
        act = folder / f"AMENDMENTS/AMENDMENT_{int(row['number']):02}_ACT.txt"
        words = act.read_text(encoding="utf-8", errors="replace") if act.exists() else ""
        found[f"Amendment {int(row['number'])}"] = f"{row['title']} {row['assent_date']} {row['key_changes']} {words}"
    return found


def texts_of_schedules(folder: Path) -> dict[str, str]:
    """The text of each Schedule of a copy that has one text file a Schedule."""
    files = {f"{name} Schedule": folder / f"SCHEDULE_{n}/SCHEDULE{n}.txt" for n, name in enumerate(ORDINALS, 1)}
    return {name: path.read_text(encoding="utf-8", errors="replace") for name, path in files.items() if path.exists()}


def texts_of_official(path: Path) -> dict[str, str]:
    """Article number or Schedule to text, out of the running text of the printed edition."""
    text = path.read_text(encoding="utf-8")
    body = text.index("WE, THE PEOPLE OF INDIA")
    end = text.rindex("FIRST SCHEDULE\n") if "FIRST SCHEDULE\n" in text else len(text)
    starts, at = [], body
    for fact in facts():
        if not fact.article:
            continue
        opening = re.compile(rf"(?:^|[\n\[\]*])\s*{fact.article}\.\s*(?=(?:\d?\[)*[A-Z])[^—]{{0,400}}(?:—|\.-)")
        match = opening.search(text, at)
        if match and match.start() < at + 60_000:
            starts.append((fact.article, match.start()))
            at = match.end()
    found = {"Preamble": text[body : body + 1500]}
    for (number, start), following in zip(starts, [*[s for _, s in starts[1:]], end], strict=False):
        found[number] = text[start:following]
    places, at = [], starts[-1][1]
    for name in ORDINALS:
        match = re.compile(rf"{name.upper()}\s+SCHEDULE").search(text, at)
        if match:
            places.append((f"{name} Schedule", match.start()))
            at = match.end()
    for (name, start), following in zip(
        places, [*[s for _, s in places[1:]], text.find("APPENDIX I", at)], strict=False
    ):
        found[name] = text[start:following]
    return found


def numbers(text: str) -> set[str]:
    """Every number of a text as figures: whole numbers and fractions, whether in words or in figures."""
    text = re.sub(r"(?<=[a-z])-\s+(?=[a-z])", "-", re.sub(r"\s+", " ", text))
    text = re.sub(r"\bevery fifth year", "every five years", text)
    days = {"first": 1, "fifth": 5, "seventh": 7, "nineteenth": 19, "twenty-fourth": 24, "twenty-sixth": 26}
    dated = {str(n) for word, n in days.items() if re.search(rf"\b{word} day\b", text, re.IGNORECASE)}
    named = {f"{NUMBERS[m[1].lower()]}/{PARTS[m[2].lower()]}" for m in FRACTION.finditer(text)}
    rest = FRACTION.sub(" ", text)
    whole = {str(value_of(m[0])) for m in WORD_NUMBER.finditer(rest)}
    return named | dated | whole | {m[0].replace(",", "") for m in FIGURE.finditer(rest)}


def stem(word: str) -> str:
    """A word without its commonest endings, so that "appoints" matches "appointed"."""
    return re.sub(r"(?:ations?|ments?|ings?|edly|ed|ers?|ors?|es|s|ly|e|al|ion|ions)$", "", word) or word


def words(text: str) -> set[str]:
    """The stems of the content words of a text."""
    text = re.sub(r"-\s*\n\s*", "", text)
    return {stem(w) for w in re.findall(r"[a-z]{3,}", text.lower()) if w not in STOP}


def cites_removed(text: str) -> str:
    """The answer without the references to articles, clauses, entries and Schedules, whose numbers are not numbers of the text."""
    text = re.sub(
        r"\b(?:Articles?|clauses?|entry|entries|paragraphs?|Form|Part|List|section) (?:\d+|[IVX]+)[A-Z]*(?:\(\w+\))*",
        " ",
        text,
    )
    text = re.sub(
        r"\b(?:,|and|or|to) \d{1,3}[A-Z]{0,2}\b(?:\(\w+\))*(?! \w*(?:day|year|month|member|per cent))", " ", text
    )
    return re.sub(r"\b(?:clause |sub-clause )?\((?:\d+[A-Z]*|[a-z]{1,3})\)", " ", text)


def problems(row: dict, copy: dict[str, str]) -> list[str]:
    """Why a copy does not confirm a row; empty if it does."""
    missing = [c for c in row["cites"] if c not in copy]
    if missing:
        return [f"has no {', '.join(missing)}"]
    if row.get("answerable") is False:
        return []
    text = " ".join(copy[c] for c in row["cites"])
    answer, question = cites_removed(row["answer"]), row["question"]
    found = []
    if strange := numbers(answer) - numbers(text) - numbers(cites_removed(question)) - {"0", "1", "2"}:
        found.append(f"figures {sorted(strange)}")
    new_words = words(WORD_NUMBER.sub(" ", answer)) - words(question)
    known = words(text)
    if (
        new_words
        and len(new_words & known) / len(new_words) < SHARE
        and len(new_words - known) > 1 - row.get("kind", "").startswith("term")
    ):
        found.append(f"words {sorted(new_words - known)}")
    return found


def checked_rows() -> list[tuple[Path, int, dict]]:
    """Every row with `cites`: its file, line and a question and answer to check (of a table row, its sentence)."""
    rows = []
    for path in [*sorted((HERE / "facts").glob("*.jsonl")), *sorted((HERE / "handwritten").glob("*.jsonl"))]:
        for line, row in enumerate(read(path)):
            if "cites" in row:
                rows.append((path, line, shown(row)))
    return rows


def shown(row: dict) -> dict:
    """A row of a table as a question and an answer."""
    if "question" in row:
        return row
    if "what" in row:
        pair = (row["what"], row["is"])
    elif "list" in row:
        pair = (f"{row['list']} List entry {row['entry']}", row["subject"])
    elif "did" in row:
        pair = (f"Amendment {row['number']}", f"{row.get('year', '')} {'; '.join(row['did'])}")
    elif "term" in row:
        pair = (row["term"], row["means"])
    elif "place" in row:
        pair = (row["place"], str(row["seats"]))
    elif "matter" in row:
        pair = (row["schedule"], row["matter"])
    else:
        pair = (row["case"], f"{row['held']}")
    return {"question": pair[0], "answer": pair[1], "cites": row["cites"], "row": row}


def case_years(folder: Path) -> dict[str, str]:
    """The title of each case page of the wiki in lower case, and its year."""
    found = {}
    for path in (folder / "src/content/cases").glob("*.md"):
        head = path.read_text(encoding="utf-8").split("---")[1]
        title, year = re.search(r"^title: *(.*)$", head, re.MULTILINE), re.search(r"^year: *(\d+)", head, re.MULTILINE)
        if title and year:
            found[title[1].lower()] = year[1]
    return found


def check_case(row: dict, years: dict[str, str]) -> str | None:
    """The problem of a case row, if the wiki has no case of that name and year."""
    key = [w for w in re.findall(r"[a-z]{4,}", row["full"].lower()) if w not in ("state", "union", "india", "justice")][
        :2
    ]
    match = [year for title, year in years.items() if sum(w in title for w in key) >= min(2, len(key))]
    return None if str(row["year"]) in match else f"year {row['year']}, wiki {match}"


def seventh_entry(row: dict, copy: dict[str, str]) -> dict[str, str]:
    """The Seventh Schedule cut down to the entry that a row is about."""
    text = copy.get("Seventh Schedule", "")
    lists = re.split(r"List\s+I{1,3}\s*[—–-]+\s*\w+\s+List", text)
    part = lists[{"Union": 1, "State": 2, "Concurrent": 3}[row["list"]]] if len(lists) > 3 else text
    entry = re.search(rf"(?:^|[\n\[.\s]){row['entry']}\.\s(.*?)(?=[\n\[\s]\d{{1,2}}[A-Z]?\.\s|\Z)", part, re.DOTALL)
    return {"Seventh Schedule": entry[1]} if entry else {}


def judge(
    row: dict, copies: dict[str, dict[str, str]], years: dict[str, str], reviewed: set[str]
) -> tuple[list[str], list[str]]:
    """(copies that confirm a row, problems of the others)."""
    source = row.get("row", {})
    if "held" in source or row.get("group", "").startswith("case-"):
        trouble = check_case(source, years) if "held" in source else "the holding is checked by reading"
        return ([] if trouble and row["question"] not in reviewed else ["wiki", "exams"]), [trouble] if trouble else []
    amendment = any(c.startswith("Amendment ") for c in row["cites"])
    if amendment:
        trouble = problems(row, copies["parts"])
        return ([] if trouble and row["question"] not in reviewed else ["parts", "exams"]), trouble
    good, bad = [], []
    for name, copy in copies.items():
        held = seventh_entry(source, copy) if "list" in source else copy
        trouble = problems(row, held)
        cited = all(c in held for c in row["cites"])
        if not trouble or (row["question"] in reviewed and cited):
            good.append(name)
        else:
            bad.append(f"{name}: {'; '.join(trouble)}")
    return good, bad


def stamp(verdicts: dict[Path, dict[int, list[str]]]) -> None:
    """Writes `verified_against` into the rows that two copies confirm, and removes it from the others."""
    for path, lines in verdicts.items():
        rows = read(path)
        for line, good in lines.items():
            row = {k: v for k, v in rows[line].items() if k not in ("verified_against", "text_as_of")}
            if len(good) >= 2:
                row |= {"verified_against": [NAMES[name] for name in good[:2]], "text_as_of": TEXT_AS_OF}
            rows[line] = row
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def main() -> None:
    """Reports each row that fewer than two copies confirm; exit code 1 if there is one."""
    parser = argparse.ArgumentParser(description="Check the rows with cites against public copies of the Constitution.")
    for name in ("official", "wiki", "parts", "schedules"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--stamp", action="store_true", help="write verified_against into the rows")
    given = parser.parse_args()
    copies = {
        "official": texts_of_official(given.official),
        "wiki": articles_of_wiki(given.wiki),
        "parts": texts_of_parts(given.parts),
        "schedules": texts_of_schedules(given.schedules),
    }
    for name, copy in copies.items():
        known = [f.article for f in facts() if f.article and f.article not in copy and name != "schedules"]
        print(f"{name}: {len(copy)} texts; articles not found: {' '.join(sorted(known, key=article_order)) or 'none'}")
    years = case_years(given.wiki)
    reviewed = {
        q.strip() for q in (HERE / "reviewed.txt").read_text(encoding="utf-8").splitlines() if q.strip() and q[0] != "#"
    }
    verdicts: dict[Path, dict[int, list[str]]] = {}
    tally: Counter[str] = Counter()
    for path, line, row in checked_rows():
        good, bad = judge(row, copies, years, reviewed)
        verdicts.setdefault(path, {})[line] = good
        tally["borne out" if len(good) >= 2 else "not borne out"] += 1
        tally["by reading"] += row["question"] in reviewed
        if len(good) < 2:
            print(f"{path.name}:{line + 1}: {row['question']} => {row['answer']}\n    {' | '.join(bad)}")
    print(", ".join(f"{n:,} {what}" for what, n in tally.items()))
    if given.stamp:
        stamp(verdicts)
    sys.exit(1 if tally["not borne out"] else 0)


if __name__ == "__main__":
    main()
