"""Is a stage's output up to date? The one place that decides it, for every stage.

A stage's manifest keeps a fingerprint of what the output was made from: the contents of its input files, its settings, and its code. Times of
files decide nothing. The code of a stage is what its module imports, directly or through other modules of the harness, at the top of a file or
inside a function; comments and docstrings do not count.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from harness.errors import ArtifactError
from harness.records.base import Manifest
from harness.storage.hashing import cache_folder, remember, sha256_file, sha256_json
from harness.storage.records_io import read_record

M = TypeVar("M", bound=Manifest)
PACKAGE = Path(__file__).parent.parent
NEUTRAL = {
    "harness",
    "harness.config",
    "harness.config.answering",
    "harness.config.base",
    "harness.config.judging",
    "harness.config.loading",
    "harness.config.questions",
    "harness.config.training",
    "harness.errors",
    "harness.log",
    "harness.provenance",
    "harness.storage",
    "harness.storage.atomic",
    "harness.storage.fingerprint",
    "harness.storage.hashing",
    "harness.storage.records_io",
    "harness.storage.run_folder",
    "harness.storage.strict_yaml",
    "harness.training.evaluation_log",
    "harness.training.mlflow_log",
    "harness.training.tensorboard_log",
    "harness.training.tracker",
    "harness.training.trackio_log",
    "harness.training.wandb_log",
}
"""Modules that cannot change a stage's output: settings and files enter a fingerprint by content, and messages, the run's record and trackers affect no output.

These modules are neither hashed nor followed.
"""
CACHE_VERSION = 1
"""Increase it whenever `_parsed` would return something different for the same source."""
NAMED = re.compile(r"harness(\.[a-z_0-9]+)+")
"""A module named in a string, as in registries (`harness.metrics.match:ExactMatch`). It counts only if its package is imported too, since the
package does the look-up: a stage that only reads the labels of all metrics and backends depends on none of them."""


def up_to_date(path: Path, kind: type[M], fingerprint: str, whole: Callable[[M], bool]) -> M | None:
    """The manifest at `path` if its stage need not run again, else None.

    Args:
        path: the manifest, which a stage writes last. Missing, damaged or of another version of the harness: the stage runs again.
        fingerprint: of the inputs, settings and code as they are now.
        whole: returns whether the files that the manifest describes are unchanged (see `is_written`).
    """
    if not path.exists():
        return None
    try:
        manifest = read_record(path, kind)
        return manifest if getattr(manifest, "fingerprint", None) == fingerprint and whole(manifest) else None
    except ArtifactError:
        return None


def is_written(path: Path, sha256: str) -> bool:
    """Whether a file exists and has this hash."""
    return path.is_file() and sha256_file(path) == sha256


# --------------------------------------------------------------------------------------------------------------- code


@cache
def code_sha256(module: str, package: Path = PACKAGE) -> str:
    """Hash of the code of `module` (such as `harness.stages.score`) and of every module of the harness that it imports.

    Equal for sources that differ in comments, docstrings or layout alone; it may differ between versions of Python.
    """
    return sha256_json([[name, _read(_file(name, package)).code] for name in closure(module, package)])


@cache
def closure(module: str, package: Path = PACKAGE) -> list[str]:
    """The modules of the harness that decide what `module` does, itself among them, sorted; without `NEUTRAL`.

    Args:
        package: the folder of the package `harness`.
    """
    found: set[str] = set()
    named: set[str] = set()
    left = [module]
    while left:
        name = left.pop()
        if name not in found and (name not in NEUTRAL or name == module):
            found.add(name)
            source = _read(_file(name, package))
            left += [_home(origin, taken, package) for origin, taken, _ in source.imports]
            named |= {text for text in source.named if _file(text, package).exists()}
        if not left:
            left = [text for text in named - found - NEUTRAL if text.rpartition(".")[0] in found]
    return sorted(found)


@dataclass(frozen=True)
class _Source:
    """What one source file says."""

    code: str
    """Hash of its syntax without comments, docstrings and layout."""
    imports: tuple[tuple[str, str, str], ...]
    """(module, name taken from it or "", name given to it) of every import from the harness, but for type checkers."""
    named: tuple[str, ...]
    """Modules of the harness that are named in strings."""


def _file(module: str, package: Path) -> Path:
    """The source of a module; a path that does not exist if there is no such module."""
    place = package.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _read(file: Path) -> _Source:
    return _parse(file.read_bytes())


@cache
def _parse(text: bytes) -> _Source:
    """The parsed source, from the user's cache if possible: parsing all of them takes a second."""
    note = cache_folder("code") / sha256_json([CACHE_VERSION, sys.version_info[:2], hashlib.sha256(text).hexdigest()])
    try:
        code, imports, named = json.loads(note.read_text(encoding="utf-8"))
        return _Source(str(code), tuple((str(a), str(b), str(c)) for a, b, c in imports), tuple(map(str, named)))
    except (OSError, ValueError, TypeError):
        found = _parsed(text)
        remember(note, json.dumps([found.code, found.imports, found.named]))
        return found


def _parsed(text: bytes) -> _Source:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [part for part in body if not _is_text(part)]
    code = hashlib.sha256(ast.dump(tree).encode("utf-8", "surrogatepass")).hexdigest()
    nodes = list(_running(tree))
    texts = (n.value.partition(":")[0] for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))
    named = tuple(dict.fromkeys(text for text in texts if NAMED.fullmatch(text)))
    return _Source(code, tuple(found for node in nodes for found in _imports(node)), named)


def _is_text(node: ast.AST) -> bool:
    """A text as a statement: a docstring of a module, class, function or attribute."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it, without the body of `if TYPE_CHECKING`."""
    yield node
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        children: Iterable[ast.AST] = node.orelse
    else:
        children = ast.iter_child_nodes(node)
    for child in children:
        yield from _running(child)


def _imports(node: ast.AST) -> Iterator[tuple[str, str, str]]:
    if isinstance(node, ast.Import):
        yield from ((alias.name, "", "") for alias in node.names if alias.name.partition(".")[0] == "harness")
    elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "harness":
        yield from ((node.module, alias.name, alias.asname or alias.name) for alias in node.names)


def _home(module: str, name: str, package: Path) -> str:
    """Where `from module import name` takes the name from: a submodule, or the module that a package's `__init__` takes it from itself."""
    if not name:
        return module
    if _file(f"{module}.{name}", package).exists():
        return f"{module}.{name}"
    file = _file(module, package)
    if file.name == "__init__.py":
        for origin, taken, given in _read(file).imports:
            if given == name and origin.startswith(f"{module}."):
                return _home(origin, taken, package)
    return module
