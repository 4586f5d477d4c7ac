"""Marks: people's verdicts on the answers as the metric `human`, and the agreement of every other metric with it.

Reads `marks.jsonl` files as the report's page saves them, `predictions/`, `scores/` and the split; writes `runs/<run>/marks.jsonl` and, last,
`reports/<run>/marks.json`. A mark is of a text: it holds for every variant with this text, and for none whose answer has changed.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np

from harness import storage
from harness.analysis import statistics
from harness.analysis.agreement import cohens_kappa
from harness.analysis.resampling import Floats, Totals, sign_flip_p
from harness.config import Config
from harness.errors import ArtifactError
from harness.records import (
    Agreement,
    Comparison,
    HumanPair,
    Mark,
    MarksResult,
    MetricValue,
    Prediction,
    Question,
    Score,
    Votes,
)
from harness.storage import RunFolder
from harness.variants import pairs as tested_pairs

log = logging.getLogger(__name__)

SIGNATURE = "human|v:1|marks:right=1,wrong=0,unsure=unscored"
VALUES = {"right": 1.0, "wrong": 0.0, "unsure": np.nan}
RIGHT = 0.5
"""A metric's score from which it calls an answer right."""


def add(run: RunFolder, config: Config, files: list[Path]) -> MarksResult:
    """Adds the marks of `files` to the run's, and scores again. Of two marks on one answer the later one counts.

    Raises:
        ArtifactError: a file is damaged or of another split, or a question or variant in it is not in this run. Nothing is written then.
    """
    comparison = storage.read_record(run.comparison_json, Comparison)
    questions = storage.read_records(run.heldout_jsonl, Question)
    known = {question.id for question in questions}
    new = [mark for file in files for mark in _checked(file, comparison, known)]
    old = storage.read_records(run.marks_jsonl, Mark) if run.marks_jsonl.exists() else []
    kept = list({_key(mark): mark for mark in [*old, *new] if mark.split_id == comparison.split_id}.values())
    result = judge(run, comparison, questions, kept, config)
    storage.write_jsonl(run.marks_jsonl, kept)
    storage.write_json(run.marks_json, result)
    log.info(f"{len(new)} read, {result.marks} marks and {result.votes} votes in use")
    for why, count in result.left_out.items():
        log.info(f"{count} left out: {why}")
    return result


def _checked(file: Path, comparison: Comparison, known: set[str]) -> list[Mark]:
    marks = storage.read_records(file, Mark)
    for row, mark in enumerate(marks, 1):
        problem = ""
        if mark.split_id != comparison.split_id:
            problem = f"was made on another split ({mark.split_id[:12]}, the run's is {comparison.split_id[:12]})"
        elif mark.id not in known:
            problem = f"marks question {mark.id[:80]!r}, which is not in this run"
        elif missing := [v for v in (mark.variant, mark.other) if v is not None and v not in comparison.variants]:
            problem = f"names variant {missing[0]!r}, which is not in this run"
        elif mark.kind == "mark" and mark.mark is None:
            problem = "has no mark (right, wrong or unsure)"
        elif mark.kind == "vote" and None in (mark.other, mark.other_answer, mark.prefers):
            problem = "is a vote without other, other_answer or prefers"
        if problem:
            raise ArtifactError(problem, "save the marks from the report of this run", file=file, row=row)
    return marks


def _key(mark: Mark) -> tuple[str, ...]:
    if mark.kind == "mark":
        return ("mark", mark.id, mark.answer)
    return ("vote", mark.id, *sorted((mark.variant, mark.other or "")))


def judge(
    run: RunFolder, comparison: Comparison, questions: list[Question], marks: list[Mark], config: Config
) -> MarksResult:
    """The metric `human` of each variant, its paired differences, the votes, and each metric's kappa."""
    texts = {
        v: {p.id: p.text for p in storage.iter_records(run.prediction(v)[0], Prediction)} for v in comparison.variants
    }
    said = {(m.id, m.answer): VALUES[m.mark or "unsure"] for m in marks if m.kind == "mark"}
    groups = [question.group for question in questions]
    columns = {
        variant: np.array([said.get((q.id, answers.get(q.id, "\0")), np.nan) for q in questions])
        for variant, answers in texts.items()
    }
    columns = {variant: values for variant, values in columns.items() if np.isfinite(values).any()}
    votes = [m for m in marks if m.kind == "vote"]
    valid = [
        m for m in votes if texts[m.variant].get(m.id) == m.answer and texts[m.other or ""].get(m.id) == m.other_answer
    ]
    given = {(id_, text) for answers in texts.values() for id_, text in answers.items()}
    stale = sum(key not in given for key in said) + len(votes) - len(valid)
    return MarksResult(
        run=run.name,
        split_id=comparison.split_id,
        marks=sum(key in given for key in said),
        votes=len(valid),
        left_out={"the answer has changed since": stale} if stale else {},
        human=_means(columns, groups, config),
        pairs=_pairs(columns, groups, config),
        preferences=_preferences(valid, {q.id: q.group for q in questions}, config),
        agreements=_agreements(run, columns, questions, config),
    )


