"""Questions -> answers on the terminal, the variants of a run side by side; writes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from harness import backends, storage
from harness.config import Config
from harness.prediction import answers
from harness.prediction.jobs import jobs
from harness.records import Question
from harness.storage import RunFolder

SHOWN = 3
"""Held-out questions that are asked when none is given."""


def run(run: RunFolder, config: Config, asked: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yields (question, who, answer): the reference first where there is one, then each variant of `config.predict` in turn.

    Args:
        asked: questions; if there are none, the first held-out ones.
    Raises:
        ArtifactError: no split, or an artifact is missing; ModelError: a model cannot be loaded.
    """
    questions = [
        Question(id=f"asked-{i}", row=i, question=q, answer="-", group="asked") for i, q in enumerate(asked, 1)
    ]
    if not questions:
        questions = storage.read_split(run)[1][:SHOWN]
        yield from ((q.question, "reference", q.answer) for q in questions)
    for job in jobs(run, config, "demo", questions, config.predict.variants):
        backend = backends.find(job.backend)(job.source, job.generation, job.execution)
        tokenizer = job.open_tokenizer()
        for question, prompt, found in zip(questions, job.prompts, backend.answer(job.prompts), strict=True):
            answer = answers.read(tokenizer, job.ids_of(prompt), found.answer_ids, found.text or "")
            yield question.question, job.variant, found.error or answer.text
        backend.close()
