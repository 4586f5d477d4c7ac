"""Seconds and peak memory of scoring and comparing, on synthetic answers.

python benchmarks/score_compare.py                 7 variants x 400 questions, and 7 x 100,000; 10,000 resamples
python benchmarks/score_compare.py 3 5000          3 variants x 5,000 questions
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TextIO

from harness import storage
from harness.config import Config
from harness.records import Cost, Prediction, PredictionManifest, PredictionSet, Question, SplitManifest
from harness.stages import compare, score
from harness.storage import RunFolder

SIZES = ((7, 400), (7, 100_000))
VARIANTS = ("base", "adapter", "merged_16bit", "merged_4bit", "gguf_f16", "gguf_q8_0", "gguf_q4_k_m")
WORDS = [
    f"{a}{b}"
    for a in ("ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu")
    for b in ("law", "ment", "tion", "er", "al", "ry")
]
COST = Cost(tokens_per_second=1.0, seconds=1.0, load_seconds=1.0, generated_tokens=1, peak_memory_bytes=1, size_bytes=1)


def make(run: RunFolder, n_variants: int, n: int) -> None:
    """Writes a split and predictions: answers of 1 to 40 words (15 on average), groups of 1 to 4, prompts of 100 tokens."""
    rng = random.Random(0)
    group, left, questions = 0, 0, []
    for i in range(n):
        if not left:
            group, left = group + 1, rng.randint(1, 4)
        left -= 1
        answer = (
            " ".join(rng.choices(WORDS, k=rng.randint(1, rng.choice([4, 15, 40]))))
            + f" of Article {rng.randint(1, 395)}"
        )
        questions.append(
            Question(
                id=f"q{i}",
                row=i + 1,
                question=f"Question {i}?",
                answer=answer,
                group=f"g{group}",
                kind=rng.choice("abcdef"),
            )
        )
    storage.write_jsonl(run.heldout_jsonl, questions)
    split = SplitManifest.model_construct(
        fingerprint="",
        split_id="s",
        source="made up",
        source_sha256="",
        n_train=1,
        n_heldout=n,
        n_groups_train=1,
        n_groups_heldout=group,
        heldout_requested=0.1,
        seed=0,
        similarity={},
        largest_groups=[],
        merges={},
        merge_examples=[],
        conflicts=[],
        leakage={},
        baselines={},
        seconds=0.0,
    )
    storage.write_json(run.split_json, split)
    prompt = list(range(100))
    for variant in VARIANTS[:n_variants]:
        lines, manifest = run.prediction(variant)
        # Written as plain JSON: making 700,000 records would take longer than scoring them.
        answer = Prediction(
            id="", prompt_hash="h", prompt_ids=prompt, answer_ids=[1], finish_reason="stop", seconds=0.0, text=""
        ).model_dump(mode="json")
        with lines_file(lines) as file:
            for q in questions:
                text = " ".join(w if rng.random() < 0.8 else rng.choice(WORDS) for w in q.answer.split())
                file.write(json.dumps(answer | {"id": q.id, "text": text}) + "\n")
        made = PredictionManifest(
            variant=variant,
            key=variant,
            split_id="s",
            backend="replay",
            backend_version="",
            weights_sha256="",
            tokenizer_sha256="",
            prompts_sha256="",
            lines_sha256=storage.sha256_file(lines),
            generation={},
            n=n,
            finish={"stop": n},
            prompts_cut=0,
            cost=COST,
        )
        storage.write_json(manifest, made)
    storage.write_json(run.predict_json, PredictionSet(fingerprint="", variants=list(VARIANTS[:n_variants])))


def lines_file(path: Path) -> TextIO:
    """The file, opened for writing; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", encoding="utf-8")


def measure(root: Path) -> None:
    """Scores and compares the run at `root` and prints time and memory; in a separate process, so that the peak memory is that of these two stages."""
    run, config = RunFolder("bench", root), Config()
    times = [time.perf_counter()]
    for stage in (score, compare):
        stage.run(run, config)
        times.append(time.perf_counter())
        print(f"{stage.__name__.rpartition('.')[2]} {times[-1] - times[-2]:.1f} s; ", end="", flush=True)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"together {times[2] - times[0]:.1f} s ({used.ru_utime + used.ru_stime:.1f} s of CPU), peak {used.ru_maxrss / 2**20:.2f} GiB"
    )


def main(sizes: tuple[tuple[int, int], ...]) -> None:
    for n_variants, n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            make(RunFolder("bench", folder), n_variants, n)
            print(f"{n_variants} variants x {n:,} questions: ", end="", flush=True)
            subprocess.run([sys.executable, __file__, "--measure", folder], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]))
    else:
        main(((int(sys.argv[1]), int(sys.argv[2])),) if len(sys.argv) == 3 else SIZES)
