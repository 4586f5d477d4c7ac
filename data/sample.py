"""Prints a random sample of rows for manual review against the text: `python data/sample.py --seed 20261125 --rows 200`."""

from __future__ import annotations

import argparse
import json
import random

from facts import HERE


def main() -> None:
    """Prints the sampled rows, one a line: index in the file, kind, cited provisions, question and answer."""
    parser = argparse.ArgumentParser(description="Draw rows of constitution_qa.json for a check by reading.")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--rows", type=int, default=200)
    given = parser.parse_args()
    rows = json.loads((HERE / "constitution_qa.json").read_text(encoding="utf-8"))
    print(f"seed {given.seed}, {given.rows} of {len(rows):,} rows")
    for i in sorted(random.Random(given.seed).sample(range(len(rows)), given.rows)):
        row = rows[i]
        places = ",".join(row.get("cites") or [row["article"] or row["group"]])
        print(f"{i} [{row['kind']}] {places}: {row['question']} => {row['answer']}")


if __name__ == "__main__":
    main()
