"""The report's two pages, from the views and the templates: report.html and report.md.

Everything that came from outside (questions, answers, names, settings) is text. In HTML it is autoescaped, its control and direction characters
are made visible, and data for the script is kept in islands that cannot be closed from within. The page's policy lets its own two scripts run,
by hash, and nothing else, from nowhere else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness import registry, variants
from harness.records import Comparison, Pair
from harness.report import (
    answers,
    figures,
    first_screen,
    headline,
    leaderboard,
    marks_section,
    provenance_section,
    sections,
    two_runs,
)
from harness.report.charts import inline_svg
from harness.report.charts import training as training_charts
from harness.report.charts.bars import bars
from harness.report.charts.forest import forest
from harness.report.charts.pareto import pareto
from harness.report.charts.plotly_base import Drawing
from harness.report.sections import Inputs

TEMPLATES = Path(__file__).parent / "templates"
MAX_MARKDOWN = 65_000
"""Characters: the longest comment that a code host takes is 65,536."""
INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)
"""Characters that hide, reorder or break text. Joiners (U+200C, U+200D) are left: Indic scripts and emoji need them."""


def html(
    inputs: Inputs,
    others: Sequence[Inputs],
    tested: Sequence[Pair],
    refused: Mapping[str, str],
    config: dict[str, Any],
    fingerprint: str,
) -> str:
    """The whole page.

    Args:
        inputs: the run.
        others: further runs: their curves are overlaid and their numbers are shown beside this run's.
        tested: pairs across runs, named `run/variant`.
        refused: run -> why it is not compared with this one.
        config: the resolved config, shown where the comparison's provenance has none.
        fingerprint: of all inputs; kept in the page, so that an unchanged report is not written again.
    """
    comparison = inputs.comparison
    style, script = (TEMPLATES / "report.css").read_text("utf-8"), _script()
    plotly = _plotly()
    drawings = _drawings(inputs, others)
    # Plotly adds an empty style element and fills it through the CSSOM: the policy has the hash of the empty text for it.
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest(script)}' 'sha256-{plotly.digest}'; style-src 'sha256-{digest(style)}' 'sha256-{digest('')}';"
        " img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return (
        environment(escape=True)
        .get_template("report.html.j2")
        .render(
            c=comparison,
            inputs=inputs,
            policy=Markup(policy),
            fingerprint=fingerprint,
            style=Markup(style),
            script=Markup(script),
            plotly=plotly,
            figures=_island(
                {key: {"description": d.description, "height": d.height, **d.plotly} for key, d in drawings.items()}
            ),
            drawings=drawings,
            answers=_packed(json.dumps(answers.answers(inputs), ensure_ascii=True, separators=(",", ":"))),
            versus=two_runs.versus(inputs, others, tested, refused),
            identities=[(i.comparison.run, first_screen.identity(i)) for i in (inputs, *others)],
            runs=answers.runs_table(inputs, others, tested, refused),
            trainings=answers.trainings_table([inputs, *others]) if others else None,
            losses=answers.regression_lists(inputs, 5),
            examples=first_screen.examples(inputs),
            markdown=_island(_render_markdown(inputs, [], None, two_runs.versus(inputs, others, tested, refused))),
            teeth=_grouped_by_length(comparison),
            ways=first_screen.ways(inputs),
            fidelity=sections.fidelity_rows(comparison),
            all_runs=[comparison.run, *(other.comparison.run for other in others)],
            provenance=comparison.provenance | ({} if "config" in comparison.provenance else {"config": config}),
            **shared(inputs),
        )
    )


def markdown(inputs: Inputs, others: Sequence[Inputs], tested: Sequence[Pair], refused: Mapping[str, str]) -> str:
    """The short form, of what `html` takes; details are left out, longest first, until it is under MAX_MARKDOWN characters."""
    runs = answers.runs_table(inputs, others, tested, refused)
    versus = two_runs.versus(inputs, others, tested, refused)
    for limit in (10, 5, 3, 1, 0):
        lists = answers.regression_lists(inputs, limit) if limit else []
        text = _render_markdown(inputs, lists, runs, versus)
        if len(text) < MAX_MARKDOWN:
            return text
    return text[: MAX_MARKDOWN - 100].rpartition("\n")[0] + "\n\nCut: the whole report is in report.html.\n"


def _render_markdown(
    inputs: Inputs, lists: list[dict[str, Any]], runs: dict[str, Any] | None, versus: list[two_runs.Versus]
) -> str:
    template = environment(escape=False).get_template("report.md.j2")
    return template.render(
        c=inputs.comparison, inputs=inputs, runs=runs, regressions=lists, versus=versus, **shared(inputs)
    )


def _script() -> str:
    """The page's own script, one text: its parts share their helpers."""
    parts = {name: (TEMPLATES / f"{name}.js").read_text("utf-8") for name in ("report", "marks")}
    return parts["report"].replace("  // marks.js\n", parts["marks"])


