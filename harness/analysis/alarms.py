"""What makes the numbers of a comparison doubtful; shown next to the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from harness import storage
from harness.config import Compare
from harness.metrics.text import words
from harness.records import Alarm, Prediction, PredictionManifest, Question, ScoreManifest, SplitManifest
from harness.storage import RunFolder

SHOWN = 40
"""Characters of an answer in a message."""


def find(
    run: RunFolder,
    manifests: Mapping[str, ScoreManifest],
    questions: Sequence[Question],
    tuned: Collection[str],
    limits: Compare,
) -> Iterator[Alarm]:
    """The alarms of a run's variants.

    Args:
        manifests: by variant.
        questions: the held-out questions.
        tuned: the variants whose answers should differ from those of `base`.
        limits: of the alarms that have one; any other alarm is raised by a single answer.
    """
    yield from of_split(storage.read_record(run.split_json, SplitManifest))
    texts, prompts = {}, {}
    asked = {name: storage.read_record(run.prediction(name)[1], PredictionManifest) for name in manifests}
    for name in manifests:
        texts[name], prompts[name] = _answers(run, name)
    first = next((name for name in manifests if asked[name].asked == "run"), next(iter(manifests)))
    expected = commonest([question.answer, *question.references] for question in questions)[1]
    for name, manifest in manifests.items():
        runaway = manifest.finish.get("length", 0) / manifest.n
        if runaway > limits.runaway_limit:
            message = f"{name}: {runaway:.1%} of the answers were cut at {manifest.generation.get('max_new_tokens', '?')} tokens"
            yield Alarm(code="runaway", variant=name, message=message, value=runaway, limit=limits.runaway_limit)
        answer, share = commonest([text] for text in texts[name].values())
        if share - expected > limits.constant_limit:
            message = f"{name}: {share:.1%} of the answers are {answer[:SHOWN]!r}; the commonest reference is that of {expected:.1%} of the questions"
            yield Alarm(
                code="constant_answers",
                variant=name,
                message=message,
                value=share - expected,
                limit=limits.constant_limit,
            )
        for finding in asked[name].findings:
            yield Alarm(code=finding.code, variant=name, message=f"{name}: {finding.message}", value=1.0, limit=0.0)
        unlike = sum(ids != prompts[first].get(question) for question, ids in prompts[name].items())
        unlike = unlike if asked[name].asked == "run" else 0
        untuned = texts.get(f"{name}.base", texts.get("base"))
        same = manifest.n if name in tuned and texts[name] == untuned else 0
        for code, count, what in (
            ("prompts_cut", manifest.prompts_cut, "prompts did not fit into the context"),
            ("empty_answers", manifest.empty_answers, "answers are empty"),
            ("unscored", manifest.finish.get("error", 0), "answers failed and are unscored"),
            ("prompt_mismatch", unlike, f"prompts have other token ids than those of {first}"),
            ("adapter_without_effect", same, "answers are the base's own: the adapter had no effect"),
        ):
            if count:
                message = f"{name}: {count} of {manifest.n} {what}"
                yield Alarm(code=code, variant=name, message=message, value=count / manifest.n, limit=0.0)


def of_split(split: SplitManifest) -> Iterator[Alarm]:
    """The alarms of a split: training rows that leak held-out questions, or that leakage could not be checked."""
    leakage = split.leakage
    if leakage.get("checked") is False:
        message = (
            "whether held-out questions leaked into training could not be checked: what the models were trained on was not given "
            "(data.trained_on names it)"
        )
        yield Alarm(code="leakage_unknown", variant=None, message=message)
        return
    exact, near = leakage.get("questions_in_train", 0), leakage.get("near_duplicates_in_train", 0)
    if exact or near:
        message = (
            f"{exact + near} of {split.n_heldout} held-out questions leak: {exact} are also training questions, "
            f"{near} have near-duplicates among those"
        )
        yield Alarm(code="leakage", variant=None, message=message, value=(exact + near) / split.n_heldout, limit=0.0)


def commonest(answers: Iterable[Collection[str]]) -> tuple[str, float]:
    """The commonest answer, as lower-case words, and its share (0..1) of the questions, each of which has one or several. Blank ones are not counted.

    Constant-answer alarm: share(most common answer) - share(most common reference) exceeds a limit. Where there are only two answers, such as yes and
    no, one is the reference of at least half of the questions, so the difference cannot exceed a half.
    """
    counts: Counter[str] = Counter()
    n = 0
    for several in answers:
        n += 1
        counts.update({folded for text in several if (folded := " ".join(words(text)))})
    # Of equals the first in the alphabet, since the order of a set differs between processes.
    text, count = min(counts.items(), key=lambda item: (-item[1], item[0]), default=("", 0))
    return text, count / n if n else 0.0


def _answers(run: RunFolder, name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Question id -> text, and question id -> hash of the prompt's ids, computed again: a stored hash proves nothing about other tokens."""
    texts, prompts = {}, {}
    for prediction in storage.iter_records(run.prediction(name)[0], Prediction):
        texts[prediction.id] = prediction.text
        prompts[prediction.id] = storage.sha256_json(prediction.prompt_ids)
    return texts, prompts
