"""Predict and score many times in one process: does anything accumulate?

    python benchmarks/soak.py --replay 50 --real 5

Each cycle answers and scores the held-out questions again: with recorded answers (the replay backend), then with the embedded model itself, through
transformers and as GGUF. After each cycle the memory of the process and of those it started is measured, and its open files, threads, processes and
temporary files are counted. Exits 1 if memory grew by more than 5% after the warm-up, or anything else by one.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.util import Finalize
from pathlib import Path

import psutil

from harness.config import Config, load
from harness.formats import gguf
from harness.stages import predict, score, split
from harness.storage import RunFolder

PROJECT = Path(__file__).parents[1]
WARM_UP = 3
"""Cycles until every library is loaded and its caches are filled."""
GROWTH = 0.05
"""Largest allowed growth of the memory after the warm-up, as a fraction."""


@dataclass(frozen=True)
class Held:
    """Resources of a process at one moment."""

    memory_bytes: int
    """Memory unique to this process and to those it started; pages that they share count once at most."""
    files: int
    threads: int
    processes: int
    temporary: int
    """Files and folders in the folder for temporary files."""


def held() -> Held:
    """Resources that this process and its descendants hold now."""
    gc.collect()
    own = psutil.Process()
    family = [own, *own.children(recursive=True)]
    temporary = sum(1 for _ in Path(tempfile.gettempdir()).iterdir())
    return Held(
        sum(p.memory_full_info().uss for p in family), own.num_fds(), threading.active_count(), len(family), temporary
    )


def cycles(run: RunFolder, config: Config, n: int) -> Iterator[Held]:
    """Answers and scores `n` times; yields the resources held after each."""
    for _ in range(n):
        predict.run(run, config, force=True)
        score.run(run, config, force=True)
        yield held()


def grown(found: list[Held], warm_up: int = WARM_UP) -> list[str]:
    """What grew between the end of the warm-up and the last cycle, in words; empty if nothing did."""
    first, last = found[warm_up - 1], found[-1]
    growth = last.memory_bytes / first.memory_bytes - 1
    problems = [f"memory grew by {growth:.1%}"] if growth > GROWTH else []
    counted = {name: (value, asdict(last)[name]) for name, value in asdict(first).items() if name != "memory_bytes"}
    return problems + [f"{name}: {before}, then {after}" for name, (before, after) in counted.items() if after > before]


def prepare(folder: Path, model: Path, qa: Path, *settings: str) -> tuple[RunFolder, Config, Config]:
    """(run, config that replays, config that answers): a split, and recorded answers to its held-out questions.

    Args:
        folder: the run goes there, and a GGUF file of the model.
        settings: further `KEY=VALUE`.
    """
    file = folder / "model.gguf"
    gguf.write(model, file, "q8_0")
    common = [
        f"model.path={model}",
        f"data.qa={qa}",
        "device=cpu",
        "score.resamples=200",
        "wandb.enabled=false",
        *settings,
    ]
    real = load(
        "tiny", [*common, "predict.variants=[base]", f"predict.extra={{gguf: {{backend: llamacpp, path: '{file}'}}}}"]
    )
    run = RunFolder("soak", folder)
    split.run(run, real)
    predict.run(run, real)
    answers = folder / "answers.jsonl"
    shutil.copyfile(run.prediction("base")[0], answers)
    replay = load(
        "tiny", [*common, "predict.variants=[]", f"predict.extra={{recorded: {{backend: replay, path: '{answers}'}}}}"]
    )
    return run, replay, real


def soak(run: RunFolder, config: Config, n: int, log: Callable[[str], None] = lambda _: None) -> list[Held]:
    """`cycles` as a list, each logged as a line."""
    found = []
    for i, now in enumerate(cycles(run, config, n), 1):
        found.append(now)
        log(
            f"{i:4} {now.memory_bytes / 1e6:8.1f} MB {now.files:4} files {now.threads:3} threads {now.processes:3} processes {now.temporary:3} temporary"
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replay", type=int, default=50, help="cycles with recorded answers")
    parser.add_argument("--real", type=int, default=5, help="cycles with the embedded model")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="soak-tmp-")
        # The workers' own folder is in it and is removed last.
        Finalize(None, shutil.rmtree, args=(tempfile.tempdir, True), exitpriority=-200)
        quick = ["data.heldout=40", "predict.max_new_tokens=24", "predict.fidelity_questions=4"]
        run, replay, real = prepare(
            folder, PROJECT / "data" / "tiny-llama3", PROJECT / "data" / "constitution_qa.json", *quick
        )
        for what, config, n in (
            ("recorded answers", replay, options.replay),
            ("the embedded model", real, options.real),
        ):
            print(f"{what}:", flush=True)
            warm_up = min(WARM_UP, n - 1)
            found = soak(run, config, n, lambda line: print(line, flush=True))
            problems = grown(found, warm_up)
            growth = found[-1].memory_bytes / found[warm_up - 1].memory_bytes - 1
            print(
                f"{n} cycles: memory {growth:+.1%} after the warm-up; {'; '.join(problems) or 'nothing else grew'}\n",
                flush=True,
            )
            failed += bool(problems)
        tempfile.tempdir = None
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
