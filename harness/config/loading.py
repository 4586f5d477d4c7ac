"""What happens to a config before validation: the file is found and read, overrides are applied, paths are located.

Independent of the schema, which is in `harness.config`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from harness.errors import ADDRESS, ConfigError
from harness.storage import check_name, strict_json, strict_yaml

CONFIGS = Path(__file__).parent.parent / "configs"
PROJECT = CONFIGS.parent.parent
EMBEDDED = "tiny"
"""The shipped config of the embedded model and questions."""
RENAMED = {"seed-llama3-8b": "notebook-llama3-8b"}
"""Old name of a shipped config -> its present name."""
HUB = "hub:"
"""Prefix of a model's name on the hub, even if a folder of that name exists."""
HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+", re.ASCII)
HOW_TO_SET = "write it like --set train.max_steps=60"
SETTING = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|\[[^\]]*\]|\{[^}]*\}|[^\s"'\[{])+""")
"""One of several settings in a text: spaces inside quotes and brackets do not end it."""


class IsPath:
    """Marks a setting that is a path: `Annotated[str, IsPath()]`. Relative ones are found from any working folder (see `locate`)."""


# -------------------------------------------------------------------------------------------------------------- files


def renamed(name: str) -> str | None:
    """The present name of a shipped config that was asked for by its old one, else None."""
    return RENAMED.get(name)


