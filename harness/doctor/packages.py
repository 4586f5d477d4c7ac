"""The installed packages against the ranges that this project declares, and against those that Unsloth asks for."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness import variants
from harness.config import PROJECT, Config
from harness.doctor import Finding

DISTRIBUTION = "qa-harness"
UNSLOTH = ("unsloth", "unsloth_zoo")


def findings(config: Config) -> list[Finding]:
    """A finding for each package that this config needs."""
    extras = ["", "train", *(["gguf"] if uses_gguf(config) else [])]
    asked = unsloth_ranges() if config.train.engine == "unsloth" else {}
    found = [
        _finding(requirement, asked.get(canonicalize_name(requirement.name), {}))
        for requirement in requirements(extras)
        if (config.tracking == "wandb" and config.wandb.enabled) or requirement.name != "wandb"
    ]
    if config.train.engine == "unsloth":
        found += [_finding(Requirement(name), {}) for name in UNSLOTH]
    return [replace(finding, is_package=True) for finding in found]


def uses_gguf(config: Config) -> bool:
    """Whether llama.cpp writes or answers anything here."""
    return any(map(variants.is_gguf, config.export.formats)) or any(
        v.backend == "llamacpp" for v in config.predict.extra.values()
    )


def requirements(extras: list[str]) -> list[Requirement]:
    """What this project declares: in a checkout in its pyproject.toml, otherwise in its installed metadata. The extra `""` is what is always needed."""
    file = PROJECT / "pyproject.toml"
    if file.exists():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        lists = [project["optional-dependencies"][extra] if extra else project["dependencies"] for extra in extras]
        return [Requirement(line) for lines in lists for line in lines]
    declared = map(Requirement, metadata.requires(DISTRIBUTION) or [])
    return [r for r in declared if any(_applies(r, extra) for extra in extras)]


def unsloth_ranges() -> dict[str, dict[str, Requirement]]:
    """Canonical package name -> {which of Unsloth's distributions asks: what it asks for}; without those that it asks for in an extra."""
    ranges: dict[str, dict[str, Requirement]] = {}
    for name in UNSLOTH:
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            if _applies(requirement, ""):
                ranges.setdefault(canonicalize_name(requirement.name), {})[name] = requirement
    return ranges


def _applies(requirement: Requirement, extra: str) -> bool:
    """Whether it is needed on this machine and with this extra; `""` selects what no marker ties to an extra."""
    return not extra if requirement.marker is None else requirement.marker.evaluate({"extra": extra})


def _finding(requirement: Requirement, asked: dict[str, Requirement]) -> Finding:
    wanted = ",".join(sorted(map(str, requirement.specifier), reverse=True))
    install = f"run make setup, or pip install '{requirement.name}{wanted}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding("fail", requirement.name, "is not installed", install)
    supported = f", supported {wanted}" if wanted else ""
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding("fail", requirement.name, f"{version}{supported}", install)
    for name, other in asked.items():
        if not other.specifier.contains(version, prereleases=True):
            return Finding(
                "fail", requirement.name, f"{version}, and {name} asks for {other.specifier}", "run make setup again"
            )
    return Finding("ok", requirement.name, f"{version}{supported}{' and by Unsloth' if asked else ''}")
