"""The doctor's forecast of answering times against the time that answering takes, on one model.

    python benchmarks/answering_time.py MODEL_FOLDER [--kinds f16 q8_0 q4_k_m] [--questions 48] [--tokens 32] [--parts]
                                        [--libllama PATH] [--gpu-layers N]

`--parts` forecasts from one and two layers, as for models above 400 MB, however small the file is.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from harness.backends import Execution, Generation, Source
from harness.backends.llamacpp import LlamaCppBackend
from harness.doctor import answering_time
from harness.formats import gguf

ASKED = "Question: What does Article {n} of the Constitution of India say about the powers of Parliament?\nAnswer:"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--kinds", nargs="*", default=["f16", "q8_0", "q4_k_m"])
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--libllama")
    parser.add_argument("--gpu-layers", type=int, default=0)
    options = parser.parse_args()
    config = json.loads((options.model / "config.json").read_text())
    if options.parts:
        answering_time.WHOLE_BYTES = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            file = Path(folder) / "model.gguf"
            gguf.write(options.model, file, kind)
            execution = Execution(libllama=options.libllama, gpu_layers=options.gpu_layers)
            backend = LlamaCppBackend(Source(file), Generation(options.tokens, (), 0), execution)
            backend.ends = set()
            # No common prefix, so that each prompt is computed whole, as the forecast assumes.
            prompts = [
                backend.model.tokenize(f"{n} " + ASKED.format(n=n))[1:] for n in range(10, 10 + options.questions)
            ]
            backend.answer(prompts[:1])
            began = time.perf_counter()
            backend.answer(prompts)
            real = time.perf_counter() - began
            backend.close()
            began = time.perf_counter()
            prompt = sum(map(len, prompts)) // len(prompts)
            times = answering_time.measure(
                config, kind, prompt, libllama=options.libllama, gpu_layers=options.gpu_layers
            )
            took = time.perf_counter() - began
            work = answering_time.Work(options.questions, prompt, options.tokens, 0)
            forecast = answering_time.seconds(times, work)
            print(
                f"{kind}: forecast {forecast:.1f} s (measured in {took:.1f} s), answering took {real:.1f} s, ratio {forecast / real:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
