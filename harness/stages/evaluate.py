"""Evaluate: judge models that were made elsewhere, on a test file.

Runs split, predict, score, compare and report, without training. This stage only turns `NAME=WHERE` into a config (`configure`) and calls the others
(`run`); it is the only stage that does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import Config
from harness.config.loading import HUB, HUB_NAME
from harness.errors import ConfigError
from harness.records import Comparison
from harness.storage import RunFolder, check_name
from harness.variants import BASE, BASE_FEW_SHOT

WAYS = "a model's folder or hub name, adapter:FOLDER_OR_HUB, a GGUF file, http(s)://host/v1#model, or replay:FILE.jsonl"
COMPLETIONS, CHAT = "/completions", "/chat/completions"
GGUF_MAGIC = b"GGUF"
MOST_EXAMPLES = 64
"""Of `predict.few_shot`."""


@dataclass(frozen=True)
class Plan:
    """The options passed to the other stages."""

    config: Config
    notes: list[str]
    """The choices made for each model, and warnings, in words."""


def configure(
    config: Config,
    test: str,
    models: Sequence[str],
    *,
    trained_on: str | None = None,
    base: str | None = None,
    load_in_4bit: bool | None = None,
    few_shot: int | None = None,
    objects: Mapping[str, Any] | None = None,
) -> Plan:
    """The config that judges `models` on `test`.

    Args:
        config: prompt, limits and metrics; its own variants, questions and model are replaced.
        test: the questions.
        models: each `NAME=WHERE`, or WHERE alone, which is then named by its last part.
        trained_on: what the models were trained on, for leakage and the no-model baselines.
        base: the model that adapters are applied to, instead of the one that they name; without adapters, a model to compare with. Also the tokenizer
        of GGUF files.
        few_shot: number of training questions in front of each question in a second evaluation of the base, `base_fewshot`; None: none.
        load_in_4bit: adapters on a base in 4 bits, as QLoRA trains them; None: in 16.
        objects: name -> function or loaded model.
    Raises:
        ConfigError: a model or a name that cannot be used; ModelError: an adapter that cannot be read.
    """
    named = dict(_named(model) for model in models)
    if len(named) < len(models) or set(named) & set(objects or {}):
        raise ConfigError("two models have the same name", "name them: --model NAME=WHERE")
    if not named and not objects:
        raise ConfigError("no model to judge", f"give --model NAME=WHERE, where WHERE is {WAYS}")
    notes: list[str] = []
    if base is not None:
        notes.append(f"base: {base}")
    extra: dict[str, dict[str, Any]] = {}
    for name, where in named.items():
        check_name(name, "model")
        extra[name] = _extra(name, where, base, load_in_4bit, notes)
    extra |= {name: {"backend": "python"} for name in objects or {}}
    path = _put_bases(extra, base, notes)
    _check_gguf(extra, path)
    values = config.model_dump(mode="json")
    values["data"] |= {"qa": None, "test": test, "trained_on": trained_on, "taught": None}
    asked = [BASE] if path and _wants_base(extra, base) else []
    if few_shot is not None:
        _check_few_shot(few_shot, asked, trained_on)
        asked.append(BASE_FEW_SHOT)
        values["predict"]["few_shot"] = few_shot
        notes.append(f"{BASE_FEW_SHOT}: the base with {few_shot} of the training questions in front of each question")
    values["predict"] |= {"variants": asked, "extra": extra}
    values["gate"] |= {"variants": [], "fidelity": {}, "divergence": {}, "size_ratio": {}, "speed_ratio": {}}
    if path:
        values["model"] = path
    return Plan(Config.model_validate(values), notes)


def run(
    folder: RunFolder,
    plan: Plan,
    *,
    command: str = "harness.evaluate(...)",
    force: bool = False,
    objects: Mapping[str, Any] | None = None,
) -> Comparison:
    """Runs split, predict, score, compare and report on a run folder; what is unchanged is kept, and an interrupted run is resumed.

    Args:
        command: as run.json records it.
    Raises:
        what the stages raise.
    """
    from harness.stages import compare, pipeline, predict, report, score, split

    config = plan.config
    with pipeline.attempt(folder, config, "split", command):
        split.run(folder, config)
    with pipeline.attempt(folder, config, "predict", command):
        predict.run(folder, config, force=force, objects=objects)
    with pipeline.attempt(folder, config, "score", command):
        score.run(folder, config, force=force)
    with pipeline.attempt(folder, config, "compare", command):
        comparison = compare.run(folder, config, force=force)
    with pipeline.attempt(folder, config, "report", command):
        report.run(folder, config, force=force)
    return comparison


# -------------------------------------------------------------------------------------------------------------- models


def _named(model: str) -> tuple[str, str]:
    """(name, where) of `NAME=WHERE`; a WHERE alone is named by its last part."""
    name, found, where = model.partition("=")
    if found and where and not any(mark in name for mark in "/:#"):
        return name, where
    bare = model.partition("#")[2] or model.rstrip("/").rpartition("/")[2].removesuffix(".gguf").removesuffix(".jsonl")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", bare.partition(":")[2] or bare).strip("-._") or "model", model


def _extra(name: str, where: str, base: str | None, load_in_4bit: bool | None, notes: list[str]) -> dict[str, Any]:
    """The section of `predict.extra` for one model."""
    kind, _, rest = where.partition(":")
    if kind in ("http", "https"):
        return _endpoint(name, where, notes)
    if kind == "adapter":
        return _adapter(name, rest, base, load_in_4bit, notes)
    if kind == "replay":
        if not Path(rest).is_file():
            raise ConfigError(f"--model {name}: no such file {rest!r}", "check the path of the predictions file")
        notes.append(f"{name}: answers recorded in {rest}")
        return {"backend": "replay", "path": rest, "tokenizer": "own"}
    path = Path(where)
    if path.is_file():
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != GGUF_MAGIC:
            hint = f"give {WAYS}"
            if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
                hint = "save it as safetensors: opening a pickle file can run any code"
            raise ConfigError(f"--model {name}: {where} is not a GGUF file", hint)
        notes.append(f"{name}: GGUF file {where}, answered by llama.cpp")
        return {"backend": "llamacpp", "path": where}
    if path.is_dir():
        if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
            return _adapter(name, where, base, load_in_4bit, notes)
        notes.append(f"{name}: model in {where}, answered by transformers")
        return {"backend": "transformers", "path": where}
    if HUB_NAME.fullmatch(where.removeprefix(HUB)) and not where.endswith(
        (".gguf", ".jsonl", ".safetensors", ".bin", ".pt")
    ):
        notes.append(f"{name}: model {where} of the hub, answered by transformers")
        return {"backend": "transformers", "path": where}
    raise ConfigError(f"--model {name}: there is no {where!r}", f"give {WAYS}")


def _endpoint(name: str, where: str, notes: list[str]) -> dict[str, Any]:
    url, _, model = where.partition("#")
    url = url.rstrip("/")
    api = "completions" if url.endswith(COMPLETIONS) and not url.endswith(CHAT) else "chat"
    url = url.removesuffix(CHAT).removesuffix(COMPLETIONS)
    notes.append(f"{name}: server {url}, asked through {CHAT if api == 'chat' else COMPLETIONS}")
    return {"backend": "endpoint", "path": url, "model": model or None, "api": api, "tokenizer": "own"}


def _adapter(name: str, where: str, base: str | None, load_in_4bit: bool | None, notes: list[str]) -> dict[str, Any]:
    from harness.models import adapters

    folder = adapters.resolve(where)
    adapter = adapters.read(folder)
    named = base or adapter.base
    if named is None:
        raise ConfigError(
            f"--model {name}: {where} does not say which base it was trained on", "name it with --base FOLDER_OR_HUB"
        )
    bits = "4 bits, as trained" if load_in_4bit else "16 bits"
    note = f"{name}: {adapter.kind} adapter {where} on {named} in {bits}"
    if adapter.quantised and not load_in_4bit:
        note += "; it was trained on 4 bits, and --4bit judges it so"
    notes.append(note)
    if base and adapter.base and base != adapter.base:
        notes.append(f"{name}: warning: it says that it was trained on {adapter.base}, and --base is {base}")
    if problem := adapters.not_exportable(adapter):
        notes.append(f"{name}: harness export could not write merged or GGUF files from it: it {problem}")
    return {"backend": "transformers", "adapter": where, "base": named, "load_in_4bit": bool(load_in_4bit)}


def _put_bases(extra: dict[str, dict[str, Any]], base: str | None, notes: list[str]) -> dict[str, Any] | None:
    """The run's model, with which the others are compared: the base of the first adapter, else the first whole model; None: there is none.

    An adapter on another base gets that base as a separate model, `NAME.base`.
    """
    first = base or next((e["base"] for e in extra.values() if e.get("adapter")), None)
    if first is None:
        first = next((e["path"] for e in extra.values() if e["backend"] == "transformers"), None)
        return {"path": first} if first else None
    for name, section in list(extra.items()):
        if section.get("adapter") and section["base"] != first:
            extra[f"{name}.base"] = {"backend": "transformers", "path": section["base"]}
            notes.append(f"{name}.base: the base of {name}, {section['base']}")
    return {"path": first, "revision": _revision(extra, first)}


def _revision(extra: Mapping[str, dict[str, Any]], base: str) -> str | None:
    """The revision of a hub base that its first adapter names."""
    from harness.models import adapters

    if Path(base).is_dir():
        return None
    for section in extra.values():
        if section.get("adapter") and section["base"] == base:
            adapter = adapters.read(adapters.resolve(section["adapter"]))
            return adapter.revision if adapter.base == base else None
    return None


def _wants_base(extra: Mapping[str, dict[str, Any]], base: str | None) -> bool:
    return base is not None or any(section.get("adapter") for section in extra.values())


def _check_few_shot(few_shot: int, asked: Sequence[str], trained_on: str | None) -> None:
    if not 1 <= few_shot <= MOST_EXAMPLES:
        raise ConfigError(f"--few-shot {few_shot} is not between 1 and {MOST_EXAMPLES}", "give a number such as 4")
    if not asked:
        raise ConfigError("--few-shot: there is no base to ask with examples", "name it: --base FOLDER_OR_HUB")
    if trained_on is None:
        raise ConfigError("--few-shot: there are no questions to take as examples", "name a file: --trained-on FILE")


def _check_gguf(extra: Mapping[str, dict[str, Any]], model: dict[str, Any] | None) -> None:
    for name, section in extra.items():
        if section["backend"] == "llamacpp" and model is None:
            raise ConfigError(
                f"--model {name}: a GGUF file is asked by the tokenizer of the model that it was made from",
                "name that model: --base FOLDER_OR_HUB",
            )
