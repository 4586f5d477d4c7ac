"""May two variants be compared, and what do they share: the same token ids, or the same questions?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from harness.analysis.scored import Scored
from harness.errors import IncomparableError
from harness.records import Contract

TEXT = "own"
"""Instead of a tokenizer's hash: the model got text or messages."""
TOKENS = ("stop_ids", "pad_id")
"""Parameters of generation that are a tokenizer's own."""
SCORE_AGAIN = "run harness score again"


def refuse_incomparable(variants: Sequence[Scored]) -> None:
    """Raises IncomparableError, naming what differs, unless all were asked and scored in the same way."""
    first, *others = variants
    for other in others:
        found = [(f"{what}: {differs}", hint) for what, differs, hint in _contract(first, other) if differs]
        if found:
            raise IncomparableError(
                f"{first.name} and {other.name} differ in {', and in '.join(what for what, _ in found)}", found[0][1]
            )


def contract_of(a: Scored, b: Scored) -> Contract:
    """What two variants share: `same ids` where tokenizer, prompts and end tokens are equal, else `same question`."""
    same = [
        (side.tokenizer_sha256, side.manifest.prompts_sha256, side.manifest.generation.get("stop_ids"))
        for side in (a, b)
    ]
    tokenised = a.tokenizer_sha256 != TEXT
    return "same ids" if tokenised and same[0] == same[1] else "same question"


def _contract(a: Scored, b: Scored) -> Iterator[tuple[str, str, str]]:
    """(what, how it differs or "", hint) of everything that must be equal.

    Two variants that were asked as the run asks must have the same prompts, token by token; a model that was asked by its own tokenizer, or one of
    another run with another tokenizer, shares the questions.
    """
    left, right = a.manifest, b.manifest
    again = "run harness predict and score for both with one config"
    foreign = a.own or b.own or a.tokenizer_sha256 != b.tokenizer_sha256
    yield "split", _unequal(left.split_id[:12], right.split_id[:12]), "answer both on one split, then score again"
    limits = [{k: v for k, v in m.generation.items() if not (foreign and k in TOKENS)} for m in (left, right)]
    yield "generation parameters", _unequal_keys(*limits), again
    if left.split_id == right.split_id:  # otherwise prompts and questions differ in any case
        if not foreign:
            yield (
                "prompts",
                _unequal(left.prompts_sha256[:12], right.prompts_sha256[:12]),
                f"use one template and tokenizer; {again}",
            )
        yield (
            "questions",
            "" if (a.ids, a.groups) == (b.ids, b.groups) else f"{len(a.ids)} against {len(b.ids)}",
            SCORE_AGAIN,
        )
    signatures = [{name: value.signature for name, value in m.metrics.items()} for m in (left, right)]
    yield "metric signatures", _unequal_keys(*signatures), "score both with the same metrics and versions"


def _unequal(left: object, right: object) -> str:
    return "" if left == right else f"{left} against {right}"


def _unequal_keys(left: dict[str, Any], right: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {left.get(key, 'absent')} against {right.get(key, 'absent')}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    )