def _means(columns: dict[str, Floats], groups: list[str], config: Config) -> dict[str, MetricValue]:
    if not columns:
        return {}
    settings = config.score
    found = statistics.mean_intervals(
        np.column_stack(list(columns.values())), groups, resamples=settings.resamples, seed=settings.seed
    )
    return {
        variant: MetricValue(
            value=e.value, ci95=e.ci95, n=e.n, n_unscored=len(groups) - e.n, signature=SIGNATURE, interval=e.method
        )
        for variant, e in zip(columns, found, strict=True)
    }


def _pairs(columns: dict[str, Floats], groups: list[str], config: Config) -> list[HumanPair]:
    named = tested_pairs(list(columns), {*config.predict.extra}) if columns else []
    both = [(a, b) for a, b in named if np.isfinite(columns[a] - columns[b]).any()]
    if not both:
        return []
    left, right = (np.column_stack([columns[pair[side]] for pair in both]) for side in (0, 1))
    settings = config.compare
    found = statistics.paired_differences(
        left, right, groups, resamples=settings.resamples, seed=settings.seed, family=[0] * len(both)
    )
    return [
        HumanPair(
            left=a,
            right=b,
            delta=d.value,
            ci95=d.ci95,
            p=d.p_adjusted,
            verdict=statistics.verdict(d.value, d.ci95, d.p_adjusted, settings.margin),
            n=d.n,
            wins=d.wins,
            losses=d.losses,
        )
        for (a, b), d in zip(both, found, strict=True)
    ]


def _preferences(votes: list[Mark], group_of: dict[str, str], config: Config) -> list[Votes]:
    """Votes by pair of variants, whichever stood first on the screen."""
    by_pair: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for vote in votes:
        pair = tuple(sorted((vote.variant, vote.other or "")))
        sign = {"variant": 1.0, "other": -1.0}.get(vote.prefers or "", 0.0)
        by_pair.setdefault((pair[0], pair[1]), []).append(
            (sign if pair[0] == vote.variant else -sign, group_of[vote.id])
        )
    found = []
    for (left, right), cast in sorted(by_pair.items()):
        counts = Counter(sign for sign, _ in cast)
        totals = Totals.of(np.array([sign for sign, _ in cast]), [group for _, group in cast])
        p = sign_flip_p(totals, flips=config.compare.resamples, seed=config.compare.seed)[0]
        found.append(
            Votes(left=left, right=right, for_left=counts[1.0], for_right=counts[-1.0], neither=counts[0.0], p=float(p))
        )
    return found


def _agreements(
    run: RunFolder, columns: dict[str, Floats], questions: list[Question], config: Config
) -> list[Agreement]:
    """Each metric against the marks, over the marked answers of all variants; one text of one question counts once."""
    people: list[bool] = []
    groups: list[str] = []
    metrics: list[dict[str, float | None]] = []
    counted: set[tuple[str, str]] = set()
    for variant, values in columns.items():
        scores = {s.id: s.scores for s in storage.iter_records(run.score(variant)[0], Score)}
        texts = {p.id: p.text for p in storage.iter_records(run.prediction(variant)[0], Prediction)}
        for question, value in zip(questions, values, strict=True):
            key = (question.id, texts.get(question.id, ""))
            if np.isfinite(value) and key not in counted and question.id in scores:
                counted.add(key)
                people.append(bool(value))
                groups.append(question.group)
                metrics.append(scores[question.id])
    found = []
    for metric in dict.fromkeys(name for row in metrics for name in row):
        rows = [i for i, row in enumerate(metrics) if row.get(metric) is not None]
        if not rows:
            continue
        one = [people[i] for i in rows]
        other = [(metrics[i][metric] or 0.0) >= RIGHT for i in rows]
        kappa, ci95 = cohens_kappa(
            one, other, [groups[i] for i in rows], resamples=config.score.resamples, seed=config.score.seed
        )
        share = sum(a == b for a, b in zip(one, other, strict=True)) / len(rows)
        found.append(Agreement(metric=metric, kappa=kappa, ci95=ci95, agreement=share, n=len(rows)))
    return found
