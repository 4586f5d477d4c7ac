"""GGUF answers and the fidelity probe against a plain loop over llama_decode, on one file.

    python benchmarks/llamacpp.py MODEL.gguf [--questions 48] [--tokens 32] [--libllama PATH] [--gpu-layers N]

Prints generated tokens per second: the plain loop at each number of sequences (no batching, no log-probabilities: all
prompts at once, then one token of every sequence a step), the backend with measured threads and sequences, and the seconds in which 24
questions get 16 whole next-token distributions each. Both sides generate the same number of tokens: end tokens are ignored.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from harness.backends import Execution, Generation, Source, cores
from harness.backends.llama_context import Context
from harness.backends.llamacpp import LlamaCppBackend

ASKED = "### Question:\nWhat does Article {n} of the Constitution of India say about the powers of Parliament?\n\n### Answer:\n"


def plain_loop(backend: LlamaCppBackend, prompts: list[list[int]], tokens: int, sequences: int, threads: int) -> float:
    """Generated tokens a second, prompts included in the time."""
    context = Context(backend.model, sequences=sequences, tokens=512, threads=threads)
    began = time.perf_counter()
    for start in range(0, len(prompts), sequences):
        group = prompts[start : start + sequences]
        for place in range(sequences):
            context.clear(place)
        rows = [(t, at, p, at == len(ids) - 1) for p, ids in enumerate(group) for at, t in enumerate(ids)]
        chosen = context.decode(rows).argmax(axis=1).tolist()
        for step in range(tokens - 1):
            rows = [(token, len(ids) + step, p, True) for p, (token, ids) in enumerate(zip(chosen, group, strict=True))]
            chosen = context.decode(rows).argmax(axis=1).tolist()
    seconds = time.perf_counter() - began
    context.close()
    return len(prompts) * tokens / seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--sequences", type=int, nargs="*", default=[1, 4, 8, 16])
    parser.add_argument("--libllama")
    parser.add_argument("--gpu-layers", type=int)
    options = parser.parse_args()
    execution = Execution(libllama=options.libllama, gpu_layers=options.gpu_layers)
    backend = LlamaCppBackend(Source(options.model), Generation(options.tokens, (), 0), execution)
    backend.ends = set()
    prompts = [backend.model.tokenize(ASKED.format(n=n)) for n in range(options.questions)]
    print(
        f"{options.model.name}, {backend.facts.version}, {cores()} cores, {len(prompts)} prompts x {options.tokens} tokens"
    )
    began = time.perf_counter()
    answers = backend.answer(prompts)
    first = time.perf_counter() - began
    began = time.perf_counter()
    answers = backend.answer(prompts)
    seconds = time.perf_counter() - began
    used = backend.facts.execution
    count = sum(len(a.answer_ids) for a in answers)
    threads = used["threads"]
    print(f"measuring threads and sequences and the first batch: {first:.1f} s")
    print(f"backend, {threads} threads, {used['slots']} sequences: {count / seconds:.1f} tokens/s")
    best = 0.0
    for sequences in options.sequences:
        rate = plain_loop(backend, prompts, options.tokens, sequences, threads)
        best = max(best, rate)
        print(f"plain loop, {threads} threads, {sequences} sequences: {rate:.1f} tokens/s")
    print(f"backend / best plain loop: {count / seconds / best:.2f}")
    asked = [prompts[i % len(prompts)] for i in range(24)]
    targets = [list(range(5, 21)) for _ in asked]
    began = time.perf_counter()
    found = backend.logprobs(asked, targets)
    print(f"24 questions x 16 distributions of {found[0].shape[1]} tokens: {time.perf_counter() - began:.1f} s")
    backend.close()


if __name__ == "__main__":
    main()
