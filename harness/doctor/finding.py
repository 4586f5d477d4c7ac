"""What the doctor says of one thing that it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


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

    def __str__(self) -> str:
        line = f"{self.status:4}  {self.what:20}  {self.value}"
        return f"{line}; {self.hint}" if self.hint else line