def visible(text: str) -> str:
    """`text` with every character that hides, reorders or breaks text written out as its code point."""
    return INVISIBLE.sub(lambda found: f"\u27e8U+{ord(found[0]):04X}\u27e9", text)


def code(text: str, limit: int = 600) -> str:
    """Untrusted text as one Markdown code span: nothing in it is read as markup, a mention or a link."""
    flat = visible(" ".join(text.split()))
    if not flat:
        return "(empty)"
    if len(flat) > limit:
        flat = f"{flat[:limit]}\u2026 ({len(text):,} characters)"
    runs = re.findall("`+", flat)
    fence = "`" * (max(map(len, runs), default=0) + 1)
    return f"{fence} {flat} {fence}" if runs else f"{fence}{flat}{fence}"


def plain(text: str) -> str:
    """Untrusted text in a Markdown sentence or table cell: what could be markup, a mention or a link is escaped."""
    escaped = re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", visible(" ".join(text.split())))
    escaped = escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("@", "&#64;").replace("://", "&#58;//").replace("www.", "www&#46;")


def shared(inputs: Inputs) -> dict[str, Any]:
    """What every page of a run shows: report.html, report.md, the model card."""
    comparison = inputs.comparison
    metric = headline.primary_metric(comparison)
    return {
        "headline": headline.headline(comparison),
        "evidence": headline.evidence(comparison),
        "few_shot": [entry.text for entry in comparison.against_few_shot],
        "formats": headline.formats(comparison),
        "metric": metric,
        "metric_label": registry.metric_label(metric) if metric else "",
        "metric_words": registry.IN_PLAIN_WORDS.get(metric or "", ""),
        "shipping": comparison.shipping,
        "identity": first_screen.identity(inputs),
        "format_rows": first_screen.format_rows(comparison),
        "loss_note": first_screen.LOSS_NOTE,
        "adapter_note": first_screen.adapter_note(comparison),
        "strengths": first_screen.strengths(comparison),
        "leakage": first_screen.leakage(inputs),
        "alarm_line": first_screen.alarm_line(comparison),
        "board": leaderboard.leaderboard(comparison),
        "contracts": sections.contract_note(comparison),
        "gate": _gate(inputs),
    }


def _grouped_by_length(comparison: Comparison) -> bool:
    """Whether rows of similar length shared a batch in training, which makes the raw loss jagged."""
    config = comparison.provenance.get("config")
    train = config.get("train") if isinstance(config, Mapping) else None
    return bool(train.get("group_by_length")) if isinstance(train, Mapping) else False


def _gate(inputs: Inputs) -> dict[str, str] | None:
    """The gate's result as one word and a reason; a verdict on other results is not shown."""
    if inputs.gate is None:
        return None
    if inputs.gate_is_old:
        return {"result": "out of date", "reason": "It judged earlier results; harness gate judges these."}
    return {"result": headline.GATE_WORDS[inputs.gate.verdict].lower(), "reason": inputs.gate.reason}


