"""What each export step changed, from the adapter to the smallest file: a row of agreement and divergence for each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np

from harness import storage
from harness.analysis import fidelity
from harness.analysis.resampling import Floats
from harness.config import Config
from harness.records import FidelityStep, Prediction, PredictionManifest
from harness.storage import RunFolder


@dataclass(frozen=True)
class _Answers:
    """A variant's answers, and its log-probabilities along the reference answers."""

    texts: dict[str, str]
    """Question -> text; failed questions are left out."""
    ids: dict[str, list[int]]
    measured: str
    logprobs: dict[str, Floats]
    """Question -> (tokens, vocabulary); empty if not measured."""
    tokens: dict[str, Any]
    """Question -> token ids of the reference answer, shape (tokens,)."""


def rows(run: RunFolder, config: Config, names: list[str]) -> list[FidelityStep]:
    """A row for each step from the adapter to the smallest format."""
    steps = fidelity.steps([name for name in names if name not in config.predict.extra])
    # Over a large vocabulary each takes hundreds of megabytes, so only the reference, the format and the one before it are held.
    answers = lru_cache(maxsize=3)(lambda name: _answers(run, name))
    # The right side first: it is the one that the next step needs again, and so the one to keep.
    return [_row(left, right, b=answers(right), a=answers(left)) for left, right in steps]


def _row(left: str, right: str, *, a: _Answers, b: _Answers) -> FidelityStep:
    common = [question for question in a.texts if question in b.texts]
    probed = [question for question in a.logprobs if question in b.logprobs] if a.measured == b.measured else []
    row: FidelityStep = {
        "left": left,
        "right": right,
        "identical": fidelity.identical_share([a.texts[q] for q in common], [b.texts[q] for q in common]),
        "token_agreement": fidelity.token_agreement([a.ids[q] for q in common], [b.ids[q] for q in common]),
        "n": len(common),
    }
    if not probed:
        return row
    try:
        tokens = [b.tokens[q] for q in probed] if b.tokens else None
        found = fidelity.divergence([b.logprobs[q] for q in probed], [a.logprobs[q] for q in probed], tokens)
    except ValueError:
        return row  # a padded vocabulary: the distributions are over other tokens
    return row if found is None else cast(FidelityStep, row | asdict(found))


def _answers(run: RunFolder, name: str) -> _Answers:
    lines, manifest_path = run.prediction(name)
    asked = storage.read_record(manifest_path, PredictionManifest)
    storage.check_written(lines, asked.lines_sha256, "predict")
    answered = [row for row in storage.iter_records(lines, Prediction) if row.finish_reason != "error"]
    logprobs: dict[str, Floats] = {}
    tokens: dict[str, Any] = {}
    if asked.logprobs_sha256:
        file = lines.with_suffix(fidelity.SUFFIX)
        storage.check_written(file, asked.logprobs_sha256, "predict")
        with np.load(file, allow_pickle=False) as arrays:
            ends = np.cumsum(arrays["lengths"])[:-1]
            logprobs = (
                dict(zip(arrays["ids"].tolist(), np.split(arrays["logprobs"], ends), strict=True))
                if len(arrays["ids"])
                else {}
            )
            if "tokens" in arrays and logprobs:
                tokens = dict(zip(logprobs, np.split(arrays["tokens"], ends), strict=True))
    texts, ids = ({r.id: getattr(r, name) for r in answered} for name in ("text", "answer_ids"))
    return _Answers(texts, ids, asked.measured, logprobs, tokens)
