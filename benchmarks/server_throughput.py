"""How near `harness` comes to a server's own throughput: the same requests by a bare client and by the predict stage, alternating.

    python benchmarks/server_throughput.py MODEL.gguf [--questions 400] [--slots 4] [--new 16] [--rounds 2] [--threads 1]

Starts llama.cpp's own server (xllamacpp) in a separate process on the loopback interface. The bare client sends prebuilt bodies over as many open
connections as the harness has requests in flight, and discards the answers: nothing can drive this server faster. The harness builds,
sends, checks, and writes each answer to disk before it counts. Both sides are timed from the first request to the last answer; the start-up time
of the harness is printed separately.
"""

from __future__ import annotations

import argparse
import http.client
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from harness import storage
from harness.backends import Execution, Source
from harness.backends.endpoint import EndpointBackend
from harness.config import PROJECT, load
from harness.prediction.jobs import jobs
from harness.records import PredictionManifest, Question, SplitManifest
from harness.stages import evaluate, predict, split
from harness.storage import RunFolder

SERVER = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.port = sys.argv[1], 1024 * int(sys.argv[2]), int(sys.argv[2]), 0
params.verbosity = -1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[3])
server = xllamacpp.Server(params)
print(server.listening_address.rstrip("/") + "/v1", flush=True)
while True:
    time.sleep(1)
"""


def bare(url: str, bodies: list[bytes], slots: int) -> tuple[float, int]:
    """(seconds, generated tokens) of all requests over `slots` connections that stay open."""
    address = urlsplit(url)
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    for body in bodies:
        waiting.put(body)
    tokens: list[int] = []

    def work() -> None:
        connection = http.client.HTTPConnection(address.hostname or "", address.port)
        while True:
            try:
                body = waiting.get_nowait()
            except queue.Empty:
                return
            connection.request("POST", f"{address.path}/completions", body, {"Content-Type": "application/json"})
            tokens.append(json.loads(connection.getresponse().read())["usage"]["completion_tokens"])

    threads = [threading.Thread(target=work) for _ in range(slots)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, sum(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of the server: leave a core for the client")
    chosen = parser.parse_args()
    command = [sys.executable, "-c", SERVER, chosen.model, str(chosen.slots), str(chosen.threads)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        measure(server.stdout.readline().strip(), chosen)
    finally:
        server.kill()


def measure(url: str, chosen: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as root:
        rows = json.loads((PROJECT / "data" / "constitution_qa.json").read_text("utf-8"))[: chosen.questions]
        test = Path(root) / "test.jsonl"
        lines = [json.dumps({"question": row["question"], "answer": row["answer"]}) for row in rows]
        test.write_text("\n".join(dict.fromkeys(lines)) + "\n", "utf-8")
        settings = [f"predict.slots={chosen.slots}", f"predict.max_new_tokens={chosen.new}"]
        plan = evaluate.configure(load("evaluate", settings), str(test), [f"served={url}/completions"])
        run = RunFolder("bench", root)
        split.run(run, plan.config)
        questions = storage.read_records(run.heldout_jsonl, Question)
        split_id = storage.read_record(run.split_json, SplitManifest).split_id
        job = next(jobs(run, plan.config, split_id, questions, ["served"]))
        backend = EndpointBackend(Source(Path(), url=url), job.generation, Execution(slots=chosen.slots))
        bodies = [json.dumps(backend._body(prompt)).encode() for prompt in job.prompts]
        bare(url, bodies[: 2 * chosen.slots], chosen.slots)  # warm
        shares = []
        for _ in range(chosen.rounds):
            worked = time.process_time()
            seconds, tokens = bare(url, bodies, chosen.slots)
            own_cpu, worked = time.process_time() - worked, time.process_time()
            began = time.perf_counter()
            predict.run(run, plan.config, force=True)
            whole, cpu = time.perf_counter() - began, time.process_time() - worked
            cost = storage.read_record(run.prediction("served")[1], PredictionManifest).cost
            own, harness = tokens / seconds, cost.generated_tokens / cost.seconds
            shares.append(harness / own)
            print(
                f"{len(bodies)} questions, {chosen.slots} slots: bare client {seconds:.1f} s, {own:,.0f} tokens/s ({tokens:,}); "
                f"harness {cost.seconds:.1f} s, {harness:,.0f} tokens/s ({cost.generated_tokens:,}), with its start {whole:.1f} s; "
                f"CPU of the client {own_cpu:.1f} s and {cpu:.1f} s; "
                f"{shares[-1]:.1%} of the server's own",
                flush=True,
            )
        print(f"median: {median(shares):.1%}")


if __name__ == "__main__":
    main()