def _drawings(inputs: Inputs, others: Sequence[Inputs]) -> dict[str, Drawing]:
    comparison = inputs.comparison
    found: list[Drawing | None] = []
    for metric in sections.metrics_of(comparison):
        found += [pareto(comparison, metric, cost) for cost in ("size_bytes", "tokens_per_second")]
        found += _forests(comparison, metric)
    histories = {run.comparison.run: run.history for run in (inputs, *others) if run.history}
    found += training_charts.curves(histories)
    histogram = inputs.split.leakage.get("similarity_histogram") if inputs.split else None
    if isinstance(histogram, dict):
        title = "Similarity of each held-out question to its nearest training question"
        found.append(bars("similarity", histogram, title, "Similarity (Jaccard)", "Questions"))
    return {drawing.key: drawing for drawing in found if drawing is not None}


def _forests(comparison: Comparison, metric: str) -> list[Drawing]:
    """One forest for each reference; those between fine-tuned formats share an axis, since base is far from all of them."""
    order = list(comparison.variants)
    pairs = [pair for pair in comparison.pairs if pair.metric == metric and pair.delta is not None]
    pairs.sort(
        key=lambda pair: [order.index(name) if name in order else len(order) for name in (pair.right, pair.left)]
    )
    references = list(dict.fromkeys(pair.right for pair in pairs))
    spans: dict[bool, tuple[float, float]] = {}
    for is_base in (True, False):
        ends = [0.0]
        for pair in pairs:
            if (pair.right == "base") is is_base:
                widest = 100 * max(pair.margin, pair.noise_floor)
                ends += [100 * end for end in (pair.ci95 or (pair.delta or 0.0,))] + [widest, -widest]
        room = 0.06 * (max(ends) - min(ends)) or 1.0
        spans[is_base] = (min(ends) - room, max(ends) + room)
    return [
        forest([p for p in pairs if p.right == right], right, metric, spans[right == "base"]) for right in references
    ]


def environment(*, escape: bool) -> Environment:
    """The templates, with the filters that make text from outside harmless: in HTML (`escape`) by themselves, in Markdown where they are called."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalize if escape else None,
    )
    environment.filters |= {
        "code": code,
        "plain": plain,
        "percent": headline.percent,
        "points": headline.points,
        "megabytes": headline.megabytes,
        "label": variants.label,
        "svg": lambda drawing: Markup(inline_svg.svg(drawing)),
    }
    environment.globals |= {
        "table": sections.table,
        "views": sections,
        "people": marks_section,
        "origins": provenance_section,
    }
    environment.globals["figure_table"] = figures.table
    return environment


def _finalize(value: Any) -> Any:
    if value is None:
        return sections.NONE
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _island(value: Any) -> Markup:
    """JSON for a data block: ASCII, and without the characters that could end the block."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), sort_keys=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _packed(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode("utf-8"), 9)).decode("ascii")


def digest(text: str) -> str:
    """sha256 in base64, as a content security policy wants it."""
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


@dataclass(frozen=True)
class Plotly:
    """Plotly's script as the page carries it."""

    packed: str
    """Compressed to two fifths of its size; the page unpacks it only when a figure comes into view."""
    digest: str
    """sha256, base64: with it the policy allows the script."""
    version: str
    style_ids: list[str]
    """Style sheets that it would add for its maps, unless something of that id is there; the policy would refuse them."""


@cache
def _plotly() -> Plotly:
    from plotly.offline import get_plotlyjs, get_plotlyjs_version

    source = get_plotlyjs()
    style_ids = sorted(set(re.findall(r'getElementById\("([0-9a-f]{64})"\)', source)))
    return Plotly(_packed(source), digest(source), get_plotlyjs_version(), style_ids)
