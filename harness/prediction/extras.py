"""Models that the run did not train (`predict.extra`): their weights and their prompts."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import storage
from harness.backends import Source, replay
from harness.config import Config, ExtraVariant, Model
from harness.config.loading import HUB, HUB_NAME
from harness.errors import ArtifactError, ConfigError, ModelError
from harness.models import adapters, base_model
from harness.prediction.asking import OWN, TOKENIZER_FILES, Asker, Asking
from harness.prompt import has_chat_template


@dataclass(frozen=True)
class Weights:
    """The backend of one variant."""

    backend: str
    source: Source
    sha256: str
    size_bytes: int


def needs_run(extra: ExtraVariant) -> bool:
    """Whether this variant needs the run's model: for its tokenizer, or to check that both tokenizers are the same."""
    return (
        extra.backend != "python"
        and extra.tokenizer != OWN
        and not (extra.backend == "endpoint" and extra.api == "chat")
    )


def weights(config: Config, variant: str, extra: ExtraVariant, run_model: Path | None, found: Any) -> Weights:
    """Where a variant's weights are, hashed.

    Args:
        run_model: the folder of the run's model.
        found: the object that answers, of the backend `python`.
    Raises:
        ArtifactError: a file that is not there; ModelError: a model or adapter that cannot be used.
    """
    match extra.backend:
        case "endpoint":
            source = Source(Path(extra.path or ""), url=extra.path, model=extra.model, chat=extra.api == "chat")
            return Weights("endpoint", source, storage.sha256_json([extra.path, extra.model]), 0)
        case "python":
            if found is None:
                raise ConfigError(
                    f"predict.extra.{variant}: the backend 'python' takes an object of the calling program",
                    "use harness.evaluate() in Python, or another backend",
                )
            # The state of an object cannot be hashed (a flag may switch an adapter off), so it is asked again each time.
            return Weights("python", Source(Path(), object=found), secrets.token_hex(16), 0)
        case "replay" | "llamacpp":
            path = _file(variant, extra)
            return Weights(extra.backend, Source(path), storage.sha256_large(path), path.stat().st_size)
        case _:
            return _adapter(config, extra, run_model) if extra.adapter else _model(config, variant, extra)


def asking(extra: ExtraVariant, found: Weights, asker: Asker) -> Asking:
    """A variant's prompts; ArtifactError for recorded answers that do not fit the questions."""
    match extra.backend:
        case "python":
            return asker.by_object(extra)
        case "replay":
            if extra.tokenizer != OWN and replay.is_ours(found.source.path):
                return asker.by_run  # looked up by the hashes of the prompts
            replay.check(found.source.path, asker.questions)
            return asker.by_object(extra)
        case "endpoint":
            text = extra.api == "chat" or extra.tokenizer == OWN
            return asker.by_text(extra) if text else asker.of_model(extra, None)
        case "llamacpp":
            return asker.of_model(extra, None)
        case _:
            return (
                _of_adapter(extra, found.source, asker)
                if found.source.adapter
                else asker.of_model(extra, found.source.path)
            )


def _file(variant: str, extra: ExtraVariant) -> Path:
    path = Path(extra.path or "")
    if not path.exists():
        raise ArtifactError("does not exist", f"correct predict.extra.{variant}.path", file=path)
    return path


def _model(config: Config, variant: str, extra: ExtraVariant) -> Weights:
    path = Path(extra.path or "")
    if not path.exists() and HUB_NAME.fullmatch((extra.path or "").removeprefix(HUB)):
        path = base_model.resolve(Model(path=extra.path or "", revision=extra.revision))
    path = path if path.exists() else _file(variant, extra)
    if path.is_file():
        raise ModelError(
            "is a file, and the backend transformers takes a model's folder",
            "name the folder, or use the backend llamacpp for a GGUF file",
            file=path,
        )
    if (path / adapters.CONFIG).exists() and not (path / "config.json").exists():
        raise ModelError(
            "holds an adapter, not a whole model",
            f"give it as predict.extra.{variant}.adapter (harness evaluate: adapter:{path})",
            file=path,
        )
    source = Source(path, load_in_4bit=extra.load_in_4bit, trust_remote_code=config.model.trust_remote_code)
    return Weights("transformers", source, base_model.weights_sha256(path), base_model.weights_size(path))


def _adapter(config: Config, extra: ExtraVariant, run_model: Path | None) -> Weights:
    folder = adapters.resolve(extra.adapter or "", extra.revision)
    base = base_of(extra, adapters.read(folder))
    # The run's model may be pinned to a revision: the same name is the same folder.
    path = run_model if run_model and base.path == config.model.path else base_model.resolve(base)
    source = Source(
        path, adapter=folder, load_in_4bit=extra.load_in_4bit, trust_remote_code=config.model.trust_remote_code
    )
    sha256 = storage.sha256_json([base_model.weights_sha256(path), base_model.weights_sha256(folder)])
    return Weights("transformers", source, sha256, base_model.weights_size(path) + base_model.weights_size(folder))


def _of_adapter(extra: ExtraVariant, source: Source, asker: Asker) -> Asking:
    """Uses the base's tokenizer, or the adapter's own if the adapter trained tokens or only it has a chat template.

    Tools save a tokenizer beside every adapter, with whatever settings were active.
    """
    folder = source.adapter
    assert folder is not None
    saved = any((folder / name).exists() for name in TOKENIZER_FILES)
    chat = has_chat_template(folder) and not has_chat_template(source.path)
    return asker.of_model(extra, folder if saved and (chat or adapters.trains_tokens(folder)) else source.path)


def base_of(extra: ExtraVariant, adapter: adapters.Adapter) -> Model:
    """The model that an adapter is put on: as configured, else as the adapter says; ModelError if neither names one."""
    named = extra.base or adapter.base
    if named is None:
        raise ModelError(
            "does not say which base it was trained on",
            "name the base: --base, or base in its config",
            file=adapter.folder,
        )
    hub = not Path(named).is_dir()
    return Model(path=named, revision=adapter.revision if hub and named == adapter.base else None)
