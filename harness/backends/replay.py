"""Answers from a file: a real backend without a model, for tests, demos, and for evaluating the output of any other tool.

Two kinds of files are read, JSON Lines both. The harness's own predictions are looked up by the hash of the prompt. Any other tool's need, in each
line, the question's `id` or the `question` itself, and the answer as `text` (or under one of TEXT_KEYS).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.backends import Completion, Execution, Facts, Generation, Prompt, Source
from harness.errors import ArtifactError
from harness.prompt import prompt_hash
from harness.records import Prediction, Question
from harness.storage import iter_records, sha256_file, strict_json

TEXT_KEYS = ("text", "prediction", "output", "response", "completion", "generated_text", "answer")
"""Keys that may hold the answer, in order of precedence."""
MAX_LINE_BYTES = 16_000_000
HINT = 'write a line for each question, like {"id": "q1", "text": "the answer"}'


class ReplayBackend:
    """Recorded answers; a missing one is an error for its question, not an empty answer.

    Raises:
        ArtifactError: the file is missing or damaged.
    """

    def __init__(self, source: Source, generation: Generation, execution: Execution):
        self.path = source.path
        self.by_hash: dict[str, Prediction] = {}
        self.by_key: dict[tuple[str, str], dict[str, Any]] = {}
        if is_ours(source.path):
            self.by_hash = {p.prompt_hash: p for p in iter_records(source.path, Prediction)}
        for _, row in rows(source.path):
            for key in ("id", "question"):
                if isinstance(value := row.get(key), str | int):
                    self.by_key.setdefault((key, _folded(key, value)), row)
        self.facts = Facts(f"replay {sha256_file(source.path)[:12]}", context=2**31, execution={"device": "none"})

    def answer(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """The recorded answers."""
        return [self._find(prompt) for prompt in prompts]

    def close(self) -> None:
        """Nothing to free."""

    def _find(self, prompt: Prompt) -> Completion:
        asked = prompt[0] if prompt and not isinstance(prompt, str) else None
        if not isinstance(asked, dict):
            return _completion(self.by_hash.get(prompt_hash(prompt)))
        row = next(
            (r for key in ("id", "question") if (r := self.by_key.get((key, _folded(key, asked[key])))) is not None),
            None,
        )
        if row is None:
            return _completion(None)
        if "prompt_hash" in row:
            return _completion(Prediction.model_validate(row))
        return Completion([], "length" if row.get("finish_reason") == "length" else "stop", 0.0, text=_text(row) or "")


def _completion(p: Prediction | None) -> Completion:
    if p is None:
        return Completion([], "error", 0.0, error="not in the replayed predictions")
    return Completion(
        p.answer_ids,
        p.finish_reason,
        p.seconds,
        text=p.text,
        error=p.error,
        logprobs=p.logprobs,
        prompt_ids=p.prompt_ids or None,
        tokens=p.tokens,
        prompt_tokens=p.prompt_tokens,
    )


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of a JSON Lines file; ArtifactError names the first line that is not one."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise ArtifactError(f"cannot be read: {error.strerror}", "check the path", file=path) from None
    with file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            if len(line) > MAX_LINE_BYTES:
                raise ArtifactError("has more than 16 MB in one line", HINT, file=path, row=number)
            if not line.strip():
                continue
            try:
                value = strict_json.loads(line.decode("utf-8-sig"))
            except ValueError:
                raise ArtifactError("is not JSON", HINT, file=path, row=number) from None
            if not isinstance(value, dict):
                raise ArtifactError("is not an object", HINT, file=path, row=number)
            yield number, value


def is_ours(path: Path) -> bool:
    """Whether a file holds the harness's own predictions."""
    return "prompt_hash" in next(rows(path), (0, {}))[1]


def check(path: Path, questions: Sequence[Question]) -> None:
    """Raises ArtifactError unless the file answers each of the questions once, and no other."""
    ids = {_folded("id", q.id): q.id for q in questions}
    by_question: dict[str, list[str]] = {}
    for q in questions:
        by_question.setdefault(_folded("question", q.question), []).append(q.id)
    answered: dict[str, int] = {}
    for number, row in rows(path):
        found = _asked(row, ids, by_question, path, number)
        if _text(row) is None and not row.get("error"):
            raise ArtifactError(
                f"has no answer (no {', '.join(TEXT_KEYS[:3])} ...; it has {', '.join(map(str, row))[:80]})",
                HINT,
                file=path,
                row=number,
            )
        for q in found:
            if q in answered:
                raise ArtifactError(
                    f"answers question {q!r} again, after row {answered[q]}",
                    "keep one of the two",
                    file=path,
                    row=number,
                )
            answered[q] = number
    if missing := [q.id for q in questions if q.id not in answered]:
        raise ArtifactError(
            f"lacks the answers to {len(missing)} of {len(questions)} questions, {missing[0]!r} first",
            "answer every question of the test file",
            file=path,
        )


def _asked(
    row: dict[str, Any], ids: dict[str, str], by_question: dict[str, list[str]], path: Path, number: int
) -> list[str]:
    """The ids of the questions that a line answers."""
    if isinstance(value := row.get("id"), str | int):
        if (found := ids.get(_folded("id", value))) is not None:
            return [found]
        if not isinstance(row.get("question"), str):
            raise ArtifactError(
                f"answers {str(value)[:40]!r}, which no question of the test file has as id",
                "use the ids of the test file, or give the question itself",
                file=path,
                row=number,
            )
    question = row.get("question")
    if not isinstance(question, str):
        raise ArtifactError("has neither id nor question", HINT, file=path, row=number)
    if (several := by_question.get(_folded("question", question))) is None:
        raise ArtifactError(
            f"answers {question[:60]!r}, which is not in the test file",
            "answer the test file's questions",
            file=path,
            row=number,
        )
    return several


def _folded(key: str, value: object) -> str:
    return " ".join(str(value).split()) if key == "question" else str(value)


def _text(row: dict[str, Any]) -> str | None:
    """The answer of a line; None if it has none."""
    for key in TEXT_KEYS:
        value = row.get(key)
        if isinstance(value, str):
            return value.strip()
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
    return None
