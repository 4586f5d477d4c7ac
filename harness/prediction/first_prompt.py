"""The first prompt that a run will ask, rendered as soon as it is split: what training and every backend will see."""

from __future__ import annotations

from itertools import islice

from harness import storage
from harness.config import Config
from harness.errors import ModelError
from harness.models import base_model
from harness.prediction.asking import first_form
from harness.prompt import Prompter, load_tokenizer
from harness.questions import few_shot
from harness.records import FirstPrompt, PromptForm, Question
from harness.storage import RunFolder


def show(run: RunFolder, config: Config) -> str | None:
    """The first prompt in words, which is then kept in `split/prompt.json`; None if it is kept there already.

    Raises:
        ConfigError: the prompt's settings do not fit the tokenizer, or its chat template fails.
    """
    key = storage.sha256_json(
        [config.prompt.model_dump(), config.model.model_dump(), storage.sha256_file(run.split_json)]
    )
    if run.prompt_json.exists() and storage.read_record(run.prompt_json, FirstPrompt).key == key:
        return None
    try:
        form = _render(run, config)
    except ModelError as error:
        return f"the first prompt cannot be shown: {error.file}: {error.problem}"
    if form is None:
        return f"the first prompt is shown when {config.model.path} is here: the tokenizer is needed"
    storage.write_json(run.prompt_json, FirstPrompt(key=key, prompt=form))
    return f"first prompt ({form.format}, {form.first_tokens} tokens):\n{form.opening}{form.first}"


def _render(run: RunFolder, config: Config) -> PromptForm | None:
    """The first prompt; None if no tokenizer is on this machine, or there is no question."""
    model = config.model
    folder = base_model.cached(model)
    if folder is None:
        return None
    k = config.prompt.few_shot
    # Of the training rows where there are any: the held-out ones are first read by predict.
    train = list(islice(storage.iter_records(run.train_jsonl, Question), None if k else 1))
    asked = train[:1] or list(islice(storage.iter_records(run.heldout_jsonl, Question), 1))
    tokenizer = load_tokenizer(folder, revision=model.revision, trust_remote_code=model.trust_remote_code)
    return first_form(Prompter(tokenizer, config.prompt), asked, few_shot.nearest(asked, train, k))
