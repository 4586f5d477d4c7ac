"""How long a split takes and how much memory, by the number of rows.

    python benchmarks/split_scale.py                          10,000, 100,000 and 1,000,000 rows
    python benchmarks/split_scale.py alpaca:10000 100000      other sizes; alpaca: instruction, input and output

The file is synthetic: words of data/constitution_qa.json and made-up ones, drawn by Zipf's law (the n-th commonest with weight 1/n). Half of its rows are
free questions and half come from templates with one or two slots. A QA file has at most 100 MB, which a million rows of the alpaca shape exceed. Every size runs
in a separate process, whose peak memory is measured; on a busy machine compare the CPU time rather than the seconds.
"""

from __future__ import annotations

import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import accumulate
from pathlib import Path

PROJECT = Path(__file__).parents[1]

TEMPLATES = (
    "What does section {a} of the {b} code deal with?",
    "what is the capital city of {b} in the year {a}?",
    "Which authority is responsible under the law of the land for appointing the {b} of {c}?",
    "{b} देश की {c} का नाम क्या है?",
    "请问{b}制度第{a}条的主管机关是哪一个部门？",
)


def vocabulary(rng: random.Random, count: int) -> list[str]:
    """The words of the embedded questions, the commonest first, and made-up ones of the same letters up to `count`."""
    rows = json.loads((PROJECT / "data" / "constitution_qa.json").read_text(encoding="utf-8"))
    found = Counter(word for row in rows for word in re.findall(r"[a-z]{3,}", row["question"].lower()))
    words = [word for word, _ in found.most_common()]
    real = len(words)
    while len(words) < count:
        left, right = rng.choice(words[:real]), rng.choice(words[:real])
        words.append(left[: rng.randint(2, 5)] + right[-rng.randint(2, 5) :])
    return words[:count]


def make(count: int, path: Path, *, alpaca: bool = False) -> None:
    """Writes a file of `count` rows."""
    rng = random.Random(1)
    words = vocabulary(rng, max(8_000, count // 20))
    weights = list(accumulate(1 / (rank + 10) for rank in range(len(words))))

    def some(least: int, most: int) -> str:
        return " ".join(rng.choices(words, cum_weights=weights, k=rng.randint(least, most)))

    with path.open("w", encoding="utf-8") as file:
        for n in range(count):
            if n % 2:
                a, b, c = rng.randrange(count), rng.choice(words), rng.choice(words)
                question = rng.choice(TEMPLATES).format(a=a, b=b, c=c)
            else:
                question = f"Who may {some(4, 6)}?"
            if alpaca:
                further = some(5, 40) if rng.random() < 0.4 else ""
                row = {"instruction": question, "input": further, "output": some(5, 60)}
            else:
                row = {"question": question, "answer": some(1, 3)}
            # No spaces: a million rows just stay under the 100 MB of a QA file.
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


def measure(size: str) -> dict[str, object]:
    """Splits a file of so many rows ("alpaca:1000": of that shape) in this process."""
    from harness import config, storage
    from harness.stages import split

    count = int(size.rpartition(":")[2])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "qa.jsonl"
        make(count, path, alpaca=size.startswith("alpaca:"))
        began, busy = time.monotonic(), time.process_time()
        manifest = split.run(storage.RunFolder("scale", Path(folder)), config.load("tiny", [], qa=str(path)))
        return {
            "rows": size,
            "seconds": round(time.monotonic() - began, 1),
            "cpu_seconds": round(time.process_time() - busy, 1),
            "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            "groups": manifest.n_groups_train + manifest.n_groups_heldout,
            "pairs_compared": manifest.similarity["pairs_compared"],
            "window": manifest.similarity["window"],
            "largest_group": manifest.largest_groups[0]["rows"],
            "nearest": manifest.similarity["nearest"],
        }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2])), flush=True)
    else:
        for size in sys.argv[1:] or ["10000", "100000", "1000000"]:
            subprocess.run([sys.executable, __file__, "--one", size], check=True)
