"""Answers from a file of earlier predictions: a real backend without a model, for tests, demos and re-scoring another tool's output."""

from __future__ import annotations

from collections.abc import Sequence

from harness.backends import Completion, Execution, Facts, Generation, Source
from harness.prompt import prompt_hash
from harness.records import Prediction
from harness.storage import iter_records, sha256_file


class ReplayBackend:
    """Looks each prompt up by its hash in a predictions file; a prompt that is not there is an error, not an empty answer.

    Raises:
        ArtifactError: the file is missing or damaged.
    """

    def __init__(self, source: Source, generation: Generation, execution: Execution):
        self.answers = {p.prompt_hash: p for p in iter_records(source.path, Prediction)}
        self.facts = Facts(f"replay {sha256_file(source.path)[:12]}", context=2**31, execution={"device": "none"})

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        """The recorded answers."""
        found = [self.answers.get(prompt_hash(p)) for p in prompts]
        return [
            Completion(p.answer_ids, p.finish_reason, p.seconds, text=p.text, error=p.error)
            if p
            else Completion([], "error", 0.0, error="not in the replayed predictions")
            for p in found
        ]

    def close(self) -> None:
        """Nothing to free."""
