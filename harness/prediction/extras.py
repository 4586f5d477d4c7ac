"""Models that the run did not make (`predict.extra`): where their weights are, and how they are asked."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Any

from harness import storage
from harness.backends import Source, replay
from harness.config import Config, ExtraVariant, Model
from harness.errors import ArtifactError, ConfigError, ModelError
from harness.models import adapters, base_model
from harness.prediction.asking import OWN, Asker, Asking

HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+", re.ASCII)


def resolve(
    config: Config, variant: str, extra: ExtraVariant, asker: Asker, found: Any
) -> tuple[Source, str, int, Asking]:
    """(source, hash of the weights, their bytes, how it is asked) of a variant.

    Args:
        found: the object that answers, of the backend `python`.
    Raises:
        ArtifactError: a file that is not there, or recorded answers that do not fit the questions; ModelError: a model that cannot be used.
    """
    match extra.backend:
        case "endpoint":
            return _endpoint(extra, asker)
        case "python":
            return _python(variant, extra, asker, found)
        case "replay":
            return _replay(variant, extra, asker)
        case "llamacpp":
            path = _file(variant, extra)
            asking = asker.by_text(extra) if extra.tokenizer == OWN else asker.of_model(extra, asker.folder)
            return Source(path), storage.sha256_file(path), path.stat().st_size, asking
        case _:
            return _adapter(config, extra, asker) if extra.adapter else _model(config, variant, extra, asker)


def _file(variant: str, extra: ExtraVariant) -> Path:
    path = Path(extra.path or "")
    if not path.exists():
        raise ArtifactError("does not exist", f"correct predict.extra.{variant}.path", file=path)
    return path


def _endpoint(extra: ExtraVariant, asker: Asker) -> tuple[Source, str, int, Asking]:
    url = extra.path or ""
    source = Source(Path(url), url=url, model=extra.model, chat=extra.api == "chat")
    text = extra.api == "chat" or extra.tokenizer == OWN
    asking = asker.by_text(extra) if text else asker.of_model(extra, asker.folder)
    return source, storage.sha256_json([url, extra.model]), 0, asking


def _replay(variant: str, extra: ExtraVariant, asker: Asker) -> tuple[Source, str, int, Asking]:
    path = _file(variant, extra)
    asking = asker.by_object(extra)
    if extra.tokenizer != OWN and replay.is_ours(path):
        asking = asker.by_run  # looked up by the hashes of the prompts
    else:
        replay.check(path, asker.questions)
    return Source(path), storage.sha256_file(path), path.stat().st_size, asking


def _python(variant: str, extra: ExtraVariant, asker: Asker, found: Any) -> tuple[Source, str, int, Asking]:
    if found is None:
        raise ConfigError(
            f"predict.extra.{variant}: the backend 'python' takes an object of the calling program",
            "use harness.evaluate() in Python, or another backend",
        )
    # What decides an object's answers cannot be hashed (an adapter may be switched off by a flag): it is asked anew each time.
    return Source(Path(), object=found), secrets.token_hex(16), 0, asker.by_object(extra)


def _model(config: Config, variant: str, extra: ExtraVariant, asker: Asker) -> tuple[Source, str, int, Asking]:
    path = Path(extra.path or "")
    if not path.exists() and HUB_NAME.fullmatch(extra.path or ""):
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
    return source, base_model.weights_sha256(path), base_model.weights_size(path), asker.of_model(extra, path)


def _adapter(config: Config, extra: ExtraVariant, asker: Asker) -> tuple[Source, str, int, Asking]:
    folder = adapters.resolve(extra.adapter or "", extra.revision)
    adapter = adapters.read(folder)
    base = base_of(extra, adapter)
    # The run's model may be pinned to a revision: the same name is the same folder.
    path = asker.folder if base.path == config.model.path else base_model.resolve(base)
    own = folder if (folder / "tokenizer.json").exists() else path
    asking = asker.of_model(extra, own)
    if asking.by == "own" and own == folder and not adapters.trains_tokens(folder):
        # Tools save a tokenizer beside every adapter, settings of the day included; the base's decides unless tokens were trained.
        asking = asker.of_model(extra, path)
    source = Source(
        path, adapter=folder, load_in_4bit=extra.load_in_4bit, trust_remote_code=config.model.trust_remote_code
    )
    sha256 = storage.sha256_json([base_model.weights_sha256(path), base_model.weights_sha256(folder)])
    return source, sha256, base_model.weights_size(path) + base_model.weights_size(folder), asking


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
