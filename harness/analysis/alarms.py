"""What makes the numbers of a comparison doubtful; told next to the verdict."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from harness import store
from harness.records import Alarm, Prediction, ScoreManifest
from harness.store import RunFolder


def find(run: RunFolder, manifests: Mapping[str, ScoreManifest], tuned: Collection[str], *, runaway_limit: float) -> Iterator[Alarm]:
    """The alarms of a run's variants.

    Args:
        manifests: by variant.
        tuned: the variants that should answer otherwise than `base`.
        runaway_limit: share of answers (0..1) cut at the token limit from which an alarm is raised; of all else, one answer raises it.
    """
    texts, prompts = {}, {}
    for name in manifests:
        texts[name], prompts[name] = _answers(run, name)
    first = next(iter(manifests))
    for name, manifest in manifests.items():
        runaway = manifest.finish.get("length", 0) / manifest.n
        if runaway > runaway_limit:
            message = f"{name}: {runaway:.1%} of the answers were cut at {manifest.generation.get('max_new_tokens', '?')} tokens"
            yield Alarm(code="runaway", variant=name, message=message, value=runaway, limit=runaway_limit)
        unlike = sum(ids != prompts[first].get(question) for question, ids in prompts[name].items())
        same = manifest.n if name in tuned and texts[name] == texts.get("base") else 0
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


def _answers(run: RunFolder, name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Question id -> text, and question id -> hash of the prompt's ids, taken anew: a stored hash cannot vouch for other tokens."""
    texts, prompts = {}, {}
    for prediction in store.iter_records(run.prediction(name)[0], Prediction):
        texts[prediction.id] = prediction.text
        prompts[prediction.id] = store.sha256_json(prediction.prompt_ids)
    return texts, prompts
