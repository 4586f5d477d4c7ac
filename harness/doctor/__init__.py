"""Can this machine run this config? Checks the device, the packages, the model, the memory and the disk, and tries the parts that often break.

Nothing is downloaded, no library is loaded into this process that could crash it: what needs torch, Unsloth or llama.cpp runs in child
processes (`harness.doctor.probes`), side by side.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from harness.doctor.finding import Finding, Status, lines

if TYPE_CHECKING:
    from harness.config import Config

__all__ = ["Finding", "Status", "as_json", "lines", "run"]


def run(config: Config, *, measure: bool = False) -> list[Finding]:
    """Every finding, in reading order: device, working parts, inputs, memory and disk, packages.

    Args:
        measure: time llama.cpp on the base's shape too, for half a minute, and forecast how long GGUF variants answer.
    """
    from harness.doctor import checks

    return checks.run(config, measure=measure)


def as_json(findings: list[Finding]) -> str:
    """The findings as a JSON list of objects with `status`, `what`, `value` and `hint`."""
    records = [{key: value for key, value in asdict(finding).items() if key != "is_package"} for finding in findings]
    return json.dumps(records, indent=2, ensure_ascii=False)
