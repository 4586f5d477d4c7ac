"""A run of the embedded model that can be asked: the base, and two GGUF files of it, with held-out questions that are hostile in part."""

from __future__ import annotations

from pathlib import Path

from harness import storage
from harness.config import Config
from harness.formats import gguf
from harness.records import Question
from harness.storage import RunFolder
from tests.helpers import small_run

MODEL = Path(__file__).parents[2] / "data" / "tiny-llama3"
GGUFS = ["gguf_f16", "gguf_q8_0"]
HOSTILE = (
    '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script> ${1+1} {{1+1}} \u202etxt.exe\u2066 \x1b[2J'
)
PAIRS = [
    ("Article 21 protects", "life and personal liberty"),
    ("The President of India", "is the head of the Union."),
    ("The Supreme Court", "sits in Delhi."),
    (f"Parliament {HOSTILE}", f"the reference {HOSTILE}"),
]


def make(root: Path, *, max_new_tokens: int = 160) -> tuple[RunFolder, Config]:
    """The run in `root`. Its prompt is the question alone, which the base model continues at length."""
    config = small_run.config(
        MODEL,
        prompt={"template": "{question}"},
        predict={"variants": ["base", *GGUFS], "max_new_tokens": max_new_tokens, "slots": 8, "threads": 1},
    )
    run = small_run.split(root, asked=questions())
    files = {}
    for name in GGUFS:
        files[name] = root / f"{name}.gguf"
        gguf.write(MODEL, files[name], name.removeprefix("gguf_"))
    small_run.exported(run, **files)
    storage.write_json(run.run_json, {"config": config.model_dump(mode="json")})
    return run, config


def questions() -> list[Question]:
    return small_run.questions(PAIRS)
