"""Model output, questions and references as HTML: text, never markup. The only place where the page's HTML is made."""

from __future__ import annotations

import difflib
import html
from collections.abc import Mapping

from harness.errors import visible
from harness.registry import metric_label, metric_order
from harness.web.session import Growing

MOST_WORDS = 2000
"""Maximum words of a text that is compared: the time is quadratic."""
CSS = """
.facts { font-size: .85em; overflow-wrap: anywhere; white-space: pre-wrap }
.facts ins { background: #c8f0d0; color: #063; text-decoration: none }
.facts del { background: #ffd9d6; color: #7a0c00 }
.notice:empty { display: none }
.notice { padding: .4em 0; font-weight: 600; overflow-wrap: anywhere }
"""


def text(value: str) -> str:
    """A text for HTML: control characters and marks that turn the direction of writing as escapes, everything else unchanged."""
    return html.escape(visible(value))


def notice(value: str) -> str:
    """A message to the reader, announced to screen readers."""
    return f'<div class="notice" role="status">{text(value)}</div>'


def facts(state: Growing) -> str:
    """Speed and confidence of a (possibly partial) answer."""
    return f'<div class="facts">{text(state.summary())}</div>'


def judged(state: Growing, reference: str, scores: Mapping[str, float | None]) -> str:
    """The same, with scores, and the words that differ from the reference."""
    shown = [
        f"{metric_label(name)} {'not scored' if value is None else f'{value:.2f}'}"
        for name, value in sorted(scores.items(), key=lambda item: metric_order(item[0]))
    ]
    return (
        f'{facts(state)}<div class="facts">{text(", ".join(shown))}</div>'
        f'<div class="facts">Against the reference: {differences(state.text, reference)}</div>'
    )


def differences(answer: str, reference: str) -> str:
    """The answer with words not in the reference as <ins>, and missing words as <del>."""
    left, right = reference.split(), answer.split()
    if max(len(left), len(right)) > MOST_WORDS:
        return "too long to be compared word by word"
    parts = []
    for what, i, j, k, m in difflib.SequenceMatcher(a=left, b=right, autojunk=False).get_opcodes():
        if what == "equal":
            parts.append(text(" ".join(right[k:m])))
            continue
        parts += [f"<del>{text(' '.join(left[i:j]))}</del>"] if i < j else []
        parts += [f"<ins>{text(' '.join(right[k:m]))}</ins>"] if k < m else []
    return " ".join(parts)
