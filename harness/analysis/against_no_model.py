"""Variants against the baselines that need no model, question by question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness import storage
from harness.analysis import paired, statistics
from harness.analysis.scored import Scored
from harness.config import Compare
from harness.records import NoModelScore, NoModelScores, Pair
from harness.storage import RunFolder


def pairs(run: RunFolder, variants: Sequence[Scored], primary: str, settings: Compare) -> list[Pair]:
    """Each variant minus each baseline on the primary metric, as one family of tests; none where there are no baselines or they lack the metric.

    Raises:
        ArtifactError: their scores are damaged.
    """
    lines, path = run.no_model
    if not path.exists():
        return []
    manifest = storage.read_record(path, NoModelScores)
    storage.check_written(lines, manifest.lines_sha256, "score")
    rows = storage.read_records(lines, NoModelScore)
    place = {question: at for at, question in enumerate(variants[0].ids)}
    asked = [place[row.id] for row in rows if row.id in place]
    if len(asked) < len(rows) or not all(primary in row.scores[name] for row in rows for name in manifest.names):
        return []
    of_baseline = {
        name: np.array([row.scores[name][primary] for row in rows], dtype=np.float64) for name in manifest.names
    }
    tested = [(scored, name) for scored in variants for name in manifest.names]
    left = [scored.values[asked, scored.metrics.index(primary)] for scored, _ in tested]
    found = statistics.paired_differences(
        np.column_stack(left),
        np.column_stack([of_baseline[name] for _, name in tested]),
        [variants[0].groups[at] for at in asked],
        resamples=settings.resamples,
        seed=settings.seed,
        family=[0] * len(tested),
    )
    return [
        paired.pair(scored.name, name, primary, d, settings.margin, contract="same question")
        for (scored, name), d in zip(tested, found, strict=True)
    ]
