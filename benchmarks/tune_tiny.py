"""Tries recipes of the config `tiny` on questions of its training side, never on the held-out ones, and logs every setting.

    python benchmarks/tune_tiny.py [--jobs 8] [--threads 2] [--minutes 8] [--device cpu|cuda] [--only NAME ...]

The held-out side of `tiny` is set aside first. Of what is left, a tenth (whole groups) is the dev side: each recipe trains on the rest and its
adapter answers the dev questions, through the stages split, train, predict and score. On a CPU every recipe has `--threads` cores to itself,
so that its seconds are those of a machine with so many cores. Written are `data/tiny-llama3/development.jsonl`, one line a recipe as it ends,
and the same as a table in `development.md`. A recipe that has not ended after `--minutes` is logged as unfinished.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[1]
LOG = PROJECT / "data" / "tiny-llama3" / "development.jsonl"
FOLDER = PROJECT / "runs" / "tune"
QA = FOLDER / "questions.json"
DEV_SEED = 47
"""Another seed than the config's; of sixty it is among the two whose dev side resembles all in its kinds of question, and holds out a tenth."""
STAGES = ("split", "train", "predict", "score")


def recipe(steps: int, batch: int, rate: float, rank: int, alpha: int, **more: Any) -> dict[str, Any]:
    """The settings in which a recipe differs from `tiny`."""
    train = {"max_steps": steps, "batch_size": batch, "learning_rate": rate, "lora": {"r": rank, "alpha": alpha}}
    return {"train": train | more}


RECIPES = {
    "1000 x 8, rate 7e-4": recipe(1000, 8, 7e-4, 64, 128),
    "1000 x 8, rate 7e-4, seed 1": recipe(1000, 8, 7e-4, 64, 128, seed=1),
    "1000 x 8, rate 7e-4, seed 2": recipe(1000, 8, 7e-4, 64, 128, seed=2),
    "1000 x 8, rate 5e-4": recipe(1000, 8, 5e-4, 64, 128),
    "1000 x 8, rate 1e-3": recipe(1000, 8, 1e-3, 64, 128),
    "1000 x 8, rate 7e-4, rank 32": recipe(1000, 8, 7e-4, 32, 64),
    "700 x 8, rate 1e-3": recipe(700, 8, 1e-3, 64, 128),
    "600 x 16, rate 7e-4": recipe(600, 16, 7e-4, 64, 128),
    "500 x 16, rate 1e-3": recipe(500, 16, 1e-3, 64, 128),
    "500 x 16, rate 1e-3, seed 1": recipe(500, 16, 1e-3, 64, 128, seed=1),
    "500 x 16, rate 1e-3, seed 2": recipe(500, 16, 1e-3, 64, 128, seed=2),
    "500 x 16, rate 7e-4": recipe(500, 16, 7e-4, 64, 128),
    "500 x 16, rate 1.4e-3": recipe(500, 16, 1.4e-3, 64, 128),
    "500 x 16, rate 1.4e-3, rank 32": recipe(500, 16, 1.4e-3, 32, 64),
    "500 x 16, rate 1e-3, alpha 64": recipe(500, 16, 1e-3, 64, 64),
    "500 x 16, rate 1.4e-3, cosine": recipe(500, 16, 1.4e-3, 64, 128, scheduler="cosine"),
    "500 x 16, rate 1e-3, any order": recipe(500, 16, 1e-3, 64, 128, group_by_length=False),
    "300 x 16, rate 1e-3": recipe(300, 16, 1e-3, 64, 128),
}
"""In the order in which they are started."""


