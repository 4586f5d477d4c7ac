"""Figures from columns of the QA file: the kind of answer, questions without an answer, and facts asked in several ways.

The columns are `answer_type`, `answerable`, `twin` and `fact`; a file without them has no such figures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.analysis import statistics
from harness.metrics.text import legal_tokens
from harness.records import Figure, Question, TaughtScores
from harness.registry import metric_inline

DECIDES = {
    "short": ("exact_match_normalized",),
    "yes-no": ("exact_match_normalized",),
    "list": ("point_recall", "rougeL"),
    "long": ("point_recall", "rougeL"),
}
"""`answer_type` -> the metric that judges such an answer; the second where the question lists no points."""
EXACT = "exact_match_normalized"


@dataclass(frozen=True)
class Answers:
    """One variant's answers and scores, in the order of the questions."""

    variant: str
    texts: Sequence[str | None]
    """None: the question failed."""
    scores: Mapping[str, NDArray[np.float64]]
    """Metric -> one score a question; NaN: unscored."""


def find(
    questions: Sequence[Question], answers: Sequence[Answers], primary: str, easy_kinds: Sequence[str] = ()
) -> list[Figure]:
    """Every figure that the questions and metrics allow, for every variant.

    Args:
        easy_kinds: kinds that a rule answers without a model, the easiest first: the primary metric is also reported without the first of them,
            without the first two, and so on.
    """
    found: list[Figure] = []
    for side in answers:
        found += _without_easy_kinds(questions, side, primary, easy_kinds)
        found += _by_answer_type(questions, side)
        found += _abstention(questions, side)
        found += _consistency(questions, side)
    return found


def _figure(name: str, label: str, side: Answers, values: NDArray[np.float64], groups: Sequence[str]) -> Figure:
    """The mean of the scored values with its interval, from a bootstrap over groups."""
    estimate = statistics.mean_intervals(values, list(groups), resamples=0, seed=0)[0]
    return Figure(name=name, label=label, variant=side.variant, value=estimate.value, ci95=estimate.ci95, n=estimate.n)


def _of(name: str, label: str, side: Answers, questions: Sequence[Question], values: Mapping[int, float]) -> Figure:
    """The figure over some of the questions: position -> value."""
    groups = [questions[at].group for at in values]
    return _figure(name, label, side, np.array(list(values.values()), dtype=np.float64), groups)


def taught(scores: TaughtScores, primary: str) -> list[Figure]:
    """The second held-out side on the primary metric: paraphrases of training questions, which enter no other figure.

    The label names the score of copying the nearest training answer, since a search finds most of these.
    """
    copied = scores.nearest_train_copy.get(primary)
    beside = "" if copied is None else f" (the nearest training answer: {copied:.0%})"
    label = f"Trained questions in other words, {metric_inline(primary)}{beside}"
    values = {variant: means[primary] for variant, means in scores.variants.items() if primary in means}
    return [
        Figure(name="taught", label=label, variant=variant, value=mean.value, ci95=mean.ci95, n=mean.n)
        for variant, mean in values.items()
    ]


# ------------------------------------------------------------------------------------------- easy kinds, kinds of answer


def _without_easy_kinds(
    questions: Sequence[Question], side: Answers, primary: str, easy_kinds: Sequence[str]
) -> Iterator[Figure]:
    scores = side.scores.get(primary)
    kinds = {question.kind for question in questions}
    for count in range(1, len(easy_kinds) + 1):
        left_out = easy_kinds[:count]
        if scores is None or left_out[-1] not in kinds:
            continue
        kept = {at: float(scores[at]) for at, question in enumerate(questions) if question.kind not in left_out}
        label = f"{metric_inline(primary)} without {' and '.join(left_out)}"
        if kept:
            yield _of(f"without_{'_'.join(left_out)}", label[:1].upper() + label[1:], side, questions, kept)


def _by_answer_type(questions: Sequence[Question], side: Answers) -> Iterator[Figure]:
    """The metric that each answer type decides, over all questions and for each type."""
    chosen: dict[str, dict[int, float]] = defaultdict(dict)
    for at, question in enumerate(questions):
        kind = question.extra.get("answer_type")
        metrics = [m for m in DECIDES.get(kind, ()) if m in side.scores] if isinstance(kind, str) else []
        scores = [float(side.scores[m][at]) for m in metrics]
        if scores:
            chosen[str(kind)][at] = next((score for score in scores if not np.isnan(score)), float("nan"))
    if not chosen:
        return
    everything = {at: value for values in chosen.values() for at, value in values.items()}
    yield _of("by_answer_type", "Each answer by the metric of its type", side, questions, everything)
    for kind in (kind for kind in DECIDES if kind in chosen):
        named = " or ".join(metric_inline(m) for m in DECIDES[kind] if m in side.scores)
        yield _of(f"answer_type_{kind}", f"Answers of type {kind}: {named}", side, questions, chosen[kind])


# -------------------------------------------------------------------------------------------------------- abstention


def answerable(question: Question) -> bool:
    """False where the QA file says that the question has no answer."""
    return question.extra.get("answerable") is not False


def abstains(text: str, refusals: set[tuple[str, ...]]) -> bool:
    """Whether an answer is one of the refusals, or begins with one."""
    tokens = tuple(legal_tokens(text))
    return any(tokens[: len(refusal)] == refusal for refusal in refusals)


def _abstention(questions: Sequence[Question], side: Answers) -> Iterator[Figure]:
    """The share of refusals where they are right and where they are wrong; reported together, since each alone is easily reached."""
    none = [question for question in questions if not answerable(question)]
    texts = {text for question in none for text in (question.answer, *question.references)}
    refusals = {tokens for text in texts if (tokens := tuple(legal_tokens(text)))}
    if not refusals or len(none) == len(questions):
        return
    refused = {at: float(abstains(t, refusals)) if t is not None else np.nan for at, t in enumerate(side.texts)}
    right = {at: value for at, value in refused.items() if not answerable(questions[at])}
    wrong = {at: value for at, value in refused.items() if answerable(questions[at])}
    twins = {at: value for at, value in wrong.items() if questions[at].extra.get("twin")}
    yield _of("correct_abstention", "Refused where there is no answer", side, questions, right)
    yield _of("false_abstention", "Refused though there is an answer", side, questions, wrong)
    if twins:
        yield _of("false_abstention_twins", "Refused the answerable twin", side, questions, twins)


# ------------------------------------------------------------------------------------------------------- consistency


def _consistency(questions: Sequence[Question], side: Answers) -> Iterator[Figure]:
    """Facts asked in several ways: how many are answered the same way, all right or all wrong, and how many are all right."""
    asked: dict[str, list[int]] = defaultdict(list)
    for at, question in enumerate(questions):
        if isinstance(question.extra.get("fact"), str):
            asked[question.extra["fact"]].append(at)
    exact = side.scores.get(EXACT)
    several = [rows for rows in asked.values() if len(rows) > 1]
    if exact is None or not several:
        return
    rates = np.array([float(np.mean(exact[rows])) for rows in several])
    groups = [questions[rows[0]].group for rows in several]
    known = ~np.isnan(rates)
    same = np.where(known, (rates == 0) | (rates == 1), np.nan).astype(float)
    right = np.where(known, rates == 1, np.nan).astype(float)
    yield _figure("consistency", "Facts with all phrasings right, or none", side, same, groups)
    yield _figure("all_phrasings_right", "Facts with all phrasings right", side, right, groups)