def find(name: str) -> Path:
    """The file of a config given by name or path.

    Raises:
        ConfigError: there is none.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if path.is_file():
            return path
    elif (path := CONFIGS / f"{RENAMED.get(name, name)}.yaml").is_file():
        return path
    known = sorted(p.stem for p in CONFIGS.glob("*.yaml"))
    raise ConfigError(f"no config {name!r}", f"use one of {', '.join(known)}, or the path of a YAML file")


def run_name(config: str) -> str:
    """The run that a config makes where --run does not say otherwise: the file's name without its ending.

    Raises:
        ConfigError: it cannot name a run.
    """
    try:
        return check_name(Path(config).stem)
    except ConfigError as error:
        problem = f"its name {Path(config).stem!r} cannot name the run"
        raise ConfigError(problem, f"give a name with --run; {error.hint}", file=config) from None


def read(path: Path) -> dict[str, Any]:
    """The values of a config file.

    Raises:
        ConfigError: it is not YAML, or not a mapping.
    """
    try:
        if path.stat().st_size > 4 * strict_yaml.MAX_CHARACTERS:
            raise strict_yaml.NotUsable(f"has more than {strict_yaml.MAX_CHARACTERS:,} characters")
        values = strict_yaml.loads(path.read_text(encoding="utf-8")) or {}
    except strict_yaml.NotUsable as error:
        hint = f"look at line {error.line}" if error.line else "check the file"
        raise ConfigError(error.problem, hint, file=path) from None
    except UnicodeDecodeError:
        raise ConfigError("is not YAML", "save it as UTF-8", file=path) from None
    if not isinstance(values, dict):
        raise ConfigError("is not a mapping of sections", "see harness/configs/tiny.yaml for one", file=path)
    return values


# ----------------------------------------------------------------------------------------------------------- overrides


def split_settings(text: str) -> list[str]:
    """Several `key=value` settings in one text, separated by spaces, as make passes them on; quotes and brackets keep spaces."""
    found = SETTING.findall(text)
    return [s[1:-1] if len(s) > 1 and s[0] == s[-1] and s[0] in "\"'" else s for s in found]


def override(values: dict[str, Any], setting: str) -> None:
    """Applies one `key.path=value`, whose value is YAML.

    Raises:
        ConfigError: it is not of this form, or what it names is not below a section.
    """
    key, found, text = setting.partition("=")
    if not found or not key:
        raise ConfigError(f"--set {setting!r} is not KEY=VALUE", HOW_TO_SET)
    try:
        put(values, key.split("."), strict_yaml.loads(text))
    except (strict_yaml.NotUsable, NotASection):
        raise ConfigError(f"--set {setting!r} cannot be applied", HOW_TO_SET) from None


def forget_embedded(
    values: dict[str, Any], path: Path, settings: Sequence[str], qa: str | None, embedded: str | None
) -> None:
    """Drops the settings that fit only the embedded questions where others are asked: legal normalizer and metrics, and `data.taught`.

    Args:
        path: the config's file.
        settings: the overrides; one that sets `score` or `data.taught` is applied later and wins.
        qa: `--qa`.
        embedded: the embedded questions, relative to the project.
    """
    if path != CONFIGS / f"{EMBEDDED}.yaml" or embedded is None:
        return

    def others(*keys: str) -> bool:
        named = (s.partition("=")[2] for s in reversed(settings) if s.startswith(keys))
        asked = qa or next(named, None)
        return asked is not None and os.path.abspath(asked) != os.path.abspath(PROJECT / embedded)

    score, data = values.get("score"), values.get("data")
    if others("data.qa=", "data.test=") and isinstance(score, dict):
        score.pop("normalizer", None)
        score.pop("metrics", None)
    if others("data.qa=") and isinstance(data, dict):
        data.pop("taught", None)


class NotASection(Exception):
    """A key below something that is not a mapping."""


def put(values: dict[str, Any], keys: list[str], value: Any) -> None:
    """Sets a value below nested sections, which are made where they are missing."""
    for key in keys[:-1]:
        if values.get(key) is None:
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            raise NotASection
    values[keys[-1]] = value


# --------------------------------------------------------------------------------------------------------------- paths


def locate(values: dict[str, Any], schema: type[BaseModel], file: Path) -> None:
    """Makes the paths of a config usable from any working folder, in place.

    A relative path in a config is looked for beside the config's file (a shipped config's: in the project), then in the working folder. A path that
    is left out is the schema's default, in the project. Names on the hub and addresses are left unchanged.

    Args:
        values: as read from `file`, before any --set, whose paths are relative to the working folder.
    """
    is_shipped = file.parent == CONFIGS
    for section, key, default in _path_fields(schema):
        if not isinstance(values.setdefault(section, {}), dict | None):
            continue
        inner = values[section] or {}
        if isinstance(text := inner.get(key), str):
            inner[key] = _locate(text, PROJECT if is_shipped else file.parent, here_first=is_shipped)
        elif key not in inner and isinstance(default, str):
            inner[key] = _locate(default, PROJECT, here_first=True)
        values[section] = inner
    extra = (values.get("predict") or {}).get("extra") if isinstance(values.get("predict"), dict | None) else None
    for variant in extra.values() if isinstance(extra, dict) else []:
        if isinstance(variant, dict) and isinstance(variant.get("path"), str) and variant.get("backend") != "endpoint":
            variant["path"] = _locate(variant["path"], PROJECT if is_shipped else file.parent, here_first=is_shipped)


def _path_fields(schema: type[BaseModel]) -> Iterator[tuple[str, str, Any]]:
    """(section, key, default) of every setting of a section that is marked as a path."""
    for section, outer in schema.model_fields.items():
        if isinstance(outer.annotation, type) and issubclass(outer.annotation, BaseModel):
            for key, field in outer.annotation.model_fields.items():
                if any(isinstance(mark, IsPath) for mark in field.metadata):
                    yield section, key, field.default


def _locate(text: str, base: Path, *, here_first: bool) -> str:
    """A path of a config, looked for below `base` and in the working folder, in the order given."""
    if text.startswith(HUB) or "://" in text or "\0" in text or Path(text).is_absolute():
        return text
    here = base / text
    if here_first and Path(text).exists():
        return text
    if here.exists():
        return _shown(here)
    if Path(text).exists() or (HUB_NAME.fullmatch(text) and not here.parent.exists()):
        return text
    return _shown(here)


def _shown(path: Path) -> str:
    """A path relative to the working folder where it is inside it."""
    whole = Path(os.path.abspath(path))
    return whole.relative_to(Path.cwd()).as_posix() if whole.is_relative_to(Path.cwd()) else str(whole)


# ------------------------------------------------------------------------------------------------------------ mistakes


def explain(detail: Any, schema: type[BaseModel]) -> str:
    """One of Pydantic's findings as a user reads it, with the nearest known key for an unknown one."""
    keys = [str(k) for k in detail["loc"]]
    where = ".".join(keys)
    if detail["type"] == "extra_forbidden":
        section = schema
        for key in keys[:-1]:
            field = section.model_fields.get(key)
            # `predict.extra` holds sections under names of the user's choice.
            for annotation in (field.annotation, *get_args(field.annotation)) if field else ():
                if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                    section = annotation
        near = difflib.get_close_matches(keys[-1], section.model_fields, n=1)
        known = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(section.model_fields)}"
        return f"unknown key {where!r} ({known})"
    message = detail["msg"].removeprefix("Value error, ")
    shown = repr(detail["input"])
    got = f", got {shown}" if where and len(shown) < 60 else ""
    return (f"{where}: " if where else "") + f"{message[0].lower()}{message[1:]}{got}"


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """The message for an unknown name: with the nearest known one, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"no {kind} {name!r} (" + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}") + ")"


def one_of(kind: str, known: Sequence[str]) -> Callable[[str], str]:
    """A validator that accepts only these names."""

    def check(value: str) -> str:
        if value not in known:
            raise ValueError(unknown(kind, value, known))
        return value

    return check


def check_texts(values: Any, file: Path) -> None:
    """Refuses texts that cannot be written down or must not be: half of a character, NUL, a secret in an address.

    Raises:
        ConfigError: naming the key.
    """
    for key, text in _texts(values):
        if strict_json.SURROGATE.search(text):
            raise ConfigError(f"{key}: is not UTF-8", "give it in UTF-8", file=file)
        if "\0" in text:
            raise ConfigError(f"{key}: holds a NUL character", "remove it", file=file)
        if any(found["user"] or (found["query"] and key.endswith(".path")) for found in ADDRESS.finditer(text)):
            raise ConfigError(
                f"{key}: holds a password or a key in an address, and configs are written into reports",
                "leave it out; an endpoint's key goes into the environment variable HARNESS_ENDPOINT_KEY",
                file=file,
            )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(inner, f"{key}.{name}".lstrip("."))
