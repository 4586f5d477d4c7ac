"""The account of a split: how rows were grouped, what conflicts, what needs no model to answer, what to be warned of."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib.metadata import version

from harness.config import Config, Data
from harness.questions import no_model_baselines
from harness.questions.grouping import EXAMPLES, Groups, Link
from harness.questions.normalised import normalised
from harness.questions.rows import Row
from harness.questions.sides import Sides
from harness.questions.similarity import Shingles, nearest_method, window
from harness.records import Question
from harness.records.split import Conflict, LargeGroup, MergedPair, SimilarityMethod

LARGE_GROUP = 0.1
"""Share of its side's rows above which a group of several rows is warned of."""
LARGE_ROWS = 5
"""Rows that a group must have for that: in a small side any group is a large share."""
SHARE_TOLERANCE = 0.2
"""Relative difference between the share asked for and the share realised from which it is warned of."""
FEW_QUESTIONS = 100
"""Held-out questions below which only large differences can be seen."""
MAX_CONFLICTS = 200
REASONS = ("group", "duplicate_question", "near_duplicate", "long_answer")


def method(rows: Sequence[Row], groups: Groups, sides: Sides, data: Data) -> SimilarityMethod:
    """`SplitManifest.similarity`."""
    return {
        "method": "character n-gram Jaccard; MinHash-LSH candidates, exact decision; what varies among look-alikes and the answers decide",
        "nearest": nearest_method(len(sides.heldout), len(sides.learned)),
        "ngram": data.ngram,
        "threshold": data.similarity,
        "long_answer_words": data.long_answer_words,
        "datasketch": version("datasketch"),
        "pairs_compared": groups.pairs_compared,
        "window": window(len(rows)),
        "rows_with_more_look_alikes_than_window": groups.rows_in_full_buckets,
        "rows_with_stock_answers": groups.rows_with_stock_answers,
        "chains_cut": groups.chains_cut,
        "kept_apart": groups.n_kept_apart,
        "kept_apart_examples": [_example(rows, link) for link in groups.kept_apart],
    }


def largest(questions: Sequence[Question], side_of: Sequence[str]) -> list[LargeGroup]:
    """The ten largest groups; `side_of` names each question's side."""
    sizes: Counter[str] = Counter()
    first: dict[str, int] = {}
    for at, question in enumerate(questions):
        sizes[question.group] += 1
        first.setdefault(question.group, at)
    return [
        {
            "group": group,
            "rows": count,
            "share": round(count / len(questions), 6),
            "side": side_of[first[group]],
            "example": questions[first[group]].question,
        }
        for group, count in sizes.most_common(10)
    ]


def merges(links: Sequence[Link]) -> dict[str, int]:
    """How many links each reason made."""
    counts = Counter(link.reason for link in links)
    return {reason: counts[reason] for reason in REASONS}


def merge_examples(rows: Sequence[Row], links: Sequence[Link]) -> list[MergedPair]:
    """A few links of each reason."""
    return [_example(rows, link) for reason in REASONS for link in [k for k in links if k.reason == reason][:EXAMPLES]]


def _example(rows: Sequence[Row], link: Link) -> MergedPair:
    similarity = None if link.similarity is None else round(link.similarity, 3)
    return {
        "reason": link.reason,
        "left": rows[link.left].question,
        "right": rows[link.right].question,
        "similarity": similarity,
    }


def conflicts(rows: Sequence[Row]) -> list[Conflict]:
    """Questions (with their contexts) whose rows do not accept one another's answers."""
    same_question: dict[tuple[str, str | None], list[Row]] = defaultdict(list)
    for row in rows:
        same_question[normalised(row.question), row.context].append(row)
    found: list[Conflict] = []
    for same in same_question.values():
        if len(same) == 1:
            continue
        accepted = [{normalised(text) for text in (row.answer, *row.references)} for row in same]
        if not set.intersection(*accepted):
            answers = list(dict.fromkeys(row.answer for row in same))
            found.append({"question": same[0].question, "answers": answers, "rows": [row.row for row in same]})
    return found


def baselines(
    rows: Sequence[Row], shingles: Shingles, sides: Sides, copied: dict[int, int], config: Config
) -> dict[str, dict[str, dict[str, float]]]:
    """`SplitManifest.baselines`; `copied` is held-out row -> nearest training row."""
    if not sides.learned or not sides.heldout:
        return {}
    asked, normalizer = no_model_baselines.sample(sides.heldout), config.score.normalizer
    nearest = {at: copied[at] for at in asked}
    found = {"grouped": no_model_baselines.measure(rows, sides.learned, nearest, normalizer)}
    if not config.data.test:
        heldout = no_model_baselines.random_heldout(rows, len(sides.heldout), config.data.seed)
        train = sorted(set(range(len(rows))).difference(heldout))
        asked = no_model_baselines.sample(heldout)
        best, _ = shingles.nearest(asked, train)
        nearest = dict(zip(asked, best.tolist(), strict=True))
        found["random"] = no_model_baselines.measure(rows, train, nearest, normalizer)
    return found


def warnings(questions: Sequence[Question], sides: Sides, n_conflicts: int, data: Data) -> list[str]:
    """What the user should know before trusting the split."""
    found = [*_large_groups(questions, sides)]
    n_heldout = len(sides.heldout)
    if not data.test:
        for what, key, side, size in (
            ("held out", "heldout", sides.heldout, data.heldout),
            ("for dev", "dev", sides.dev, data.dev_size),
        ):
            asked, share = (size if size < 1 else size / len(questions)), len(side) / len(questions)
            if asked and abs(share - asked) > SHARE_TOLERANCE * asked:
                hint = f"data.{key}={max(2, round(size * len(questions)))}, a count, is met to within a group"
                found.append(
                    f"{share:.1%} of the rows are {what}, not {asked:.1%}: whole groups go to one side, by chance "
                    f"({hint if size < 1 else 'try another data.seed'})"
                )
    if n_heldout < FEW_QUESTIONS:
        found.append(
            f"only {n_heldout} questions are held out, which shows large differences only: hold out more (data.heldout), "
            "or give a test file (data.test)"
        )
    if n_conflicts:
        shown = f"; the first {MAX_CONFLICTS} are listed" if n_conflicts > MAX_CONFLICTS else ""
        found.append(f"{n_conflicts} questions have several different answers; each is kept on one side{shown}")
    if n_heldout > no_model_baselines.MAX_QUESTIONS and sides.learned:
        found.append(
            f"the no-model baselines were measured on {no_model_baselines.MAX_QUESTIONS} of {n_heldout} held-out rows"
        )
    return found


def _large_groups(questions: Sequence[Question], sides: Sides) -> list[str]:
    found: list[tuple[float, str]] = []
    for what, side in (("training", sides.train), ("dev", sides.dev), ("held-out", sides.heldout)):
        sizes = Counter(questions[at].group for at in side)
        examples = {questions[at].group: questions[at].question for at in reversed(side)}
        for group, count in sizes.most_common():
            share = count / len(side)
            if count < LARGE_ROWS or share <= LARGE_GROUP:
                break
            message = f"{share:.0%} of the {what} rows ({count}) form one group, like {examples[group][:100]!r}"
            found.append((count, message))
    return [message for _, message in sorted(found, key=lambda item: -item[0])]
