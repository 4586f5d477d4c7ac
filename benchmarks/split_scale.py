"""How long a split takes and how much memory, by the number of rows: python benchmarks/split_scale.py 10000 100000 1000000

The file is made up: half of its rows are questions of random words, each third in two phrasings, and half come from templates with one or two
slots. Every size runs in a separate process, whose peak memory is measured.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TEMPLATES = (
    "What does section {a} of the {b} code deal with?",
    "what is the capital city of {b} in the year {a}?",
    "Which authority is responsible under the law of the land for appointing the {b} of {c}?",
    "{b} देश की {c} का नाम क्या है?",
    "请问{b}制度第{a}条的主管机关是哪一个部门？",
)


def make(count: int, path: Path) -> None:
    """Writes a file of `count` rows."""
    rng = random.Random(1)
    words = [
        "".join(rng.choices("abcdefghijklmnoprstuvwz", k=rng.randint(3, 10))) for _ in range(max(2_000, count // 20))
    ]
    with path.open("w", encoding="utf-8") as file:
        for n in range(count):
            answer = " ".join(rng.choices(words, k=rng.randint(1, 8)))
            if n % 2:
                question = rng.choice(TEMPLATES).format(
                    a=rng.randrange(count), b=rng.choice(words), c=rng.choice(words)
                )
            else:
                question = f"Who may {' '.join(rng.choices(words, k=rng.randint(5, 10)))}?"
            file.write(json.dumps({"question": question, "answer": answer}, ensure_ascii=False) + "\n")


def measure(count: int) -> dict[str, object]:
    """Splits a file of `count` rows in this process."""
    from harness import config, storage
    from harness.stages import split

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "qa.jsonl"
        make(count, path)
        began = time.monotonic()
        manifest = split.run(storage.RunFolder("scale", Path(folder)), config.load("tiny", [], qa=str(path)))
        return {
            "rows": count,
            "seconds": round(time.monotonic() - began, 1),
            "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            "groups": manifest.n_groups_train + manifest.n_groups_heldout,
            "pairs_compared": manifest.similarity["pairs_compared"],
            "largest_group": manifest.largest_groups[0]["rows"],
            "nearest": manifest.similarity["nearest"],
        }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(int(sys.argv[2]))), flush=True)
    else:
        for size in sys.argv[1:] or ["10000", "100000", "1000000"]:
            subprocess.run([sys.executable, __file__, "--one", size], check=True)
