"""The report's views of where a result comes from: how it is repeated, its split, and each number's signature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.records import Comparison, PromptForm, Provenance, SplitManifest
from harness.registry import BASELINE_LABELS, metric_label, metric_order
from harness.report.headline import percent
from harness.report.sections import NONE, metrics_of


def signatures(comparison: Comparison) -> list[dict[str, Any]]:
    """Each metric's signature and interval method; several signatures of one metric are a warning."""
    found = []
    for metric in metrics_of(comparison):
        values = [result.metrics[metric] for result in comparison.variants.values() if metric in result.metrics]
        marks, methods = (
            sorted({value.signature for value in values}),
            sorted({value.interval for value in values if value.interval}),
        )
        found.append({"metric": metric_label(metric), "signatures": marks, "intervals": methods})
    return found


def provenance(value: Mapping[str, Any], short: int = 8) -> dict[str, Any]:
    """`facts`: a row for each short part; `folded`: (title, rows) of the long parts, the config among them."""
    facts, folded = [], []
    for key, inner in value.items():
        if words := _in_words(key, inner):
            facts.append(words)
            continue
        rows = [(name.removeprefix(f"{key}."), text) for name, text in flatten({key: inner})]
        if key == "config" or len(rows) > short:
            folded.append((key, rows))
        elif key not in ("commands", "schema_version"):
            facts.append((key, " \u00b7 ".join(text if name == key else f"{name} {text}" for name, text in rows)))
    return {"facts": facts, "folded": folded}


def _in_words(key: str, value: Any) -> tuple[str, str] | None:
    """Values that are rendered as a sentence instead of key by key."""
    if not isinstance(value, Mapping):
        return None
    if key == "git" and value.get("commit"):
        clean = "with changes that were not committed" if value.get("dirty") else "working tree clean"
        return "harness", f"commit {value['commit']}, {clean}"
    if key == "split" and {"source", "n_train", "n_heldout", "n_groups_train", "n_groups_heldout"} <= value.keys():
        text = (
            f"{value['source']} (sha256 {str(value.get('source_sha256', ''))[:12]}), seed {value.get('seed')}:"
            f" {value['n_train']:,} training questions in {value['n_groups_train']:,} groups,"
            f" {value['n_heldout']:,} held out in {value['n_groups_heldout']:,}"
        )
        return "questions", text
    return None


def ways_of_asking(prompts: Mapping[str, PromptForm]) -> list[tuple[str, PromptForm]]:
    """Each form of prompt once, with the names of the variants that were asked so."""
    names: dict[str, list[str]] = {}
    for variant, form in prompts.items():
        names.setdefault(form.model_dump_json(), []).append(variant)
    return [(", ".join(found), prompts[found[0]]) for found in names.values()]


def grouping(split: SplitManifest) -> dict[str, Any]:
    """The scores of the no-model baselines on this split and on a random one: `columns` and `rows` (metric, then percentages)."""
    measured = [(name, side) for side in ("grouped", "random") for name in split.baselines.get(side, {})]
    measured.sort(
        key=lambda pair: list(BASELINE_LABELS).index(pair[0]) if pair[0] in BASELINE_LABELS else len(BASELINE_LABELS)
    )
    found = {metric for side in split.baselines.values() for values in side.values() for metric in values}
    metrics = sorted(found, key=metric_order)
    columns = [
        f"{BASELINE_LABELS.get(name, name)}, {'this split' if side == 'grouped' else 'random split'}"
        for name, side in measured
    ]
    values = [split.baselines[side][name] for name, side in measured]
    return {
        "columns": ["Metric", *columns],
        "numeric": [False, *[True] * len(columns)],
        "rows": [[metric_label(m), *(percent(v[m]) if m in v else NONE for v in values)] for m in metrics],
    }


def commands(value: Provenance) -> list[str]:
    """The commands that reproduce the run: the checkout, as a comment, and its stages; empty if none was recorded."""
    found, git = list(value.get("commands", [])), value.get("git", {})
    commit = git.get("commit")
    if found and commit:
        changed = ", with changes that were not committed" if git.get("dirty") else ""
        found.insert(0, f"# harness at commit {commit}{changed}")
    return found


def flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted key, text) rows."""
    rows = []
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping) and inner:
            rows += flatten(inner, f"{name}.")
        else:
            rows.append((name, NONE if inner is None else str(inner)))
    return rows
