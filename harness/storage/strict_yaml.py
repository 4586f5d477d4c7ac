"""YAML for configs: the safe subset, with duplicate keys refused and the size limited.

PyYAML silently keeps the last of two equal keys, and nested aliases can expand a file of a few hundred bytes to gigabytes.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from harness.storage import strict_json

MAX_CHARACTERS = 100_000
MAX_VALUES = 10_000
"""Most values, counted after alias expansion."""


class NotUsable(ValueError):
    """The problem with a text, and its line (None: unknown)."""

    def __init__(self, problem: str, line: int | None = None):
        self.problem, self.line = problem, line
        super().__init__(problem)


def loads(text: str) -> Any:
    """The value of a YAML text; None if it is empty. Raises NotUsable."""
    if len(text) > MAX_CHARACTERS:
        raise NotUsable(f"has more than {MAX_CHARACTERS:,} characters")
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except NotUsable:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise NotUsable("is not YAML", mark.line + 1 if mark else None) from None
    except RecursionError:
        raise NotUsable("is not YAML") from None
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
        # Tag constructors raise these for a value that does not fit its tag: invalid dates, `!!bool x`.
        raise NotUsable("is not YAML") from None
    try:
        strict_json.check(value)
    except ValueError as error:
        raise NotUsable(f"has {error}") from None
    return value


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str):
        super().__init__(text)
        self.sizes: dict[int, int] = {}
        """Id of a composed node -> number of values that it expands to."""

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if node is None:
            return node
        if not is_alias:
            children = (
                node.value
                if isinstance(node, SequenceNode)
                else chain(*node.value)
                if isinstance(node, MappingNode)
                else ()
            )
            self.sizes[id(node)] = 1 + sum(self.sizes[id(child)] for child in children)
        if id(node) not in self.sizes:
            raise NotUsable("has an alias that contains itself", node.start_mark.line + 1)
        if self.sizes[id(node)] > MAX_VALUES:
            raise NotUsable(f"expands to more than {MAX_VALUES:,} values", node.start_mark.line + 1)
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise NotUsable(
                        f"has the key {key.value[:80]!r} twice, on lines {lines[key.value]} and {line}", line
                    )
                lines[key.value] = line
        return node
