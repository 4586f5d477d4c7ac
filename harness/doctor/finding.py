"""The result of one check of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]
WORST_FIRST: list[Status] = ["fail", "warn", "ok"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    status: Status
    """`fail`: the config cannot run here; `warn`: it runs, but not as it could."""
    what: str
    value: str
    """What was found."""
    hint: str = ""
    """What the user can do about it, as an imperative clause; empty if nothing needs doing."""

    is_package: bool = False
    """An installed package against the range that is wanted."""

    def __str__(self) -> str:
        line = f"{self.status:4}  {self.what:20}  {self.value}"
        return f"{line}; {self.hint}" if self.hint else line


def lines(findings: list[Finding], *, every: bool = False) -> list[str]:
    """Failures, then warnings, then the rest; packages that fit share one line, unless `every` is set."""
    fitting = [f for f in findings if f.is_package and f.status == "ok"]
    folded = [] if every or len(fitting) < 2 else fitting
    ordered = sorted((f for f in findings if f not in folded), key=lambda f: WORST_FIRST.index(f.status))
    if folded:
        ordered.append(Finding("ok", "packages", f"{len(folded)} fit (-v names them)"))
    return [str(finding) for finding in ordered]
