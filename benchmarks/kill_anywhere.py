"""Kills the stages at random moments, runs the same command again, and compares everything with an undisturbed run.

    python benchmarks/kill_anywhere.py --kills 30 --interrupts 12 --seed 1

Each stage of the embedded default (shortened: see SETTINGS) is started, ended at a random moment, and started again until it is done; what it then
has written must equal what an undisturbed run wrote, byte for byte but for times (see `TIMES`). The next stage continues from there. A kill is
SIGKILL, alternately to the whole process group and to the stage's own process alone; an interrupt is SIGINT to the group, as Ctrl-C sends it, or SIGTERM
to the stage's process, as `kill` and containers do.

Prints a line for each kill and a table; exits 1 if anything differed.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.config import load
from harness.stages import report
from harness.storage import RunFolder

PROJECT = Path(__file__).parents[1]
QUESTIONS = 240
SETTINGS = (
    "data.heldout=24",
    "train.max_steps=12",
    "train.save_every=3",
    "train.eval_rows=8",
    "train.eval_every=6",
    "predict.max_new_tokens=24",
    "predict.max_batch=4",
    "predict.fidelity_questions=4",
    "score.resamples=200",
    "compare.resamples=200",
)
SHARES = {"train": 8, "export": 6, "predict": 8, "score": 3, "compare": 2, "report": 3}
"""How the kills are spread over the stages."""
TIMES = {
    "seconds",
    "load_seconds",
    "tokens_per_second",
    "peak_memory_bytes",
    "started",
    "ended",
    "resumed_from",
    "stages",
    "checksum",
    "lines_sha256",
    "history_sha256",
    "slots",
    "threads",
    "how",
}
"""Keys that are not compared: times, memory, what llama.cpp measures to be fastest (also in the noise's `how`), the step that a training resumed from, and hashes of files that hold times."""
APART = {".lock", "run.json", "selection"}
"""Files that are not compared: the holder of the lock, and the log of the stages with their times."""
ENDED = "had ended"
GONE_S = 20.0
"""Seconds within which all processes of a killed stage must have ended."""


@dataclass(frozen=True)
class Kill:
    """One kill and its outcome."""

    stage: str
    signal: str
    at: float
    """Share of the stage's undisturbed time."""
    found: str
    """What the stage had begun to write."""
    problem: str = ""
    """Empty: everything was as in the undisturbed run."""


def hear_interrupts() -> None:
    """Restores SIGINT in a new process: a shell makes its background jobs, and their children, ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Bench:
    """A folder in which the stages run.

    Args:
        folder: made if it is not there.
        arguments: of every stage.
        durations: stage -> seconds undisturbed, which the times of the kills are shares of; `finish` measures those that are missing.
    """

    def __init__(
        self, folder: Path, arguments: Sequence[str], *, name: str = "tiny", durations: dict[str, float] | None = None
    ):
        self.folder, self.arguments, self.mark = folder, arguments, uuid.uuid4().hex
        self.run, self.durations = RunFolder(name, folder), dict(durations or {})
        (folder / "tmp").mkdir(parents=True, exist_ok=True)

    def start(self, verb: str) -> subprocess.Popen[str]:
        """Starts a stage in a separate session (and process group)."""
        environment = os.environ | {
            "WANDB_MODE": "offline",
            "TMPDIR": str(self.folder / "tmp"),
            "SURVIVAL_MARK": self.mark,
            "PYTHONPATH": str(PROJECT),
        }
        return subprocess.Popen(
            [sys.executable, "-m", "harness", verb, *self.arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=hear_interrupts,
        )

    def finish(self, verb: str) -> None:
        """Runs a stage to its end; RuntimeError if it fails."""
        began = time.monotonic()
        process = self.start(verb)
        out, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{verb} ended with {process.returncode}: {out[-2000:]}\n{errors[-4000:]}")
        self.durations.setdefault(verb, time.monotonic() - began)

    def left(self) -> list[int]:
        """Processes of this bench that are still running."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (entry / "environ").read_bytes() and entry.name != str(os.getpid()):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def is_locked(self) -> bool:
        """Whether a process holds the lock of the run folder."""
        with (self.run.path / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False


# ---------------------------------------------------------------------------------------------------------- comparison


def without_times(value: Any, dropped: set[str] = TIMES) -> Any:
    """A JSON value without the keys in `TIMES`, at every depth."""
    if isinstance(value, dict):
        return {key: without_times(part, dropped) for key, part in value.items() if key not in dropped}
    return [without_times(part, dropped) for part in value] if isinstance(value, list) else value


def contents(run: RunFolder) -> dict[str, Any]:
    """Path -> content of everything that the stages wrote, without times."""
    found: dict[str, Any] = {}
    for root in (run.path, run.reports):
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            name = file.relative_to(run.root).as_posix()
            if file.name in APART or "/wandb/" in name or file.suffix in (".html", ".md"):
                continue
            # The fingerprints of scores and comparison cover files with times.
            dropped = TIMES | ({"fingerprint"} if "/scores/" in name or name.startswith("reports/") else set())
            if file.suffix == ".json":
                found[name] = without_times(json.loads(file.read_bytes()), dropped)
            elif file.suffix == ".jsonl":
                found[name] = [without_times(json.loads(line), dropped) for line in file.read_bytes().splitlines()]
            else:
                found[name] = file.read_bytes()
    return found


def pages(run: RunFolder) -> dict[str, bytes]:
    """report.html and report.md, rendered from a copy of the run's files in which every time is 0."""
    with tempfile.TemporaryDirectory() as scratch:
        return _rendered(run, RunFolder(run.name, scratch))


def _rendered(run: RunFolder, copy: RunFolder) -> dict[str, bytes]:
    for name, value in contents(run).items():
        target = copy.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = run.root / name
        if source.suffix == ".json":
            target.write_text(json.dumps(_zeroed(json.loads(source.read_bytes()))), encoding="utf-8")
        elif source.suffix == ".jsonl":
            lines = source.read_bytes().splitlines()
            target.write_text("".join(json.dumps(_zeroed(json.loads(line))) + "\n" for line in lines), encoding="utf-8")
        elif isinstance(value, bytes):
            target.symlink_to(source.resolve())
    report.run(copy, load("tiny"), force=True)
    return {file.name: file.read_bytes() for file in (copy.report_html, copy.report_md)}


def _zeroed(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: ("" if isinstance(part, str) else {} if isinstance(part, dict) else 0)
            if key in TIMES | {"fingerprint"}
            else _zeroed(part)
            for key, part in value.items()
        }
    return [_zeroed(part) for part in value] if isinstance(value, list) else value


def differences(run: RunFolder, reference: RunFolder) -> list[str]:
    """The files that differ or exist on one side only."""
    left, right = contents(run), contents(reference)
    return sorted(
        name
        for name in left.keys() | right.keys()
        if name not in left or name not in right or left[name] != right[name]
    )


# --------------------------------------------------------------------------------------------------------------- kills


def kill_once(
    bench: Bench,
    reference: RunFolder,
    stage: str,
    how: str,
    share: float = 1.0,
    *,
    again: bool = False,
    when: Callable[[RunFolder], object] = lambda _: False,
) -> Kill:
    """Starts a stage, ends it at a moment, runs it again until it is done, and compares.

    Args:
        how: SIGKILL, SIGKILL-alone, SIGINT or SIGTERM.
        share: fraction of the stage's undisturbed time after which it is ended.
        again: the next attempt is killed as well.
        when: a condition that ends it earlier, as soon as it is true.
    """
    problems: list[str] = []
    found = end(bench, stage, how, share, when, problems)
    if again:
        end(bench, stage, how, share * 0.7, when, problems)
    answers = dict(journalled(bench.run))
    bench.finish(stage)
    problems += [f"{name} differs" for name in differences(bench.run, reference)]
    problems += [
        f"{variant}: {lost} kept answers were asked again" for variant, lost in asked_again(bench.run, answers)
    ]
    if stage == "report" and not bench.run.report_html.exists():
        problems.append("no report")
    shutil.rmtree(bench.folder / "tmp")
    (bench.folder / "tmp").mkdir()
    return Kill(stage, how, round(share, 3), found, "; ".join(problems))


def end(
    bench: Bench, stage: str, how: str, share: float, when: Callable[[RunFolder], object], problems: list[str]
) -> str:
    """Starts a stage and ends it, as `kill_once` does; returns what it had begun to write, and adds what went wrong to `problems`."""
    earlier = _temporary(bench)
    process = bench.start(stage)
    if how in ("SIGINT", "SIGTERM"):
        # Wait for the first line: while Python itself starts, its own handling of interrupts applies.
        assert process.stdout
        process.stdout.readline()
    began = time.monotonic()
    while time.monotonic() < began + share * bench.durations[stage] and process.poll() is None and not when(bench.run):
        time.sleep(0.002)
    if process.poll() is not None:
        _, errors = process.communicate()
        if process.returncode:
            problems.append(f"ended before the kill, with exit code {process.returncode}: {errors.strip()[-1500:]!r}")
        bench.durations[stage] = time.monotonic() - began
        return ENDED
    number = getattr(signal, how.partition("-")[0])
    if how in ("SIGKILL", "SIGINT"):
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    errors = process.communicate()[1]
    deadline = time.monotonic() + GONE_S
    while (left := bench.left()) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        problems.append(f"{len(left)} processes are still running after {GONE_S:.0f} s")
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    if how in ("SIGINT", "SIGTERM") and (rest := _temporary(bench) - earlier):
        problems.append(f"left {min(rest)} among the temporary files")
    if bench.is_locked():
        problems.append("the run folder is still locked")
    if how in ("SIGINT", "SIGTERM") and process.returncode != 0:
        lines = errors.strip().splitlines()
        if process.returncode != 130 or len(lines) != 1 or "run the same command to resume" not in lines[-1]:
            problems.append(f"exit {process.returncode}, and on stderr: {errors.strip()[-1500:]!r}")
    return begun(bench.run)


def _temporary(bench: Bench) -> set[str]:
    # torch keeps its cache of compiled kernels there.
    return {p.name for p in (bench.folder / "tmp").iterdir() if not p.name.startswith("torchinductor_")}


def begun(run: RunFolder) -> str:
    """The unfinished files of a run, in words."""
    found = sorted(
        {
            p.name.split(".")[1]
            for p in [*run.path.glob(".*.tmp"), *run.path.glob("*/.*.tmp"), *run.reports.glob(".*.tmp")]
        }
    )
    partial = [
        f"{p.name} with {len(p.read_bytes().splitlines()) - 1} answers"
        for p in sorted(run.predictions.glob("*.partial"))
    ]
    checkpoints = [f"{len(list(run.checkpoints.glob('checkpoint-*')))} checkpoints"] if run.checkpoints.is_dir() else []
    return ", ".join([*(f"half of {name}" for name in found), *partial, *checkpoints])


def journalled(run: RunFolder) -> Iterator[tuple[str, dict[str, float]]]:
    """(variant, question -> seconds) of the answers that an interrupted predict kept; the seconds distinguish an answer from a later one."""
    for file in sorted(run.predictions.glob("*.partial")):
        answers = {}
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()[1:]:
            try:
                _, fields = json.loads(line[line.index("[") :])
            except ValueError:
                continue
            answers[fields["id"]] = fields["seconds"]
        yield file.stem, answers


def asked_again(run: RunFolder, kept: dict[str, dict[str, float]]) -> Iterator[tuple[str, int]]:
    """(variant, number of kept answers that were asked again)."""
    for variant, seconds in kept.items():
        lines = run.prediction(variant)[0].read_text(encoding="utf-8").splitlines()
        final = {row["id"]: row["seconds"] for row in map(json.loads, lines)}
        if lost := sum(final[question] != value for question, value in seconds.items()):
            yield variant, lost


# ---------------------------------------------------------------------------------------------------------------- main


def plan(kills: int, interrupts: int, seed: int, stages: Sequence[str]) -> dict[str, list[tuple[str, float, bool]]]:
    """Stage -> (how, share of its time, whether the next attempt is killed as well) of each kill; determined by the seed."""
    rng = random.Random(seed)
    order = [stage for stage, share in SHARES.items() for _ in range(share)]
    drawn: dict[str, list[tuple[str, float, bool]]] = {stage: [] for stage in SHARES}
    for i in range(kills):
        drawn[order[i * len(order) // kills]].append(
            (("SIGKILL", "SIGKILL-alone")[i % 2], rng.uniform(0.02, 1.0), rng.random() < 0.25)
        )
    for i in range(interrupts):
        drawn[order[i * len(order) // interrupts]].append((("SIGINT", "SIGTERM")[i % 2], rng.uniform(0.0, 0.8), False))
    return {stage: drawn[stage] for stage in stages}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--interrupts", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", default=",".join(SHARES), help="only these; those before them run undisturbed")
    parser.add_argument("--folder", type=Path, help="work here, and keep the undisturbed run for the next call")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    root = options.folder or Path(tempfile.mkdtemp(prefix="kill-anywhere-"))
    wanted = plan(options.kills, options.interrupts, options.seed, options.stages.split(","))
    results = list(run_all(root, wanted, options.settings))
    if options.folder is None:
        shutil.rmtree(root)
    return 1 if table(results) else 0


def embedded(folder: Path, settings: Sequence[str]) -> Bench:
    """A bench for the embedded default, with `QUESTIONS` of its questions, evenly spaced."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    if not (data / "tiny-llama3").exists():
        (data / "tiny-llama3").symlink_to(PROJECT / "data" / "tiny-llama3")
    rows = json.loads((PROJECT / "data" / "constitution_qa.json").read_text(encoding="utf-8"))
    (data / "constitution_qa.json").write_text(
        json.dumps(rows[:: len(rows) // QUESTIONS][:QUESTIONS]), encoding="utf-8"
    )
    return Bench(folder, [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)])


def run_all(
    root: Path, wanted: dict[str, list[tuple[str, float, bool]]], settings: Sequence[str] = ()
) -> Iterator[Kill]:
    """Runs the undisturbed and the disturbed chain; yields each kill."""
    bench, snapshots = embedded(root / "disturbed", settings), root / "undisturbed"
    times = snapshots / "durations.json"
    stages = ["split", *SHARES]
    if not times.exists():
        whole = embedded(root / "whole", settings)
        for stage in stages:
            whole.finish(stage)
            _copy(whole.folder, snapshots / stage)
        times.write_text(json.dumps(whole.durations))
    bench.durations = json.loads(times.read_text())
    before = snapshots / "split"
    for stage in stages[1:]:
        reference = RunFolder("tiny", snapshots / stage)
        for how, share, again in wanted.get(stage, []):
            kill = Kill(stage, how, share, ENDED)
            while kill.found == ENDED and not kill.problem:
                _copy(before, bench.folder)
                kill = kill_once(bench, reference, stage, how, share, again=again)
            print(
                f"{kill.stage:8} {kill.signal:14} at {kill.at:4.0%}  {kill.problem or 'equal'}  ({kill.found or 'nothing begun'})",
                flush=True,
            )
            yield kill
        # The chain continues from what the last kill left (perhaps in an earlier call), or else from the undisturbed run.
        before = root / "after" / stage
        if wanted.get(stage) or not before.exists():
            _copy(bench.folder if wanted.get(stage) else snapshots / stage, before)
    if "report" in wanted:
        same = pages(RunFolder("tiny", before)) == pages(RunFolder("tiny", snapshots / "report"))
        yield Kill("report", "end of the chain", 1.0, "", "" if same else "the page differs")


def _copy(source: Path, target: Path) -> None:
    """Makes the outputs of `target` those of `source`."""
    for name in ("runs", "reports"):
        shutil.rmtree(target / name, ignore_errors=True)
        if (source / name).exists():
            shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("wandb"))


def table(results: Sequence[Kill]) -> int:
    """Prints the table of outcomes; returns the number of failures."""
    print("\n| stage | signal | times | equal | not |\n| --- | --- | --- | --- | --- |")
    keys = list(dict.fromkeys((kill.stage, kill.signal) for kill in results))
    for stage, how in keys:
        same = [kill.problem == "" for kill in results if (kill.stage, kill.signal) == (stage, how)]
        print(f"| {stage} | {how} | {len(same)} | {sum(same)} | {len(same) - sum(same)} |")
    bad = [asdict(kill) for kill in results if kill.problem]
    print(json.dumps(bad, indent=1) if bad else f"{len(results)} of {len(results)} as in the undisturbed run")
    return len(bad)


if __name__ == "__main__":
    sys.exit(main())
