"""Cases of the metrics that were computed without this project's code (`tests/golden/`)."""

from __future__ import annotations

import json
from pathlib import Path

from harness.metrics import rouge as rouge_module

GOLDEN = Path(__file__).parent.parent / "golden"
LEGAL = json.loads((GOLDEN / "legal.json").read_text(encoding="utf-8"))


ROUGE = json.loads((GOLDEN / "rouge.json").read_text(encoding="utf-8"))["cases"]


ROUGE_CLASSES = {
    c.name: c for c in (rouge_module.Rouge1, rouge_module.Rouge2, rouge_module.RougeL, rouge_module.RougeLsum)
}
