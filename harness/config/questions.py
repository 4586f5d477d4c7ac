"""The model to start from, the questions and their split, and how a question is put to a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from harness.config.base import Count, Section, Seed, Share
from harness.config.loading import IsPath

TEMPLATE = """\
### Question:
{question}

### Answer:
"""


class Model(Section):
    """The base model."""

    path: Annotated[str, IsPath()] = "data/tiny-llama3"
    """A folder, or a name on a model hub (`owner/name`, where no folder `owner` is there; `hub:owner/name` in any case)."""
    revision: str | None = None
    """Of a hub model: branch, tag or commit."""
    trust_remote_code: bool = False
    """Lets a hub model run its own code here; recorded in the report."""


class Columns(Section):
    """Names of the columns of a QA file; None: found by their usual names."""

    question: str | None = None
    answer: str | None = None
    context: str | None = None
    """A passage that is put before the question."""


class Data(Section):
    """The questions and their split."""

    qa: Annotated[str | None, IsPath()] = "data/constitution_qa.json"
    """Questions and answers, in one of the shapes of README's "Your file"; null: nothing to train on (a test file is needed then)."""
    test: Annotated[str | None, IsPath()] = None
    """Holds out exactly the questions of this file; all of `data.qa` trains."""
    trained_on: Annotated[str | None, IsPath()] = None
    """What a model was trained on elsewhere, used with `data.test`: read for leakage and the no-model baselines, never trained on; `data.qa` is not
    read then."""
    drop_leaks: bool = False
    """Leaves out training rows whose question is in the test file or a near-duplicate of one there."""
    columns: Columns = Columns()
    turns: Literal["one", "last"] = "one"
    """Conversations of several turns: left out and counted, or their last turn with the turns before it as context."""
    unanswerable: Annotated[str, Field(min_length=1, max_length=1000)] = "unanswerable"
    """The reference answer of rows that are marked as having none, as in SQuAD 2."""
    heldout: float | int = 0.1
    """Share (between 0 and 1) or count (2 or more) of the rows to hold out; not used with a test file."""
    dev: float | int | None = None
    """Share or count of the dev rows, on which the loss is measured during training; 0: none. None: 0.1, and 0 with a test file."""
    taught: Annotated[str | None, IsPath()] = None
    """A file of paraphrases of questions of `data.qa`, each with the original in the column `restates`.

    Those whose original is in the training set are a second held-out side, reported in a separate row: did the model learn what it was trained on?
    """
    seed: Seed = 0
    ngram: Annotated[int, Field(ge=1, le=16)] = 5
    """Characters in a shingle of the near-duplicate test."""
    similarity: Share = 0.5
    """Jaccard similarity from which two questions are near-duplicates."""
    long_answer_words: Count = 6
    """Rows with identical answers of at least this many words are kept on one side."""

    @field_validator("heldout", "dev", mode="before")
    @classmethod
    def _share_or_count(cls, value: object, info: ValidationInfo) -> object:
        if info.field_name == "dev" and (value is None or (value == 0 and not isinstance(value, bool))):
            return value
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not (0 < value < 1 or (value >= 2 and value % 1 == 0))
        ):
            raise ValueError("must be a share between 0 and 1, or a count of 2 or more")
        return int(value) if value >= 2 else value

    @model_validator(mode="after")
    def _files_fit(self) -> Data:
        if self.trained_on and not self.test:
            raise ValueError("trained_on: needs data.test, the questions to judge the model on")
        if self.qa is None and not self.test:
            raise ValueError("qa: is null and there is no data.test; name one of them")
        if not self.test and self.heldout < 1 and self.dev_size < 1 and self.heldout + self.dev_size >= 1:
            raise ValueError(f"heldout {self.heldout} and dev {self.dev_size} leave nothing to train on")
        return self

    @property
    def dev_size(self) -> float | int:
        """The share or count of the dev side that holds."""
        if self.dev is not None:
            return self.dev
        return 0 if self.test else 0.1

    @property
    def training_file(self) -> str | None:
        """The file whose rows are trained on; None: nothing is."""
        return None if self.trained_on else self.qa


class Prompt(Section):
    """How a question is put, in training and to every backend."""

    format: Literal["auto", "text", "chat"] = "auto"
    """`text` is `template`; `chat` is the tokenizer's own chat template; `auto` is chat where the tokenizer has one."""
    template: str = TEMPLATE
    """Of text: rendered with `{question}`; the answer follows it directly. A template with two `{}` (question, answer) is taken as it is pasted."""
    system: str | None = None
    """Chat: the system message."""
    enable_thinking: bool | None = None
    """Chat: the switch that templates of reasoning models have; none: the template's own default."""
    few_shot: Annotated[int, Field(ge=0, le=64)] = 0
    """So many of the nearest training questions, with their answers, are put before each question."""

    @field_validator("template", mode="before")
    @classmethod
    def _pasted(cls, value: object) -> object:
        """A template that also has a place for the answer, as notebooks have it, up to that place."""
        for question, answer in (("{}", "{}"), ("{question}", "{answer}")):
            if isinstance(value, str) and value.count("{}") in (0, 2) and answer in value and question in value:
                before, _, rest = value.partition(question)
                between, _, after = rest.partition(answer)
                if "{" not in before + between + after and not after.strip():
                    return before + "{question}" + between
        return value

    @field_validator("template")
    @classmethod
    def _one_question(cls, value: str) -> str:
        if value.count("{question}") != 1:
            raise ValueError("must contain {question} exactly once, or two {} with nothing after the second")
        return value

    @field_validator("system")
    @classmethod
    def _not_blank(cls, value: str | None) -> str | None:
        return value if value and value.strip() else None
