"""Whether fine-tuning is worth it against few-shot: the answer in a sentence, from pairs that were tested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from harness import registry, storage
from harness.records import AgainstFewShot, Pair, PredictionManifest, VariantResult, Verdict
from harness.report.headline import interval, percent, points
from harness.storage import RunFolder
from harness.variants import BASE_FEW_SHOT
from harness.variants import label as variant_label

ANSWERS: dict[Verdict, Literal["yes", "no", "cannot tell"]] = {
    "better": "yes",
    "worse": "no",
    "tied": "no",
    "identical": "no",
    "undecided": "cannot tell",
}
OPENINGS = {
    "yes": "Fine-tuning is worth it against few-shot",
    "no": "Fine-tuning is not worth it against few-shot",
    "cannot tell": "Whether fine-tuning beats few-shot is not decided yet",
}


def find(
    run: RunFolder, variants: Mapping[str, VariantResult], pairs: Sequence[Pair], primary: str
) -> Iterator[AgainstFewShot]:
    """One answer for each variant that was tested against `base_fewshot` on the primary metric, in the order of `pairs`.

    Args:
        variants: their means, by name.
        pairs: as compare tested them.
    """
    tested = [p for p in pairs if p.right == BASE_FEW_SHOT and p.metric == primary and p.delta is not None]
    if not tested:
        return
    form = storage.read_record(run.prediction(BASE_FEW_SHOT)[1], PredictionManifest).prompt
    examples = form.few_shot if form else 0
    for pair in tested:
        yield AgainstFewShot(
            variant=pair.left,
            answer=ANSWERS[pair.verdict],
            examples=examples,
            metric=primary,
            text=_text(pair, variants, examples),
        )


def _text(pair: Pair, variants: Mapping[str, VariantResult], examples: int) -> str:
    tuned, base = (percent(variants[name].metrics[pair.metric].value) for name in (pair.left, pair.right))
    span = "" if pair.ci95 is None else f", {'' if pair.verdict == 'identical' else '95% CI '}{interval(pair)}"
    shots = f"{examples} training example{'s' * (examples != 1)} in front of each question"
    return (
        f"{OPENINGS[ANSWERS[pair.verdict]]}: {variant_label(pair.left)} reaches {tuned} {registry.metric_inline(pair.metric)}, "
        f"the base with {shots} {base} ({points(pair.delta or 0.0)} points{span})."
    )
