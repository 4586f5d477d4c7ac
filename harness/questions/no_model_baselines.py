"""Model-free baselines: what a split lets one score without a model.

A split that leaves paraphrases or shared answers on both sides is measured here: the better these three do, the less a score on it means.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain

from harness.metrics import configured
from harness.questions.dataset import Row
from harness.questions.normalised import normalised
from harness.questions.similarity import Shingles
from harness.records import Question
from harness.registry import default_metrics

COMMON = 0.005
LEAST = 5
"""Training questions that must contain a word of a template: this share of them, and at least this many."""
MAX_QUESTIONS = 2_000
"""Maximum held-out rows to measure on: ROUGE and nearest-neighbour search are slow."""


def measure(
    rows: Sequence[Row], train: Sequence[int], nearest: Mapping[int, int], normalizer: str = "plain"
) -> dict[str, dict[str, float]]:
    """Scores both baselines on one split.

    Args:
        rows: all rows; the other arguments are positions in it.
        train: the training side.
        nearest: held-out row -> the row of its nearest training question, the first of equals.
        normalizer: `score.normalizer`, so that these scores may be held against a model's.

    Returns:
        `nearest_train_copy` (the answer of the nearest training question),
        `rule_answer` (the commonest training answer to questions of the same template, `rule_answers`) and
        `constant_answer` (the commonest training answer, the first of equals) -> metric -> mean over the held-out rows (0..1).
    """
    asked = [rows[at] for at in nearest]
    # Counter.most_common keeps the order of first occurrence among equals.
    constant = Counter(rows[at].answer for at in train).most_common(1)[0][0]
    return {
        "nearest_train_copy": _score([rows[at].answer for at in nearest.values()], asked, normalizer),
        "rule_answer": _score(
            rule_answers([(rows[at].question, rows[at].answer) for at in train], [row.question for row in asked]),
            asked,
            normalizer,
        ),
        "constant_answer": _score([constant] * len(asked), asked, normalizer),
    }


def rule_answers(known: Sequence[tuple[str, str]], asked: Sequence[str]) -> list[str]:
    """Answers of a rule that sees only the phrasing: the most common answer to training questions of the same template.

    A template is the question with each run of words that fewer than `COMMON` of the training questions hold as one blank. A question whose template
    was not trained on gets the commonest answer of all. Of equals the first in the file.

    Args:
        known: (question, answer) pairs of the training side; not empty.
        asked: questions.
    """
    split = [normalised(question).split() for question, _ in known]
    held_by = Counter(chain.from_iterable(map(set, split)))
    needed = max(LEAST, COMMON * len(known))
    common = {word for word, count in held_by.items() if count >= needed}

    def template(words: Sequence[str]) -> tuple[str, ...]:
        found: list[str] = []
        for word in words:
            if word in common:
                found.append(word)
            elif not found or found[-1]:
                found.append("")
        return tuple(found)

    of_template: defaultdict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    for words, (_, answer) in zip(split, known, strict=True):
        counts = of_template[template(words)]
        counts[answer] = counts.get(answer, 0) + 1
    commonest = Counter(answer for _, answer in known).most_common(1)[0][0]
    # Skip a question that consists only of blanks.
    rules = {found: max(counts, key=counts.__getitem__) for found, counts in of_template.items() if any(found)}
    return [rules.get(template(normalised(question).split()), commonest) for question in asked]


def answers(train: Sequence[Question], heldout: Sequence[Question], ngram: int) -> dict[str, list[str]]:
    """Baseline -> its answer to each held-out question; the training side is not empty.

    Args:
        ngram: as `data.ngram`.
    """
    both = [question.question for question in (*train, *heldout)]
    at = list(range(len(train), len(both)))
    nearest, _ = Shingles(both, ngram).nearest(at, list(range(len(train))))
    constant = Counter(question.answer for question in train).most_common(1)[0][0]
    known = [(question.question, question.answer) for question in train]
    return {
        "nearest_train_copy": [train[row].answer for row in nearest.tolist()],
        "rule_answer": rule_answers(known, [question.question for question in heldout]),
        "constant_answer": [constant] * len(heldout),
    }


def random_heldout(rows: Sequence[Row], count: int, seed: int) -> list[int]:
    """Positions of a plain random held-out side of `count` rows, ignoring groups, for comparison in `measure`."""
    return sorted(
        sorted(range(len(rows)), key=lambda at: hashlib.sha256(f"{seed}\0random\0{rows[at].id}".encode()).digest())[
            :count
        ]
    )


def sample(heldout: Sequence[int]) -> list[int]:
    """The held-out rows to measure on: all, or `MAX_QUESTIONS` evenly spaced."""
    if len(heldout) <= MAX_QUESTIONS:
        return list(heldout)
    return [heldout[i * len(heldout) // MAX_QUESTIONS] for i in range(MAX_QUESTIONS)]


def _score(predictions: Sequence[str], asked: Sequence[Row], normalizer: str) -> dict[str, float]:
    metrics = [configured(name, normalizer) for name in default_metrics(normalizer)]
    scores: list[list[float]] = [[] for _ in metrics]
    # Row by row: a metric that shares its tokens or tables with the one before it finds them in its cache.
    for prediction, row in zip(predictions, asked, strict=True):
        references = [row.answer, *row.references]
        for metric, scored in zip(metrics, scores, strict=True):
            score = metric.score_one(prediction, references)
            if score is not None:
                scored.append(score)
    # A metric that can score none of the answers is left out: a mean over nothing is NaN.
    return {
        name: sum(scored) / len(scored)
        for name, scored in zip(default_metrics(normalizer), scores, strict=True)
        if scored
    }
