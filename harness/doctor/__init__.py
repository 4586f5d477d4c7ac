"""Can this machine run this config? Looks at the device, the packages, the model, the memory and the disk, and tries the parts that break.

Nothing is downloaded, no library is loaded into this process that could crash it: what needs torch, Unsloth or llama.cpp runs in child
processes (`harness.doctor.probes`), side by side.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from harness.config import Config

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


def run(config: Config) -> list[Finding]:
    """Every finding, in the order in which they are read best: device, working parts, inputs, memory and disk, packages."""
    from harness.doctor import checks

    return checks.run(config)


def as_json(findings: list[Finding]) -> str:
    """The findings as a JSON list of objects with `status`, `what`, `value` and `hint`."""
    return json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False)