def harness(*arguments: str, log: Path, check: bool = True) -> int:
    """Runs one verb of the command line; its output goes to the log."""
    with log.open("a", encoding="utf-8") as out:
        return subprocess.run(
            [sys.executable, "-m", "harness", *arguments], cwd=PROJECT, stdout=out, stderr=out, check=check
        ).returncode


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file; none if it is absent."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def set_aside() -> int:
    """Writes every question that `tiny` does not hold out as a QA file; returns their number."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    harness("split", "--config", "tiny", "--run", "tune-outer", log=FOLDER / "outer.log")
    split = PROJECT / "runs" / "tune-outer" / "split"
    rows = read_lines(split / "train.jsonl") + read_lines(split / "dev.jsonl")
    kept = ("question", "answer", "references", "group", "article", "part", "kind")
    QA.write_text(json.dumps([{k: row[k] for k in kept} | row["extra"] for row in rows]), encoding="utf-8")
    return len(rows)


def config_of(name: str, device: str, steps: int | None) -> Path:
    """The config file of a recipe: `tiny` with the recipe's settings, but for `steps` where they are given."""
    from harness.config import Data

    config = yaml.safe_load((PROJECT / "harness" / "configs" / "tiny.yaml").read_text(encoding="utf-8"))
    for section, changed in RECIPES[name].items():
        config[section] = config[section] | changed
    if steps:
        config["train"]["max_steps"] = steps
    config["data"] = {"qa": str(QA), "heldout": 0.1, "seed": DEV_SEED}
    if "dev" in Data.model_fields:
        config["data"]["dev"] = 0
    config["export"] = {"formats": []}
    config["train"] |= {"eval_rows": 0, "save_every": 100_000}
    config["predict"] = config.get("predict", {}) | {"fidelity_questions": 0, "variants": ["adapter"]}
    config["device"] = device
    path = FOLDER / f"{slug(name)}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def slug(name: str) -> str:
    """A run's name for a recipe."""
    return "tune-" + "".join(c if c.isalnum() else "-" for c in name)


def one(name: str, device: str, cores: list[int], steps: int | None) -> None:
    """Runs a recipe in this process's share of the machine and prints what was measured as one line of JSON."""
    if cores:
        os.sched_setaffinity(0, cores)
    began, run, config = time.monotonic(), slug(name), config_of(name, device, steps)
    for stage in STAGES:
        only = ["--variant", "adapter"] if stage == "predict" else []
        harness(stage, "--run", run, "--config", str(config), *only, log=FOLDER / f"{run}.log")
    folder = PROJECT / "runs" / run
    kinds = {row["id"]: row["kind"] for row in read_lines(folder / "split" / "heldout.jsonl")}
    scores = read_lines(folder / "scores" / "adapter.jsonl")
    exact = {row["id"]: row["scores"]["exact_match_normalized"] for row in scores}
    trained = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    by_kind = {kind: [exact[i] for i in exact if kinds[i] == kind] for kind in sorted(set(kinds.values()))}
    result = {
        "recipe": name,
        "settings": RECIPES[name],
        "device": device,
        "cores": len(cores) or os.cpu_count(),
        "train_seconds": round(trained["seconds"], 1),
        "seconds": round(time.monotonic() - began, 1),
        "epochs": round(trained["epochs"], 2),
        "final_loss": trained["final_loss"],
        "train_rows": trained["rows"],
        "dev_rows": len(scores),
        "exact_match": round(statistics.fmean(exact.values()), 4),
        "exact_match_without_part": round(statistics.fmean(v for i, v in exact.items() if kinds[i] != "part"), 4),
        "token_f1": round(statistics.fmean(row["scores"]["token_f1"] for row in scores), 4),
        "exact_match_by_kind": {kind: [round(statistics.fmean(v), 3), len(v)] for kind, v in by_kind.items()},
    }
    print(json.dumps(result), flush=True)


def start(name: str, options: argparse.Namespace, slot: int) -> subprocess.Popen[str]:
    """A recipe in a separate process, on the cores of its slot."""
    cores = range(slot * options.threads, (slot + 1) * options.threads)
    available = sorted(os.sched_getaffinity(0))
    chosen = [available[core % len(available)] for core in cores] if options.device == "cpu" else []
    command = [sys.executable, __file__, "--one", name, "--device", options.device]
    command += ["--cores", ",".join(map(str, chosen))]
    command += ["--steps", str(options.steps)] if options.steps else []
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": python_path()}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)


