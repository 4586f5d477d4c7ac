"""The second held-out side: questions that are trained on, asked in words that are not.

The first side holds out whole groups, so a score on it is of what the model was never taught. The questions of `data.taught` restate questions of
the QA file; those whose original is on the training side say whether the model learned what it was taught. They are asked, and never trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import DataError
from harness.questions.dataset import QaFile
from harness.questions.normalised import normalised
from harness.questions.rows import Row

COLUMN = "restates"
"""The column of `data.taught` that holds the question of the QA file which the row asks in other words."""


def restated(again: QaFile, rows: Sequence[Row], train: Sequence[int]) -> list[tuple[Row, int]]:
    """The rows of `data.taught` that restate a training question, each with the position of that question.

    Left out are rows whose original is not on the training side, and those that are in the QA file themselves, on either side.

    Args:
        again: the file of `data.taught`.
        rows: all rows of the split.
        train: positions of the training side.

    Raises:
        DataError: a row does not say which question it restates.
    """
    trained = {normalised(rows[at].question): at for at in reversed(train)}
    known = {normalised(row.question) for row in rows}
    found = []
    for row in again.rows:
        original = row.extra.get(COLUMN)
        if not isinstance(original, str):
            raise DataError(
                f"has no {COLUMN}",
                "name in it the question of data.qa that the row asks in other words",
                file=again.source,
                row=row.row,
            )
        at = trained.get(normalised(original))
        if at is not None and normalised(row.question) not in known:
            found.append((row, at))
    return found
