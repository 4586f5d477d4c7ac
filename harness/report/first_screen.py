"""The top of the report: the identity of the run, its formats, strengths and weaknesses, three answers, leakage.

The decision itself was made by `harness.gating.shipping` and is part of the comparison; here it is only shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePath
from typing import Any

from harness.records import Breakdown, Comparison, Question, ShipCandidate
from harness.report.headline import find_pair, interval, megabytes, percent, points, primary_metric, tuned_variant
from harness.report.sections import NONE, Inputs
from harness.variants import ADAPTER, BASE, order
from harness.variants import label as variant_label

FEW = 10
"""Questions of a kind below which neither strength nor weakness is reported."""
NEAR = 0.5
"""Similarity to a training question from which two questions are near-duplicates by default."""
LONG = 280
"""Most characters shown of a question, and of an answer."""


def shown_variant(comparison: Comparison) -> str | None:
    """The variant that the first screen describes: what ships, else the one that represents fine-tuning."""
    chosen = comparison.shipping.variant if comparison.shipping else None
    return chosen if chosen in comparison.variants else tuned_variant(comparison)


# ------------------------------------------------------------------------------------------------------------- identity


def identity(inputs: Inputs) -> list[str]:
    """Model, data, rows, date and commit, each a few words; what is not known is left out."""
    comparison, train = inputs.comparison, inputs.train
    recorded = comparison.provenance
    config = mapping(recorded.get("config"))
    model = str((train.base.get("path") if train else None) or mapping(config.get("model")).get("path") or "")
    extra = mapping(mapping(config.get("predict")).get("extra"))
    source = str(recorded.get("split", {}).get("source") or (inputs.split.source if inputs.split else ""))
    rows = f"{train.rows:,} rows" if train else ""
    parts = []
    if train:
        data = f" of {PurePath(source).name}" if source else ""
        parts.append(f"{model_name(model)} fine-tuned on {rows}{data}")
    elif extra:
        parts.append(", ".join(f"{name} ({_where(value)})" for name, value in list(extra.items())[:3]))
    elif model:
        parts.append(model_name(model))
    tested = f"tested on {comparison.n:,} held-out questions in {comparison.n_groups:,} groups"
    parts.append(tested if train or not source else f"{tested} of {PurePath(source).name}")
    if date := measured_on(comparison):
        parts.append(date)
    git = recorded.get("git", {})
    if commit := git.get("commit"):
        parts.append(f"commit {commit[:10]}{' with uncommitted changes' if git.get('dirty') else ''}")
    return parts


def measured_on(comparison: Comparison) -> str:
    """When the last recorded stage ended, to the minute; empty if no stage was recorded."""
    ended = [end for stage in comparison.provenance.get("stages", {}).values() if (end := stage.get("ended"))]
    try:
        last = max(map(datetime.fromisoformat, ended))
    except (ValueError, TypeError):
        return ""
    return f"{last.day} {last:%b %Y, %H:%M} {last.tzname() or ''}".strip()


def model_name(path: str) -> str:
    """A hub name as it is, a folder by its last part."""
    name = path.removeprefix("hub:")
    return name if name.count("/") == 1 and not name.startswith(("data/", ".", "/")) else PurePath(name).name or name


def _where(value: Any) -> str:
    found = mapping(value)
    return model_name(str(found.get("adapter") or found.get("path") or found.get("backend") or ""))


def mapping(value: Any) -> Mapping[str, Any]:
    """A value of a recorded config, if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


# -------------------------------------------------------------------------------------------------------------- formats

LOSS_NOTE = (
    "What a format loses at most is a bound for these questions, by the gate's test; the tables of differences speak of all questions like "
    "these, and their intervals are wider where few questions differ."
)


