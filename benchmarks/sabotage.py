"""Real faults in the real pipeline on the embedded default, and the gate's verdict on each.

make eval && python benchmarks/sabotage.py             everything: six trainings, half an hour on two cores
python benchmarks/sabotage.py double_bos template      some cases; needs the finished run `tiny`
python benchmarks/sabotage.py --store                  also keeps the answers in tests/golden/sabotage/, for tests/e2e/test_sabotage.py

Every verb runs through the command line, in a separate process with the fault injected; the runs stay in runs/sabotage-*.
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "sabotage"
TUNED = ("adapter", "merged_16bit", "gguf_q8_0", "gguf_q4_k_m")
"""The variants whose answers are kept: one of each backend and kind of weights."""

# -------------------------------------------------------------------------------------------------------------- faults


def shuffle_answers() -> None:
    """A fifth of the training rows swap answers."""
    from harness import storage

    write = storage.write_jsonl

    def shuffled(path: Path, rows: Iterable[Any]) -> None:
        rows = list(rows)
        if path.name == "train.jsonl":
            rng = random.Random(0)
            chosen = rng.sample(range(len(rows)), len(rows) // 5)
            answers = [rows[i].answer for i in chosen]
            rng.shuffle(answers)
            for i, answer in zip(chosen, answers, strict=True):
                rows[i] = rows[i].model_copy(update={"answer": answer})
        write(path, rows)

    storage.write_jsonl = shuffled


def leave_the_end_unlabelled() -> None:
    """The end token of every training row carries no loss."""
    from harness.prompt import IGNORED, Prompter

    example = Prompter.example

    def without(self: Prompter, *args: Any, **options: Any) -> Any:
        row = example(self, *args, **options)
        labels = [
            IGNORED if token == self.eos else label for token, label in zip(row.input_ids, row.labels, strict=True)
        ]
        return replace(row, labels=labels)

    Prompter.example = without  # pyright: ignore[reportAttributeAccessIssue]


def double_the_bos() -> None:
    """The prompt gets a second BOS, and its hash covers both."""
    from harness.prompt import Prompter

    ids = Prompter.ids
    Prompter.ids = lambda self, *asked: self.bos + ids(self, *asked)


def double_the_bos_unseen() -> None:
    """The backends put a second BOS before a prompt that was hashed without it."""
    from harness.backends.llamacpp import LlamaCppBackend
    from harness.backends.transformers import TransformersBackend

    backends: list[Any] = [LlamaCppBackend, TransformersBackend]
    for backend in backends:
        backend.answer = lambda self, prompts, answer=backend.answer: answer(self, [[p[0], *p] for p in prompts])


def forget_the_adapter() -> None:
    """The adapter is not applied."""
    from harness.prediction import jobs

    source = jobs._source

    def bare(*args: Any) -> Any:
        backend, found, *rest = source(*args)
        return backend, replace(found, adapter=None), *rest

    jobs._source = bare


def quantise_to_another_type() -> None:
    """The file that is called q8_0 has the tensors of q4_0."""
    from harness.formats import llama

    plan = llama.plan
    llama.plan = lambda folder, config, type, *rest: plan(folder, config, "q4_0" if type == "q8_0" else type, *rest)


# --------------------------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """One change.

    Args:
        settings: of every verb from `since` on.
        fault: injected into every verb from `since` on.
        since: the first verb that runs; the output of the verbs before it is taken from the run `tiny`.
        only: the variants that are answered again; the others keep tiny's answers.
    """

    settings: tuple[str, ...] = ()
    fault: Callable[[], None] | None = None
    since: str = "split"
    only: tuple[str, ...] = ()


CASES = {
    "learning_rate": Case(("train.learning_rate=0.2",)),
    "shuffled_answers": Case(fault=shuffle_answers),
    "eos_unlabelled": Case(fault=leave_the_end_unlabelled),
    "seed_1": Case(("train.seed=1",)),
    "seed_2": Case(("train.seed=2",)),
    "slicing": Case(("train.micro_batch_size=8",)),
    "template": Case(('prompt.template="Question: {question}\\nAnswer: "',), since="predict"),
    "double_bos": Case(fault=double_the_bos, since="predict"),
    "double_bos_unseen": Case(fault=double_the_bos_unseen, since="predict"),
    "no_adapter": Case(fault=forget_the_adapter, since="predict", only=("adapter",)),
    "wrong_type": Case(fault=quantise_to_another_type, since="export", only=("gguf_q8_0",)),
    "batch": Case(("predict.max_batch=7", "predict.slots=2"), since="predict"),
}
VERBS = ("split", "train", "export", "predict", "score", "compare", "gate")


def sabotage(name: str) -> int:
    """Runs one case to the gate, whose exit code it returns."""
    case, run = CASES[name], f"sabotage-{name}"
    settings = ["wandb.enabled=false", *case.settings]
    if case.since == "split":
        settings.append("predict.fidelity_questions=0")
    else:
        shutil.copytree("runs/tiny", f"runs/{run}", dirs_exist_ok=True)
        if case.since == "export":
            Path(f"runs/{run}/export.json").unlink()
    chosen = ["--run", run, *(word for setting in settings for word in ("--set", setting))]
    for verb in VERBS[VERBS.index(case.since) :]:
        # The fingerprint of an answer does not cover the fault, so tiny's answers would be kept without --force.
        again = (
            ["--force", *(word for variant in case.only for word in ("--variant", variant))]
            if verb == "predict"
            else []
        )
        code = subprocess.run([sys.executable, __file__, "--fault", name, verb, *chosen, *again]).returncode
        if code and verb != "gate":
            raise SystemExit(f"{name}: {verb} ended with {code}")
    return code


def keep(run: str, name: str, variants: Iterable[str]) -> None:
    """Writes what a run answered as a golden file: for each variant the texts and finish reasons in the order of the split, and the hash of its weights."""
    kept = {}
    for variant in variants:
        rows = [
            json.loads(line)
            for line in Path(f"runs/{run}/predictions/{variant}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        manifest = json.loads(Path(f"runs/{run}/predictions/{variant}.json").read_text(encoding="utf-8"))
        kept[variant] = {
            "answers": [[row["text"], row["finish_reason"]] for row in rows],
            "size_bytes": manifest["cost"]["size_bytes"],
            "weights_sha256": manifest["weights_sha256"],
        }
    GOLDEN.mkdir(parents=True, exist_ok=True)
    text = json.dumps(kept, ensure_ascii=False, separators=(",", ":"))
    (GOLDEN / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def main(arguments: list[str]) -> None:
    names = [a for a in arguments if a != "--store"] or list(CASES)
    codes = {name: sabotage(name) for name in names}
    if "--store" in arguments:
        (GOLDEN / "questions.jsonl.gz").write_bytes(
            gzip.compress(Path("runs/tiny/split/heldout.jsonl").read_bytes(), 9, mtime=0)
        )
        keep("tiny", "tiny", ("base", *TUNED))
        for name in names:
            keep(f"sabotage-{name}", name, CASES[name].only or TUNED)
    for name, code in codes.items():
        result = json.loads(Path(f"reports/sabotage-{name}/gate.json").read_text(encoding="utf-8"))
        print(f"{name}: exit {code}, {result['reason']}")


def faulty(name: str, arguments: list[str]) -> None:
    """`harness` with a case's fault in it; answers come from this process, since a child process would not have the fault."""
    from harness import cli

    if name in CASES and (fault := CASES[name].fault):
        from harness.stages import predict

        predict._in_own_process = predict.answer
        fault()
    sys.argv = ["harness", *arguments]
    cli.main()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fault"]:
        faulty(sys.argv[2], sys.argv[3:])
    else:
        main(sys.argv[1:])
