"""The scenario questions of the held-out side, answered by the tiny model, by SmolLM2 and by model-free baselines.

    make train eval smollm2
    python benchmarks/scenarios.py --run tiny --model models/smollm2-135m [--few-shot 2] [--tokens 32] [--device cpu] [--out FOLDER]

For the tiny model, before and after fine-tuning, the run's answers are read. SmolLM2 is not fine-tuned; it is asked through its chat template, without
examples and with the training questions nearest to each scenario as examples. Writes OUT/scenarios.md, a table, and OUT/scenarios.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from harness import storage
from harness.analysis import statistics
from harness.metrics import configured
from harness.questions import no_model_baselines
from harness.records import Prediction, Question
from harness.storage import RunFolder

PROJECT = Path(__file__).resolve().parents[1]
SYSTEM = "Answer the question on the Constitution of India. Begin with Yes or No where it asks for one. Use one short sentence."
OPENINGS = ("yes", "no")


@dataclass(frozen=True)
class Column:
    """A measure of answers: the scenarios that it covers, and their scores."""

    label: str
    values: list[float | None]
    """In the order of the scenarios; None: not covered."""


def main() -> None:
    """Asks, scores, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="tiny", help="a run that has answered")
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2, or of another chat model")
    parser.add_argument("--few-shot", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32, help="of an answer at most")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("scenarios-table"))
    options = parser.parse_args()
    run = RunFolder(options.run)
    scenarios = [q for q in storage.read_split(run)[1] if q.kind == "scenario"]
    train = storage.read_records(run.train_jsonl, Question)
    options.out.mkdir(parents=True, exist_ok=True)
    said = without_a_model(train, scenarios) | tiny(run, scenarios) | chat(scenarios, train, options)
    rows = {name: [cell(column, scenarios) for column in measure(texts, scenarios)] for name, texts in said.items()}
    heads = [column.label for column in measure([""] * len(scenarios), scenarios)]
    table = render(heads, rows)
    storage.write_json(options.out / "scenarios.json", {"n": len(scenarios), "answers": said, "table": rows})
    (options.out / "scenarios.md").write_text(table, encoding="utf-8")
    print(table)


# ------------------------------------------------------------------------------------------------------------- answers


def without_a_model(train: Sequence[Question], asked: Sequence[Question]) -> dict[str, list[str]]:
    """Model-free baselines: one constant word, and the answer of the nearest training question."""
    copied = no_model_baselines.answers(train, asked, 5)["nearest_train_copy"]
    return {"always Yes": ["Yes"] * len(asked), "always No": ["No"] * len(asked), "nearest training answer": copied}


def tiny(run: RunFolder, asked: Sequence[Question]) -> dict[str, list[str]]:
    """The answers of the run's model before and after fine-tuning."""
    names = {"base": "tiny (5M), before fine-tuning", "adapter": "tiny (5M), fine-tuned"}
    return {label: read(run, variant, asked) for variant, label in names.items()}


def chat(asked: Sequence[Question], train: Sequence[Question], options: Any) -> dict[str, list[str]]:
    """The answers of the chat model, without and with examples."""
    test, trained_on = files(asked, train, options.out)
    settings = {
        "device": options.device,
        "model": {"path": str(options.model.resolve())},
        "data": {"qa": None, "test": test, "trained_on": trained_on},
        "prompt": {"format": "chat", "system": SYSTEM},
        "predict": {
            "variants": ["base", "base_fewshot"],
            "few_shot": options.few_shot,
            "max_new_tokens": options.tokens,
            "fidelity_questions": 0,
        },
        "export": {"formats": []},
    }
    config = options.out / "chat.yaml"
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    for verb in ("split", "predict"):
        harness(options, verb, "--run", "scenarios-chat", "--config", str(config.resolve()))
    name = options.model.name
    labels = {"base": f"{name}, asked alone", "base_fewshot": f"{name}, {options.few_shot} examples"}
    answered = RunFolder("scenarios-chat", options.out)
    return {label: read(answered, variant, asked) for variant, label in labels.items()}


def files(asked: Sequence[Question], train: Sequence[Question], out: Path) -> tuple[str, str]:
    """The test file and the training file, as absolute paths."""
    paths = []
    for name, questions in (("test", asked), ("train", train)):
        path = out / f"{name}.jsonl"
        kept = ("id", "question", "answer", "references", "group", "kind")
        storage.write_jsonl(path, ({key: getattr(q, key) for key in kept} | q.extra for q in questions))
        paths.append(str(path.resolve()))
    return paths[0], paths[1]


def harness(options: Any, *arguments: str) -> None:
    """Runs a verb in the output folder, which then holds its run folders."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-m", "harness", *arguments], check=True, cwd=options.out, env=environment)


def read(run: RunFolder, variant: str, asked: Sequence[Question]) -> list[str]:
    """A variant's answers in the order of the questions."""
    found = {p.id: p.text for p in storage.iter_records(run.prediction(variant)[0], Prediction)}
    return [found[question.id] for question in asked]


# ------------------------------------------------------------------------------------------------------------ measures


def measure(texts: Sequence[str], asked: Sequence[Question]) -> list[Column]:
    """The columns of the table for one model's answers."""
    exact, points = configured("exact_match_normalized", "legal"), configured("point_recall", "legal")
    right = [exact.score_one(text, [q.answer, *q.references]) or 0.0 for text, q in zip(texts, asked, strict=True)]
    judged = [q.extra.get("answer_type") == "yes-no" for q in asked]
    opened = [opening(text) == opening(q.answer) for text, q in zip(texts, asked, strict=True)]
    recalled = [points.score_one(text, q.extra.get("must_mention") or []) for text, q in zip(texts, asked, strict=True)]
    return [
        Column("exact match, all", list(right)),
        Column("Yes/No: exact match", [s if j else None for s, j in zip(right, judged, strict=True)]),
        Column("Yes/No: right first word", [float(s) if j else None for s, j in zip(opened, judged, strict=True)]),
        Column("other: exact match", [None if j else s for s, j in zip(right, judged, strict=True)]),
        Column("points made", list(recalled)),
    ]


def opening(text: str) -> str | None:
    """The Yes or No that an answer begins with."""
    first = text.strip().lower().replace(",", " ").replace(".", " ").split(" ")[0]
    return first if first in OPENINGS else None


def cell(column: Column, asked: Sequence[Question]) -> dict[str, Any]:
    """The mean of a column with its 95% interval, groups drawn whole."""
    values = np.array([np.nan if v is None else v for v in column.values], dtype=np.float64)
    estimate = statistics.mean_intervals(values, [q.group for q in asked], resamples=0, seed=0)[0]
    return {"value": estimate.value, "ci95": estimate.ci95, "n": estimate.n}


def render(heads: Sequence[str], rows: dict[str, list[dict[str, Any]]]) -> str:
    """The table in Markdown: percent, with the interval."""
    first = next(iter(rows.values()))
    lines = ["| model | " + " | ".join(f"{h} (n={c['n']})" for h, c in zip(heads, first, strict=True)) + " |"]
    lines.append("| --- |" + " ---: |" * len(heads))
    for name, cells in rows.items():
        shown = [
            "-" if c["value"] is None else f"{c['value']:.1%} ({c['ci95'][0]:.0%} to {c['ci95'][1]:.0%})" for c in cells
        ]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
