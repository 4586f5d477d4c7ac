"""The figures that rest on the QA file's own columns, as a table: figures x variants."""

from __future__ import annotations

from dataclasses import dataclass

from harness.records import Comparison, Figure
from harness.report.headline import percent, variant_order


@dataclass(frozen=True)
class Line:
    """One figure of every variant."""

    label: str
    n: int
    cells: list[Figure | None]
    """In the order of `Table.variants`."""

    @property
    def texts(self) -> list[str]:
        """In percent; `-` where a variant has no such figure."""
        return ["-" if cell is None else percent(cell.value) for cell in self.cells]


@dataclass(frozen=True)
class Table:
    """The rows of a comparison's `figures`."""

    variants: list[str]
    lines: list[Line]


def table(comparison: Comparison) -> Table:
    """The figures in the order in which they were found; no lines where the QA file has no such columns."""
    known = {figure.variant for figure in comparison.figures}
    variants = [name for name in variant_order(comparison) if name in known]
    found = {(figure.name, figure.variant): figure for figure in comparison.figures}
    labels = {figure.name: figure.label for figure in comparison.figures}
    lines = []
    for name, label in labels.items():
        cells = [found.get((name, variant)) for variant in variants]
        lines.append(Line(label, max(cell.n for cell in cells if cell), cells))
    return Table(variants, lines)
