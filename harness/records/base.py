"""What every record shares."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Interval = tuple[float, float]
FinishReason = Literal["stop", "length", "error"]
Verdict = Literal["better", "worse", "tied", "identical", "undecided"]
Contract = Literal["same ids", "same question"]
"""What two compared variants share. `same ids`: one tokenizer, and prompts equal token by token. `same question`: each was asked by its own tokenizer
and prompt; equal are the questions, their references, the metrics and the limits of generation."""

SCHEMA_VERSION = 1
SchemaVersion = Literal[1]
"""A file of another version is refused."""

# These are read from files and become paths, token ids and operands: an edited file must not choose them freely.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""Of a variant; becomes part of a file's name."""
RelativePath = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")]
"""Below the run folder: no part of it leads upwards."""
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Fraction = Annotated[float, Field(ge=0, le=1)]

Parameters = dict[str, bool | int | float | str | list[int] | list[str] | None]
"""Settings by name, as a backend or a server reports them; kept to detect differences."""


class Record(BaseModel):
    """The base of every record: immutable; unknown keys, NaN and infinities are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Manifest(Record):
    """The base of every file that holds one record and says that a stage finished."""

    checksum: str = ""
    """sha256 of the canonical JSON of all other fields, set on writing and checked on reading; empty: written manually, not checked."""
