"""Two baselines, or a run and a baseline: whether they are comparable, what changed between them, and what would be lost."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from harness.records import Baseline
from harness.report.headline import percent, points

SCORE_NEUTRAL_SECTIONS = ("gate", "ship", "compare", "wandb", "tracking", "description")
"""Sections of the config that cannot change a score."""


def differs(old: Baseline, new: Baseline, variants: Collection[str], metrics: Collection[str]) -> Iterator[str]:
    """Differences that make scores incomparable; empty if they are comparable.

    The held-out questions must be the same, not the rows that were trained on: other training data is a change like any other.
    """
    for variant in variants:
        for name, side in (("baseline", old), ("run", new)):
            if variant not in side.variants:
                yield f"variant {variant} is not in the {name}"
    for metric in metrics:
        if metric not in old.metrics:
            yield f"metric {metric} is not in the baseline"
        elif old.metrics[metric] != new.metrics[metric]:
            yield f"metric signature: {old.metrics[metric]} in the baseline, {new.metrics[metric]} in the run"
    before, after = ({question.id: question.sha256 for question in side.questions} for side in (old, new))
    changed = [id_ for id_ in before if id_ in after and before[id_] != after[id_]]
    gone, added = [id_ for id_ in before if id_ not in after], [id_ for id_ in after if id_ not in before]
    if changed or gone or added:
        yield f"held-out questions: {len(gone)} gone, {len(added)} new, {len(changed)} reworded; split {old.split_id[:12]} in the baseline, {new.split_id[:12]} in the run"
    elif list(before) != list(after):
        yield "held-out questions: the same in another order"
    elif old.prompts_sha256 != new.prompts_sha256:
        yield f"prompts: {old.prompts_sha256[:12]} in the baseline, {new.prompts_sha256[:12]} in the run (template, tokenizer, or special tokens)"
    for line in _unequal(old.generation, new.generation):
        yield f"generation: {line}"


def changes(old: Baseline, new: Baseline) -> list[str]:
    """What changed and may be the cause: settings, training rows, package versions, weights."""
    settings = [{k: v for k, v in side.config.items() if k not in SCORE_NEUTRAL_SECTIONS} for side in (old, new)]
    found = [f"setting {line}" for line in _unequal(*map(_flat, settings))]
    if old.split_id != new.split_id:
        found.append("training or held-out rows")
    found += [f"package {line}" for line in _unequal(*(side.provenance.get("packages", {}) for side in (old, new)))]
    found += [f"machine {line}" for line in _unequal(*(side.provenance.get("machine", {}) for side in (old, new)))]
    for variant in (v for v in old.variants if v in new.variants):
        for what in ("backend", "weights_sha256"):
            a, b = (getattr(side.variants[variant], what) for side in (old, new))
            if a != b:
                found.append(f"{variant} {what} {a[:20]} -> {b[:20]}")
    commits = [side.provenance.get("git", {}).get("commit") or "unknown" for side in (old, new)]
    return found + ([f"commit {commits[0][:12]} -> {commits[1][:12]}"] if commits[0] != commits[1] else [])


def losses_against(old: Baseline, new: Baseline) -> list[str]:
    """What `new` lacks or has less of than `old`: variants, metrics, and any lower mean, comparable or not, since small losses saved one after another add up."""
    found = [f"{variant} is not in run {new.run}" for variant in old.variants if variant not in new.variants]
    found += [f"{metric} is not gated any more" for metric in old.metrics if metric not in new.metrics]
    for variant, before in old.variants.items():
        for metric, mean in before.means.items():
            after = new.variants[variant].means.get(metric) if variant in new.variants else None
            if (
                mean is not None
                and after is not None
                and after < mean
                and old.metrics[metric] == new.metrics.get(metric)
            ):
                found.append(
                    f"{variant} {metric} would go from {percent(mean)} to {percent(after)} ({points(after - mean)} points)"
                )
    return found


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def _unequal(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(old.keys() | new.keys()):
        before, after = (side.get(key, "absent") for side in (old, new))
        if before != after:
            yield f"{key} {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
