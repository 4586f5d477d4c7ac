"""Feeds broken files to every reader of untrusted files, and fails where one ends in anything but success or a one-line error.

    python benchmarks/fuzz.py --seconds 60            every reader in turn, a minute each, guided by coverage (needs: pip install atheris)
    python benchmarks/fuzz.py qa.csv --seconds 600    one reader

Prints how many inputs each reader was given. An input that is neither accepted nor refused with a HarnessError is a bug, and so is one
that takes more than ten seconds or two gigabytes: its traceback and its bytes are printed, and the process fails.
"""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from harness import config, storage
from harness.errors import HarnessError, visible
from harness.formats import gguf, safetensors_reader
from harness.gating import baseline
from harness.questions import dataset
from harness.records import Baseline, BaselineQuestion, BaselineVariant, Prediction
from harness.storage import records_io, strict_json, strict_yaml

SECONDS_AN_INPUT, MEGABYTES = 10, 2048


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "qa.json": ("qa.json", dataset.load),
    "qa.jsonl": ("qa.jsonl", dataset.load),
    "qa.csv": ("qa.csv", dataset.load),
    "config": ("c.yaml", lambda path: config.load(str(path))),
    "set": ("value", lambda path: config.load("tiny", [path.read_bytes().decode("utf-8", "surrogateescape")])),
    "baseline": ("baseline.json", lambda path: baseline.describe(baseline.read(path))),
    "predictions": ("p.jsonl", lambda path: storage.read_records(path, Prediction)),
    "safetensors": ("model.safetensors", lambda path: safetensors_reader.index(path.parent)),
    "gguf": ("m.gguf", gguf.check),
}
"""Name of the reader -> the file that it reads, and the function."""

ROW = {
    "id": "a",
    "question": "Who?",
    "answer": "The President",
    "references": ["He"],
    "article": 14,
    "extra": {"x": [1.5, None, True]},
}
PREDICTION = Prediction(
    id="a", prompt_hash="h", prompt_ids=[1, 2], answer_ids=[3], text="He", finish_reason="stop", seconds=0.1
)
VARIANT = BaselineVariant(prediction_key="k", weights_sha256="w", backend="b", means={"token_f1": 0.5})
BASELINE = Baseline(
    run="r",
    saved="2026",
    split_id="s",
    prompts_sha256="p",
    generation={},
    metrics={"token_f1": "f1|v:1"},
    variants={"adapter": VARIANT},
    config={"train": {"seed": 1}},
    provenance={"git": {"commit": "c", "dirty": False}},
    questions=[BaselineQuestion(id="a", group="g", sha256="s", scores={"adapter": [0.5]})],
)


def seeds(name: str) -> list[bytes]:
    """The seed corpus: files that the reader accepts, or nearly accepts."""
    header = json.dumps(
        {"a": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}, "__metadata__": {"format": "pt"}}
    ).encode()
    texts = {
        "qa.json": [json.dumps([ROW, ROW | {"id": "b"}])],
        "qa.jsonl": [json.dumps(ROW) + "\n" + json.dumps(ROW | {"id": "b"}) + "\n"],
        "qa.csv": ['id,question,answer,references,x\na,Who?,"He, or ""she""",He|She,1\n'],
        "config": [
            (config.CONFIGS / "tiny.yaml").read_text(),
            "a: &a [x, *a]\nb: !!bool x\ndata: {<<: {seed: 0x1F}, qa: 2026-01-26}\n",
        ],
        "set": ["train.lora.r=8", "predict.extra.x={backend: replay, path: p}"],
        "baseline": [storage.dumps(BASELINE)],
        "predictions": [
            storage.dumps(PREDICTION) + "\n" + storage.dumps(PREDICTION.model_copy(update={"error": "e"})) + "\n"
        ],
    }
    if name == "safetensors":
        return [len(header).to_bytes(8, "little") + header + bytes(8)]
    if name == "gguf":
        return [_gguf()]
    return [text.encode() for text in texts[name]]


def _gguf() -> bytes:
    import numpy as np
    from gguf import GGUFWriter

    with tempfile.TemporaryDirectory() as folder:
        writer = GGUFWriter(path := Path(folder) / "m.gguf", "llama")
        writer.add_context_length(8)
        writer.add_token_list(["a", "b"])
        writer.add_eos_token_id(1)
        writer.add_tensor("a", np.ones((2, 4), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def feed(name: str, data: bytes, folder: Path) -> bool:
    """Gives a reader a file of these bytes; returns whether it accepted it. Raises what is neither success nor a one-line error."""
    file, reader = READERS[name]
    path = folder / file
    path.write_bytes(data)
    try:
        reader(path)
    except HarnessError as error:
        assert "\n" not in str(error) and str(error) == visible(str(error)), repr(str(error))
        return False
    return True


def run(name: str, seconds: int) -> None:
    """Fuzzes one reader in this process; libFuzzer then ends the process."""
    atheris: Any = import_module("atheris")
    for module in (dataset, config, baseline, records_io, safetensors_reader, gguf, strict_json, strict_yaml):
        for _, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__:
                atheris.instrument_func(function)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        corpus = Path(scratch) / "corpus"
        corpus.mkdir()
        for i, seed in enumerate(seeds(name)):
            (corpus / str(i)).write_bytes(seed)
        limits = [
            f"-max_total_time={seconds}",
            f"-timeout={SECONDS_AN_INPUT}",
            f"-rss_limit_mb={MEGABYTES}",
            "-max_len=4096",
            f"-artifact_prefix={scratch}/",
        ]
        atheris.Setup(
            [sys.argv[0], str(corpus), *limits, "-print_final_stats=1"], lambda data: feed(name, data, Path(scratch))
        )
        atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", nargs="*", choices=[*READERS, []])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--one", choices=READERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run(options.one, options.seconds)
    failed = []
    for name in options.reader or READERS:
        # libFuzzer ends its process when it is done.
        done = subprocess.run(
            [sys.executable, __file__, "--one", name, "--seconds", str(options.seconds)], capture_output=True, text=True
        )
        count = next(
            (
                line.split()[-1]
                for line in done.stderr.splitlines()
                if line.startswith("stat::number_of_executed_units")
            ),
            "?",
        )
        print(
            f"{name}: {count} inputs in {options.seconds} s: {'ok' if done.returncode == 0 else 'FAILED'}", flush=True
        )
        if done.returncode:
            failed.append(name)
            print(done.stdout[-3000:], done.stderr[-3000:], sep="\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
