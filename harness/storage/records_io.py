"""Records on disk: JSON and JSON Lines, written atomically and checked when they are read.

A stage writes its manifest last, so that the manifest's existence means that the stage finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import TypeAdapter, ValidationError

from harness.errors import ArtifactError
from harness.records import (
    SCHEMA_VERSION,
    Comparison,
    Manifest,
    PredictionManifest,
    Question,
    Record,
    ScoreManifest,
    SplitManifest,
)
from harness.storage import strict_json
from harness.storage.atomic import atomic_path, write_text
from harness.storage.hashing import dumps, sha256_file, sha256_json
from harness.storage.run_folder import RunFolder, missing

R = TypeVar("R", bound=Record)
T = TypeVar("T")
WRITE_AGAIN = "delete it and run the stage that writes it again"
MAX_JSON_BYTES = 100_000_000
"""Largest manifest, comparison or baseline: four times the baseline of a hundred thousand questions in six variants."""
MAX_LINE_BYTES = 16_000_000
"""Largest record in a JSON Lines file: a million token ids and their text."""


def write_json(path: Path, value: Any) -> None:
    """Writes a record or plain value as indented canonical JSON, atomically; a manifest with its checksum."""
    write_text(path, dumps(sealed(value) if isinstance(value, Manifest) else value, indent=2) + "\n")


def sealed(manifest: Manifest) -> dict[str, Any]:
    """A manifest as JSON values, with the checksum of all the others."""
    value = manifest.model_dump(mode="json", by_alias=True)
    return value | {"checksum": _checksum(value)}


def _checksum(value: dict[str, Any]) -> str:
    return sha256_json({key: part for key, part in value.items() if key != "checksum"})


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Writes records or plain values, one canonical JSON line each, atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(dumps(row) + "\n")


def _open(path: Path) -> BinaryIO:
    # Opening a pipe would block, possibly forever.
    if path.exists() and not path.is_file():
        raise ArtifactError("is not a file", WRITE_AGAIN, file=path)
    return path.open("rb")


def read_json(path: Path) -> Any:
    """Reads a JSON file of an earlier stage; ArtifactError if it is missing, damaged, or its checksum does not match."""
    try:
        with _open(path) as file:
            data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise ArtifactError(f"has more than {MAX_JSON_BYTES / 1e6:.0f} MB", WRITE_AGAIN, file=path)
        value = strict_json.loads(data.decode("utf-8"))
    except FileNotFoundError:
        raise missing(path) from None
    except (ValueError, OSError) as error:
        raise ArtifactError(f"cannot be read: {error}", WRITE_AGAIN, file=path) from None
    if isinstance(value, dict) and value.get("checksum") and value["checksum"] != _checksum(value):
        raise ArtifactError("is damaged or was changed: its checksum does not match", WRITE_AGAIN, file=path)
    return value


def read_record(path: Path, kind: type[R]) -> R:
    """Reads a manifest; ArtifactError as `read_json`, or if it does not fit the schema."""
    value = read_json(path)
    try:
        record = kind.model_validate(value)
    except ValidationError as error:
        raise ArtifactError(_first(error), WRITE_AGAIN, file=path) from None
    return record.model_copy(update={"checksum": ""}) if isinstance(record, Manifest) else record


def read_typed(path: Path, kind: type[T]) -> T:
    """`read_record` of a file that holds a TypedDict."""
    value = read_json(path)
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise ArtifactError(_first(error), WRITE_AGAIN, file=path) from None


def iter_records(path: Path, kind: type[R]) -> Iterator[R]:
    """Yields the records of a JSON Lines file; ArtifactError names the first bad line."""
    try:
        with _open(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
                if len(line) > MAX_LINE_BYTES:
                    raise ArtifactError(
                        f"has more than {MAX_LINE_BYTES / 1e6:.0f} MB in one line", WRITE_AGAIN, file=path, row=number
                    )
                try:
                    yield kind.model_validate_json(line)
                except ValidationError as error:
                    raise ArtifactError(_first(error), WRITE_AGAIN, file=path, row=number) from None
    except FileNotFoundError:
        raise missing(path) from None


def read_records(path: Path, kind: type[R]) -> list[R]:
    """`iter_records` as a list."""
    return list(iter_records(path, kind))


def check_written(path: Path, sha256: str, command: str) -> None:
    """Raises ArtifactError unless the file has the hash in its manifest. An empty hash is not checked (manually written manifest).

    Args:
        command: the verb, with its options, that writes the file again.
    """
    if sha256 and sha256_file(path) != sha256:
        verb = command.partition(" ")[0]
        raise ArtifactError(
            f"is damaged or was changed: it is not what {verb} wrote", f"run harness {command} again", file=path
        )


def read_split(run: RunFolder) -> tuple[SplitManifest, list[Question]]:
    """The split and its held-out questions; ArtifactError if either is missing or not what split wrote."""
    split = read_record(run.split_json, SplitManifest)
    check_written(run.heldout_jsonl, split.heldout_sha256, "split")
    return split, read_records(run.heldout_jsonl, Question)


def read_taught(run: RunFolder, split: SplitManifest) -> list[Question]:
    """The questions of the second held-out side; empty if the split has none."""
    if not split.n_taught:
        return []
    check_written(run.taught_jsonl, split.taught_sha256, "split")
    return read_records(run.taught_jsonl, Question)


def read_scored(run: RunFolder, variant: str, comparison: Comparison | None = None) -> ScoreManifest:
    """The manifest of a variant's scores.

    Raises:
        ArtifactError: they are incomplete, not of the answers beside them, or not those that the comparison used.
    """
    lines, path = run.score(variant)
    manifest = read_record(path, ScoreManifest)
    check_written(lines, manifest.lines_sha256, "score")
    answers = run.prediction(variant)[1]
    if answers.exists() and read_record(answers, PredictionManifest).key != manifest.prediction_key:
        raise ArtifactError(
            "was scored from other answers than those beside it", "run harness score and compare again", file=path
        )
    if comparison:
        compared = comparison.variants[variant]
        own = compared.own or compared.metrics
        if (manifest.metrics, manifest.finish, manifest.split_id) != (own, compared.finish, comparison.split_id):
            raise ArtifactError(
                f"does not match the present scores of {variant}", "run harness compare again", file=run.comparison_json
            )
    return manifest


def results_sha256(comparison: Comparison) -> str:
    """Hash of a comparison's results, without provenance (user, time, command)."""
    return sha256_json(comparison.model_dump(mode="json", exclude={"provenance", "fingerprint", "checksum"}))


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in detail["loc"])
    if where in ("schema_version", "schema"):
        return f"was written by another version of the harness (its {where} is not {SCHEMA_VERSION})"
    return f"is damaged ({where + ': ' if where else ''}{detail['msg'].lower()})"