def format_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row a variant that could be shipped: `label`, `quality`, `size`, `speed`, `loss`, `words`, `verdict`, `ship`."""
    shipping, metric = comparison.shipping, primary_metric(comparison)
    rows = []
    for candidate in shipping.candidates if shipping else []:
        result = comparison.variants.get(candidate.variant)
        if shipping is None or result is None:
            continue
        measured, cost = result.metrics.get(metric or ""), result.cost
        loss = NONE if candidate.loss_at_most is None else f"{points(candidate.loss_at_most, sign=False)} points"
        pair = find_pair(comparison.pairs, candidate.variant, shipping.reference or "", metric or "")
        if pair is not None and pair.verdict == "identical":
            loss = f"0 ({interval(pair)})"
        rows.append(
            {
                "variant": candidate.variant,
                "label": variant_label(candidate.variant),
                "quality": percent(measured.value) if measured else NONE,
                "size": megabytes(cost.size_bytes) if cost.size_bytes else NONE,
                "speed": f"{cost.tokens_per_second:,.0f}/s" if cost.tokens_per_second else NONE,
                "loss": "reference" if candidate.variant == shipping.reference else loss,
                "words": _in_words(candidate, shipping.reference),
                "verdict": candidate.verdict,
                "title": "; ".join(check.message for check in candidate.checks),
                "ship": candidate.variant == shipping.variant,
            }
        )
    return rows


def _in_words(candidate: ShipCandidate, reference: str | None) -> str:
    """The result of one variant's checks in a few words."""
    if candidate.verdict == "pass":
        return "good enough" if candidate.variant == reference else "as good"
    check = next(c for c in candidate.checks if c.verdict == candidate.verdict)
    if candidate.verdict == "fail":
        return {
            "gain": "gains too little",
            "loss": "loses too much",
            "size": "too large",
            "speed": "too slow",
            "kind": "too weak in a kind",
        }.get(check.kind, "no")
    more = f": ask {check.further_questions:,} more" if check.further_questions else ""
    return {"alarm": "doubtful: alarm", "speed": "speed unknown", "size": "size unknown"}.get(
        check.kind, f"cannot tell{more}"
    )


def adapter_note(comparison: Comparison) -> str:
    """Why the adapter and the 16-bit model are two rows."""
    both = ADAPTER in comparison.variants and comparison.shipping and comparison.shipping.reference != ADAPTER
    return (
        "The adapter is what was trained. Merging it into the base gave the 16-bit model, and the other files were made from that."
        if both
        else ""
    )


def ways(inputs: Inputs) -> list[dict[str, Any]]:
    """How each exported format is run elsewhere, what ships first: `label`, `ways`, `ship`, `at` (a number, for the page's anchors)."""
    artifacts = inputs.export.artifacts if inputs.export else {}
    ships = inputs.comparison.shipping.variant if inputs.comparison.shipping else None
    names = sorted((name for name in artifacts if artifacts[name].ways), key=lambda name: (name != ships, order(name)))
    return [
        {"label": variant_label(name), "ways": artifacts[name].ways, "ship": name == ships, "at": at}
        for at, name in enumerate(names)
    ]


# ---------------------------------------------------------------------------------------------- strengths and weaknesses


