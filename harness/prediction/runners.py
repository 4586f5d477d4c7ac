"""Backends at work: in this process, or each in a separate process.

A backend in its own process has its own peak memory, and a crash of native code takes nothing else with it. Several processes share one
variant's questions: each holds the model, on its own GPU if there are several, and takes the next batch when it is free. Batches are
formed before they are dispatched, so N processes give the answers of one, times aside. Only this process writes: one journal and one manifest.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from multiprocessing import connection, forkserver, resource_tracker
from typing import Any, Protocol, cast

from harness import backends
from harness.backends import Backend, BatchesBackend, Completion, Execution, Facts, LogprobBackend, Prompt
from harness.backends.pieces import Piece, StreamingBackend
from harness.errors import ArtifactError, HarnessError
from harness.models import base_model
from harness.prediction.jobs import Job
from harness.registry import BACKENDS

Prompts = Sequence[Prompt]
Tokens = Sequence[Sequence[int]]
SECONDS_TO_END = 60
LONGEST_FOLDER = 70
"""Maximum bytes of a folder's name, so that multiprocessing can create a socket there."""


class Runner(Protocol):
    """A job's backend, loaded and ready to answer, in this process or in others."""

    load_seconds: float
    """Wall time of loading the model; the longest over several processes."""

    @property
    def facts(self) -> Facts:
        """What the backend reports, as of now."""
        ...

    def answer_batches(self, batches: Sequence[Prompts]) -> Iterator[tuple[int, list[Completion]]]:
        """Answers batches; yields each one's position and answers in order of completion."""
        ...

    def logprobs(self, prompts: Tokens, continuations: Tokens) -> Sequence[Any]:
        """See `LogprobBackend.logprobs`."""
        ...

    def peak_memory_bytes(self) -> int:
        """Peak memory so far of the process that holds the model, or of its GPU."""
        ...

    def reload(self, execution: Execution) -> Runner:
        """Closes this runner and returns another of the same model with `execution`."""
        ...

    def close(self) -> None:
        """Frees the model."""
        ...


class InProcessRunner:
    """A job's backend in this process."""

    def __init__(self, job: Job):
        self.job = job
        began = time.monotonic()
        self.backend: Backend = backends.find(job.backend)(job.source, job.generation, job.execution)
        self.load_seconds = time.monotonic() - began

    @property
    def facts(self) -> Facts:
        """What the backend reports, as of now."""
        return self.backend.facts

    def answer_batches(self, batches: Sequence[Prompts]) -> Iterator[tuple[int, list[Completion]]]:
        """Answers batches; yields each one's position and answers, as they come."""
        if isinstance(self.backend, BatchesBackend):
            yield from self.backend.answer_batches(batches)
        else:
            yield from ((i, self.backend.answer(batch)) for i, batch in enumerate(batches))

    def logprobs(self, prompts: Tokens, continuations: Tokens) -> Sequence[Any]:
        """See `LogprobBackend.logprobs`.

        Raises:
            TypeError: the backend has no log-probabilities.
        """
        if not isinstance(self.backend, LogprobBackend):
            raise TypeError(f"the backend {self.job.backend} has no log-probabilities")
        return self.backend.logprobs(prompts, continuations)

    def stream(self, prompt: Prompt) -> Iterator[Piece]:
        """See `harness.backends.pieces`.

        Raises:
            TypeError: the backend cannot stream.
        """
        if not isinstance(self.backend, StreamingBackend):
            raise TypeError(f"the backend {self.job.backend} cannot stream")
        return self.backend.stream(prompt)

    def peak_memory_bytes(self) -> int:
        """Peak memory so far of the process, or of its GPU."""
        if self.job.execution.device == "cuda" and BACKENDS[self.job.backend].uses_gpu:
            import torch

            return int(torch.cuda.max_memory_allocated())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def reload(self, execution: Execution) -> InProcessRunner:
        """The same model loaded again in place of this one."""
        self.close()
        return InProcessRunner(replace(self.job, execution=execution))

    def close(self) -> None:
        """Frees the model."""
        self.backend.close()


