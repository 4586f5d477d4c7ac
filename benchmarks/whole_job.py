"""A whole job, timed stage by stage: split, train, export, predict, score, compare and report, each the verb that users type.

    python benchmarks/whole_job.py --run NAME [--config llama3-8b] [--budget 540] [--set KEY=VALUE ...]

A stage that still runs after `--budget` seconds is interrupted as by Ctrl-C; the same command resumes where it stopped (exit code 3 until all is
done), and the times add up in runs/NAME/whole_job.json. On random weights of the Llama-3 8B shape, on a GPU host:

    python benchmarks/random_llama.py models/random-8b
    python benchmarks/whole_job.py --run whole-8b --set model.path=models/random-8b [--set predict.libllama=FOLDER]
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

STAGES = ("split", "train", "export", "predict", "score", "compare", "report")
SECONDS_TO_END = 45
"""Seconds that an interrupted stage gets to save its work."""
UNFINISHED = 3


def run(stage: str, arguments: list[str], seconds: float) -> tuple[int | None, float]:
    """(exit code, or None if it was ended; seconds that it took)."""
    began = time.monotonic()
    child = subprocess.Popen([sys.executable, "-m", "harness", stage, *arguments])
    try:
        return child.wait(max(seconds, 1)), time.monotonic() - began
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        return None, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--config", default="llama3-8b")
    parser.add_argument("--qa")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds of this call")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    options = parser.parse_args()
    file = Path("runs") / options.run / "whole_job.json"
    times: dict[str, dict[str, float | bool]] = json.loads(file.read_text()) if file.exists() else {}
    common = ["--run", options.run, "--config", options.config, *(["--qa", options.qa] if options.qa else [])]
    common += [part for setting in options.settings for part in ("--set", setting)]
    end = time.monotonic() + options.budget
    for stage in STAGES:
        entry = times.setdefault(stage, {"seconds": 0.0, "done": False})
        if entry["done"]:
            continue
        code, took = run(stage, common, end - time.monotonic() - SECONDS_TO_END)
        entry["seconds"], entry["done"] = float(entry["seconds"]) + took, code == 0
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(times, indent=2))
        if code:
            sys.exit(code)
        if code is None:
            break
    for stage, entry in times.items():
        print(f"{stage:8} {entry['seconds']:8.1f} s{'' if entry['done'] else '  (not done yet)'}")
    print(f"{'in all':8} {sum(float(entry['seconds']) for entry in times.values()):8.1f} s")
    sys.exit(0 if all(times.get(stage, {}).get("done") for stage in STAGES) else UNFINISHED)


if __name__ == "__main__":
    main()
