"""The import graph of the harness: no cycle, arrows that point down, few loose modules, short modules and functions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from harness.storage.fingerprint import PACKAGE, _home, _read

LAYERS = [
    {"errors"},
    {"records", "variants", "registry"},
    {"storage"},
    {"config", "prompt", "chat_template", "provenance", "log"},
    {"formats", "models", "report"},
    {"metrics", "backends", "questions", "training"},
    {"analysis"},
    {"prediction", "gating", "doctor", "verification"},
    {"stages"},
    {"api", "web"},
    {"cli"},
    {"__main__"},
]
"""From the bottom up. A module or package imports from its own layer and those below it, never from above."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
LOOSE = 9
LINES, FUNCTION_LINES, TEST_LINES = 400, 60, 600
SOURCES = sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    return ".".join(("harness", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def edges() -> dict[str, set[str]]:
    """Each module with what it imports from the harness, at the top or inside functions."""
    return {
        module_of(file): {_home(origin, taken, PACKAGE) for origin, taken, _ in _read(file).imports} for file in SOURCES
    }


def part(module: str) -> str:
    """The module or package directly below `harness` that it belongs to."""
    return module.split(".")[1] if "." in module else ""


def test_no_module_imports_from_a_layer_above() -> None:
    unplaced = {part(module) for module in edges()} - LEVEL.keys() - {""}
    assert not unplaced, f"give {unplaced} a layer"
    upward = [
        f"{module} -> {other}"
        for module, others in edges().items()
        for other in others
        if part(module) and part(other) and LEVEL[part(other)] > LEVEL[part(module)]
    ]
    assert not upward


def test_no_cycle() -> None:
    graph, done = edges(), set[str]()
    del graph["harness"]  # the Python door, which opens `harness.api` when it is asked for

    def walk(module: str, path: list[str]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(graph.get(module, set()) - {module}):
                walk(other, [*path, module])
            done.add(module)

    for module in graph:
        walk(module, [])


def test_no_stage_imports_another() -> None:
    stages = {
        f"harness.stages.{name}"
        for name in ("split", "train", "export", "predict", "score", "compare", "report", "gate")
    }
    for stage in stages:
        assert not edges()[stage] & stages - {stage}, stage


def test_few_modules_are_loose() -> None:
    loose = [file.stem for file in PACKAGE.glob("*.py") if not file.stem.startswith("__")]
    assert len(loose) <= LOOSE, sorted(loose)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_modules_and_functions_are_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    long = [f"{text.count(chr(10))} lines"] if text.count("\n") > LINES else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            long += [f"{node.name} has {length} lines"] if length > FUNCTION_LINES else []
    assert not long


def test_test_modules_are_of_one_subject() -> None:
    folder = Path(__file__).parent
    lengths = {file.relative_to(folder): file.read_text(encoding="utf-8").count("\n") for file in folder.rglob("*.py")}
    assert not {name: lines for name, lines in lengths.items() if lines > TEST_LINES}
