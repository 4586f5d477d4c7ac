"""A real chat model before and after fine-tuning, asked by its own chat template and as plain text, on the same held-out questions.

    make smollm2
    python benchmarks/real_weights.py --model models/smollm2-135m --qa data/constitution_qa.json --steps 1022      # a GPU, a few minutes
    python benchmarks/real_weights.py --model models/smollm2-135m --qa data/constitution_qa.json --steps 5 --questions 12   # a CPU, to try it

Every stage runs through the command line. Writes OUT/real_weights.md, a table, and OUT/real_weights.json, its data.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[1]
SYSTEM = "Answer in one short sentence."
METRICS = ("exact_match_normalized", "token_f1", "rougeL")
ASKED = {"chat": "its chat template", "few": "its chat template, three examples", "text": "plain text"}


def settings(form: str, options: argparse.Namespace) -> dict[str, Any]:
    """The config of a run: all runs have the same split and differ in the form of the prompt; only `chat` trains."""
    prompt: dict[str, Any] = {"format": "text"} if form == "text" else {"format": "chat", "system": SYSTEM}
    return {
        "device": options.device,
        "model": {"path": str(options.model.resolve())},
        "data": {"qa": str(options.qa.resolve()), **({"heldout": options.questions} if options.questions else {})},
        "prompt": prompt | ({"few_shot": 3} if form == "few" else {}),
        "train": {
            "max_steps": options.steps,
            "batch_size": 8,
            "learning_rate": 2e-4,
            "warmup_steps": 5,
            "lora": {"r": 16, "alpha": 16},
            "max_length": 512,
            "eval_every": max(50, options.steps),
            "save_every": 100_000,
        },
        "export": {"formats": []},
        "predict": {
            "variants": ["base", "adapter"] if form == "chat" else ["base"],
            "max_new_tokens": 64,
            "fidelity_questions": 0,
        },
    }


def stages(form: str, options: argparse.Namespace) -> dict[str, float]:
    """Runs the stages of one way of asking; returns each one's seconds."""
    options.out.mkdir(parents=True, exist_ok=True)
    config = options.out / f"real-{form}.yaml"
    config.write_text(yaml.safe_dump(settings(form, options), sort_keys=False), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    seconds = {}
    for verb in ("split", *(["train"] if form == "chat" else []), "predict", "score", "compare"):
        began = time.monotonic()
        command = [sys.executable, "-m", "harness", verb, "--run", f"real-{form}", "--config", str(config)]
        subprocess.run(command, check=True, cwd=options.out, env=environment)
        seconds[verb] = round(time.monotonic() - began, 1)
    return seconds


def rows(form: str, folder: Path) -> list[dict[str, Any]]:
    """A row of the table for each variant that was asked in this way."""
    found = []
    for variant in ("base", "adapter") if form == "chat" else ("base",):
        scores = json.loads((folder / f"runs/real-{form}/scores/{variant}.json").read_text(encoding="utf-8"))
        found.append(
            {
                "model": "fine-tuned" if variant == "adapter" else "base",
                "asked": ASKED[form],
                "n": scores["n"],
                "cut": scores["finish"].get("length", 0),
                "metrics": {name: {key: scores["metrics"][name][key] for key in ("value", "ci95")} for name in METRICS},
            }
        )
    return found


def table(found: list[dict[str, Any]], command: str, seconds: dict[str, dict[str, float]]) -> str:
    """The rows as Markdown, with the command that measured them."""
    lines = [
        f"    {command}",
        "",
        "| model | asked by | exact match | token F1 | ROUGE-L | answers cut |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in found:
        cells = []
        for name in METRICS:
            value, (low, high) = row["metrics"][name]["value"], row["metrics"][name]["ci95"]
            cells.append(f"{value:.3f} ({low:.3f} to {high:.3f})")
        lines.append(f"| {row['model']} | {row['asked']} | {' | '.join(cells)} | {row['cut']} of {row['n']} |")
    base, tuned = (
        next(r for r in found if r["model"] == m and r["asked"] == ASKED["chat"]) for m in ("base", "fine-tuned")
    )
    apart = [n for n in METRICS if tuned["metrics"][n]["ci95"][0] > base["metrics"][n]["ci95"][1]]
    lines += [
        "",
        f"95% intervals over groups of questions. The fine-tuned model's are above the base's, without overlap, in {', '.join(apart) or 'no metric'}.",
        f"Seconds: {json.dumps(seconds)}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs all ways of asking and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a chat model")
    parser.add_argument("--qa", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1022, help="of 8 rows")
    parser.add_argument("--questions", type=int, help="held out; by default a tenth")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=PROJECT / "build" / "real_weights")
    options = parser.parse_args()
    options.out = options.out.resolve()
    seconds = {form: stages(form, options) for form in ASKED}
    found = [row for form in ASKED for row in rows(form, options.out)]
    command = f"python benchmarks/real_weights.py --model {options.model} --qa {options.qa} --steps {options.steps}"
    page = table(found, command, seconds)
    (options.out / "real_weights.md").write_text(page, encoding="utf-8")
    (options.out / "real_weights.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