class WorkerPool:
    """A job's backend in `job.processes` processes, or in `n`.

    Args:
        fork: start them from a server that has torch loaded, where the device allows it: the first waits for it, later ones start at once.

    Raises:
        HarnessError: what a backend raised; ArtifactError: a process was killed; RuntimeError: it failed, and printed its traceback.
    """

    def __init__(self, job: Job, n: int | None = None, *, fork: bool = True):
        self.job = job
        places = _visible_devices() if job.execution.device == "cuda" else []
        count = n or job.processes
        self.workers: list[_Worker] = []
        try:
            for i in range(count):
                self.workers.append(_Worker(job, places[i] if count > 1 and places else None, fork))
            for worker in self.workers:
                worker.load_seconds = worker.receive()
        except BaseException:
            self.kill()
            raise
        self.load_seconds: float = max(worker.load_seconds for worker in self.workers)

    @property
    def facts(self) -> Facts:
        """Those of the first process, with the smallest `room` of all."""
        found: list[Facts] = [worker.call("facts") for worker in self.workers]
        execution = {key: value for facts in reversed(found) for key, value in facts.execution.items()}
        return replace(found[0], room=min(facts.room for facts in found), execution=execution)

    def answer_batches(self, batches: Sequence[Prompts]) -> Iterator[tuple[int, list[Completion]]]:
        """Sends the next batch to whichever process is free; yields each batch's position and answers as they come."""
        waiting = list(enumerate(batches))[::-1]
        busy: dict[Any, tuple[_Worker, int]] = {}
        idle = list(self.workers)
        while waiting or busy:
            while waiting and idle:
                worker = idle.pop(0)
                i, batch = waiting.pop()
                worker.send("answer", batch)
                busy[worker.pipe] = (worker, i)
            for pipe in connection.wait(list(busy)):
                worker, i = busy.pop(pipe)
                completions = worker.receive()
                idle.append(worker)
                yield i, completions

    def logprobs(self, prompts: Tokens, continuations: Tokens) -> Sequence[Any]:
        """Runs in the first process."""
        return self.workers[0].call("logprobs", prompts, continuations)

    def stream(self, prompt: Prompt) -> Iterator[Piece]:
        """Runs in the first process; see `harness.backends.pieces`. Closing it early ends the work there."""
        worker, ended = self.workers[0], False
        worker.send("stream", prompt)
        try:
            while (piece := worker.receive()) is not None:
                yield piece
            ended = True
        finally:
            if not ended:
                worker.send("stop")
                while worker.receive() is not None:
                    pass

    def peak_memory_bytes(self) -> int:
        """The largest of the processes' peaks."""
        return max(worker.call("peak_memory_bytes") for worker in self.workers)

    def reload(self, execution: Execution) -> WorkerPool:
        """The same model loaded again in one process, in place of these."""
        self.close()
        return WorkerPool(replace(self.job, execution=execution), 1)

    def close(self) -> None:
        """Ends the processes."""
        for worker in self.workers:
            worker.end()

    def kill(self) -> None:
        """Kills the processes, even busy ones."""
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join(SECONDS_TO_END)
            worker.process.kill()
            worker.process.join()


class _Worker:
    """The parent's handle to a process that holds a backend."""

    def __init__(self, job: Job, place: str | None, fork: bool):
        self.variant = job.variant
        self.load_seconds = 0.0
        # On the CPU the children are forked from a server that has torch loaded already; CUDA does not survive a fork.
        fork = fork and job.execution.device != "cuda"
        context = multiprocessing.get_context("forkserver") if fork else multiprocessing.get_context("spawn")
        if fork:
            context.set_forkserver_preload(["harness.backends.preload"])
            start_fork_server()
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(job, theirs, place), daemon=True)
        if fork:
            self.process.start()
        else:
            with _sigint_blocked():
                self.process.start()
        theirs.close()

    def call(self, what: str, *arguments: Any) -> Any:
        self.send(what, *arguments)
        return self.receive()

    def send(self, what: str, *arguments: Any) -> None:
        try:
            self.pipe.send((what, arguments))
        except OSError:
            self._gone()

    def receive(self) -> Any:
        try:
            result = self.pipe.recv()
        except (EOFError, OSError):
            self._gone()
        if isinstance(result, HarnessError):
            raise result
        return result

    def end(self) -> None:
        with suppress(OSError):
            self.pipe.send(None)
        self.process.join(SECONDS_TO_END)
        self.process.terminate()
        self.process.join()

    def _gone(self) -> Any:
        self.process.join()
        code = self.process.exitcode
        if code == 1:
            raise RuntimeError(f"the process that answered with {self.variant} failed: see its traceback above")
        why = f"was killed by signal {-code}" if code and code < 0 else f"ended with code {code}"
        raise ArtifactError(
            f"the process that answered with {self.variant} {why}",
            "run the same command again to resume; look for too little memory",
        )


def _serve(job: Job, pipe: Any, place: str | None) -> None:
    """What a worker does: loads, then answers requests (a method's name and arguments) until it is sent None or the parent has gone."""
    if place is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place
    signal.signal(signal.SIGTERM, _stop)
    base_model.quiet_libraries()
    here = None
    try:
        here = InProcessRunner(job)
        pipe.send(here.load_seconds)
        for what, arguments in _requests(pipe):
            if what == "answer":
                pipe.send(here.backend.answer(*arguments))
            elif what == "stream":
                _send_pieces(pipe, here.stream(*arguments))
            elif what == "stop":
                pass  # stop message for a stream that had already ended
            else:
                found = getattr(here, what)
                pipe.send(found(*arguments) if callable(found) else found)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # the parent has gone
    except HarnessError as error:
        # The parent ends this process once it has read the error, so do not raise or print anything after this.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        pipe.send(error)
    finally:
        if here is not None:
            here.close()
        pipe.close()


def _send_pieces(pipe: Any, pieces: Iterator[Piece]) -> None:
    """Sends the pieces until they end or a message (always `stop`) arrives; then sends None."""
    with closing(cast("Any", pieces)):
        for piece in pieces:
            pipe.send(piece)
            if pipe.poll():
                break
    pipe.send(None)


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Children that are started here ignore SIGINT, which a terminal sends to all of them: the parent shuts them down."""
    resource_tracker.ensure_running()  # starting it would unblock the signal
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def start_fork_server() -> None:
    """Starts it if it is not running. Its socket needs a short name (108 bytes on Linux), which a long TMPDIR prevents."""
    before = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST_FOLDER:
        tempfile.tempdir = next((folder for folder in ("/tmp", "/var/tmp") if os.access(folder, os.W_OK)), before)
    try:
        with _sigint_blocked():
            forkserver.ensure_running()
    finally:
        tempfile.tempdir = before


def _requests(pipe: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    with suppress(EOFError):
        while request := pipe.recv():
            yield request


def _visible_devices() -> list[str]:
    """The entries of CUDA_VISIBLE_DEVICES that each select one of this process's GPUs."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name for name in named.split(",") if name] if named else [str(i) for i in range(torch.cuda.device_count())]