def strengths(comparison: Comparison) -> str:
    """Where the shown variant is surely better and worse than its own mean, in a sentence; empty without kinds of questions."""
    variant, metric = shown_variant(comparison), primary_metric(comparison)
    found = [b for b in comparison.breakdowns if (b.by, b.variant, b.metric) == ("kind", variant, metric)]
    result = comparison.variants[variant].metrics.get(metric or "") if variant else None
    if len(found) < 2 or result is None or result.value is None:
        return ""
    known = sorted((b for b in found if b.value is not None), key=lambda b: -(b.value or 0.0))
    strong = [b for b in known if b.ci95 and b.ci95[0] > result.value]
    weak = [b for b in reversed(known) if b.ci95 and b.ci95[1] < result.value and b.n >= FEW // 2]
    few = [b for b in known if b.n < FEW and b not in strong and b not in weak]
    parts = [
        f"{word}: {', '.join(_share(b) for b in some)}"
        for word, some in (("Strong", strong), ("Weak", weak), ("Too few to decide", few))
        if some
    ]
    if not strong and not weak:
        return ""
    return f"{'. '.join(parts)}. ({variant_label(variant or '')}, {percent(result.value)} overall.)"


def _share(b: Breakdown) -> str:
    value = b.value or 0.0
    of = f"{round(value * b.n)} of {b.n}" if b.n < 2 * FEW else f"{percent(value)} of {b.n}"
    return f"{b.bucket} ({of})"


# ------------------------------------------------------------------------------------------------------- three answers


def examples(inputs: Inputs) -> list[dict[str, Any]]:
    """Up to three real questions: one newly right, one still wrong, one that a format lost; `answers` are (who, text, mark)."""
    comparison = inputs.comparison
    metric, shown = primary_metric(comparison), shown_variant(comparison)
    if metric is None or shown is None:
        return []
    scores = {v: {s.id: s.scores.get(metric) for s in inputs.scores.get(v, [])} for v in comparison.variants}
    reference = comparison.shipping.reference if comparison.shipping else None
    base = comparison.shipping.base if comparison.shipping else BASE if BASE in scores else None
    found = []
    if base:
        found.append(_example(inputs, scores, "Newly right", "newly", shown, base, lambda a, b: a >= 1 > b))
    found.append(_example(inputs, scores, "Still wrong", "wrong", shown, base or shown, lambda a, b: a < 1 and b < 1))
    formats = [c.variant for c in comparison.shipping.candidates] if comparison.shipping else []
    formats.sort(key=lambda v: (v != shown, -comparison.variants[v].cost.size_bytes if v in comparison.variants else 0))
    for variant in formats:
        if reference and variant not in (reference, ADAPTER):
            title = f"Lost by {variant_label(variant)}"
            lost = _example(inputs, scores, title, "lost", variant, reference, lambda a, b: a < 1 <= b)
            if lost:
                found.append(lost)
                break
    return [entry for entry in found if entry]


def _example(
    inputs: Inputs,
    scores: dict[str, dict[str, float | None]],
    title: str,
    preset: str,
    left: str,
    right: str,
    wanted: Any,
) -> dict[str, Any] | None:
    """The shortest question whose (score of left, score of right) matches; among equals the first in the file."""
    a, b = scores.get(left, {}), scores.get(right, {})

    def fits(question: Question) -> bool:
        one, two = a.get(question.id), b.get(question.id)
        return one is not None and two is not None and wanted(one, two)

    question = min(filter(fits, inputs.questions), key=lambda q: len(q.question) + len(q.answer), default=None)
    if question is None:
        return None
    answers = []
    for variant in dict.fromkeys((right, left)):
        text = next((p.text for p in inputs.predictions.get(variant, []) if p.id == question.id), "")
        right_or_wrong = "right" if (scores[variant].get(question.id) or 0) >= 1 else "wrong"
        answers.append((variant_label(variant), _cut(text) or "(empty)", right_or_wrong))
    return {
        "title": title,
        "preset": preset,
        "count": sum(map(fits, inputs.questions)),
        "id": question.id,
        "question": _cut(question.question),
        "reference": _cut(question.answer),
        "answers": answers,
    }


def _cut(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= LONG else f"{flat[:LONG]}\u2026"


# ------------------------------------------------------------------------------------------------------------- one line


def leakage(inputs: Inputs) -> str:
    """Leakage between the sides of the split and its effect, in a line or two; empty without a split."""
    if inputs.split is None:
        return ""
    if not inputs.split.n_train:
        return "Leakage could not be checked: what the models were trained on was not given."
    found = inputs.split.leakage
    trained = found.get("questions_in_train") or 0
    first = f"{trained:,} held-out questions were trained on" if trained else "No held-out question was trained on"
    near = [q for q in inputs.questions if (q.nearest_train or 0) >= NEAR]
    if not near:
        return f"{first}, and none is a near-duplicate of a training question."
    text = f"{first}; {len(near):,} of {len(inputs.questions):,} are worded much like a training question (similarity {NEAR:g} or more)"
    variant, metric = shown_variant(inputs.comparison), primary_metric(inputs.comparison)
    values = {s.id: s.scores.get(metric or "") for s in inputs.scores.get(variant or "", [])}
    ids = {q.id for q in near}
    sides = [[v for i, v in values.items() if v is not None and (i in ids) is inside] for inside in (True, False)]
    if all(sides):
        means = [percent(sum(side) / len(side)) for side in sides]
        text += f". It scores {means[0]} on these and {means[1]} on the others"
    return f"{text}."


def alarm_line(comparison: Comparison) -> str:
    """Alarms in one line; each is given in full further down."""
    if not comparison.alarms:
        return "None: nothing was found that makes these numbers doubtful."
    messages = dict.fromkeys(
        f"{alarm.code.replace('_', ' ')}{f' ({variant_label(alarm.variant)})' if alarm.variant else ''}"
        for alarm in comparison.alarms
    )
    return f"{len(comparison.alarms)}: {', '.join(messages)}."
