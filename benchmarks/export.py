"""Seconds and memory of `harness export`, and whether every format begins its answers as the merged 16-bit model does.

    python benchmarks/export.py --run tiny --config tiny      on a trained run; takes what `harness export` takes

Exports again and samples the memory of the process; then asks each format the first held-out questions and counts how many of the first tokens match
`merged_16bit`. A 16-bit format should match; formats with fewer bits diverge where two tokens are almost equally probable.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from itertools import takewhile
from operator import eq
from pathlib import Path

from harness import backends, storage
from harness.backends import Execution, Generation, Source
from harness.config import load
from harness.models import base_model
from harness.prompt import Prompter, load_tokenizer, stop_ids
from harness.records import ExportManifest, Question
from harness.storage import RunFolder

QUESTIONS = 5
TOKENS = 12
MEMORY = re.compile(r"^(Rss|Anonymous): +(\d+) kB$", re.M)


def export(arguments: list[str]) -> None:
    """Runs the verb and prints its time and its peak memory."""
    began, most = time.monotonic(), {"Rss": 0, "Anonymous": 0}
    process = subprocess.Popen([sys.executable, "-m", "harness", "export", *arguments, "--force"])
    while process.poll() is None:
        try:
            sampled = MEMORY.findall(Path(f"/proc/{process.pid}/smaps_rollup").read_text())
        except OSError:  # it has just ended
            sampled = []
        most = {**most, **{name: max(most[name], int(kib) * 1024) for name, kib in sampled}}
        time.sleep(0.2)
    if process.returncode:
        sys.exit(process.returncode)
    anonymous, resident = (most[name] / 2**30 for name in ("Anonymous", "Rss"))
    print(
        f"exported in {time.monotonic() - began:.0f} s, hashing included; peak memory {anonymous:.1f} GiB, {resident:.1f} GiB with mapped files"
    )


def first_tokens(run: RunFolder, config_name: str, settings: list[str]) -> None:
    """Prints, for each format, how many first tokens of each answer equal those of the merged 16-bit model."""
    config = load(config_name, settings)
    device = base_model.device_of(config.device)
    tokenizer = load_tokenizer(run.merged_16bit)
    prompter = Prompter(tokenizer, config.prompt.template)
    prompts = [prompter.ids(q.question) for q in storage.read_records(run.heldout_jsonl, Question)[:QUESTIONS]]
    generation = Generation(TOKENS, ends := stop_ids(tokenizer, None), ends[0])
    exported = storage.read_record(run.export_json, ExportManifest).artifacts
    expected: list[list[int]] = []
    for name in sorted(set(exported) - {"adapter"}, key=lambda name: (name != "merged_16bit", name)):
        gguf = name.startswith("gguf_")
        execution = Execution("cpu" if gguf else device, config.predict.threads, 0)
        model = backends.find("llamacpp" if gguf else "transformers")(
            Source(run.path / exported[name].path), generation, execution
        )
        found = [completion.answer_ids for completion in model.answer(prompts)]
        model.close()
        expected = expected or found
        equal = [
            sum(1 for _ in takewhile(bool, map(eq, mine, theirs))) for mine, theirs in zip(found, expected, strict=True)
        ]
        print(
            f"{name}: {exported[name].seconds:.1f} s; first tokens equal: {equal} of {[len(answer) for answer in expected]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--qa")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    options = parser.parse_args()
    given = ["--run", options.run, "--config", options.config, *(["--qa", options.qa] if options.qa else [])]
    export(given + [word for setting in options.settings for word in ("--set", setting)])
    first_tokens(RunFolder(options.run), options.config, options.settings)


if __name__ == "__main__":
    main()