def python_path() -> str:
    """The project in front of what was there."""
    return os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])


def run_all(names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs the recipes, `--jobs` at once, until the time is up; each result is logged as it comes."""
    ends, waiting, results = time.monotonic() + 60 * options.minutes, list(names), []
    running: dict[int, tuple[str, subprocess.Popen[str]]] = {}
    while (waiting or running) and time.monotonic() < ends:
        for slot in range(options.jobs):
            if waiting and slot not in running:
                name = waiting.pop(0)
                running[slot] = (name, start(name, options, slot))
        for slot, (name, process) in list(running.items()):
            if process.poll() is None:
                continue
            printed = process.stdout.read() if process.stdout else ""
            failed = {"recipe": name, "settings": RECIPES[name], "failed": process.returncode}
            results.append(json.loads(printed) if process.returncode == 0 else failed)
            log(results[-1], options.out)
            del running[slot]
        time.sleep(0.5)
    for name, process in running.values():
        os.killpg(process.pid, 9)
        waiting.insert(0, name)
    for name in waiting:
        results.append({"recipe": name, "settings": RECIPES[name], "failed": "not finished in time"})
        log(results[-1], options.out)
    return results


def log(result: dict[str, Any], path: Path) -> None:
    """Appends a result to the log and shows it."""
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps(result) + "\n")
    print(row_of(result), flush=True)


def row_of(result: dict[str, Any]) -> str:
    """A line of the table."""
    if "failed" in result:
        return f"| {result['recipe']} | | | | | {result['failed']} |"
    return (
        f"| {result['recipe']} | {result['exact_match_without_part']:.1%} | {result['token_f1']:.3f} | "
        f"{result['epochs']:.2f} | {result['final_loss']:.3f} | {result['train_seconds']:.0f} |"
    )


def table(results: list[dict[str, Any]], command: str) -> str:
    """The log as a page."""
    done = [r for r in results if "failed" not in r]
    measured = f"{done[0]['dev_rows']} dev questions, {done[0]['train_rows']} rows trained on" if done else "none ended"
    order = sorted(results, key=lambda r: -r.get("exact_match_without_part", -1))
    head = [
        "| recipe | exact match | token F1 | epochs | final loss | seconds of training |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    words = (
        f"# Development log of the recipe `tiny`\n\nEvery setting tried, the best first; `development.jsonl` has the settings and the kinds apart. "
        f"Exact match is normalised and leaves out the questions for the Part of an article. Each recipe was trained once; {measured}, "
        f"drawn from the training side of `tiny`: no held-out question was asked.\n\n    {command}\n"
    )
    return "\n".join([words, *head, *map(row_of, order)]) + "\n"


def main() -> None:
    """Sets the held-out side aside, runs the recipes and writes the log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, help="recipes at once; by default the cores divided by --threads")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(RECIPES))
    parser.add_argument("--steps", type=int, help="so many steps instead of each recipe's own, to try this script out")
    parser.add_argument("--out", type=Path, default=LOG, help="the log; its table stands beside it")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--cores", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one, options.device, [int(core) for core in options.cores.split(",") if core], options.steps)
        return
    options.jobs = options.jobs or max(1, (os.cpu_count() or 1) // options.threads)
    os.environ["PYTHONPATH"] = python_path()
    began = time.monotonic()
    print(f"{set_aside()} questions beside the held-out ones; {options.jobs} recipes at once")
    options.minutes -= (time.monotonic() - began) / 60
    options.out.unlink(missing_ok=True)
    results = run_all(options.only or list(RECIPES), options)
    page = table(results, f"python benchmarks/tune_tiny.py {shlex.join(sys.argv[1:])}".strip())
    options.out.with_suffix(".md").write_text(page, encoding="utf-8")
    sys.exit(0 if any("failed" not in r for r in results) else 1)


if __name__ == "__main__":
    main()
