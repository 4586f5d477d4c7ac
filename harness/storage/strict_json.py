"""Strict, interoperable JSON (RFC 8259, I-JSON): what only Python's reader accepts is refused.

These are NaN and infinities, numbers of thousands of digits, duplicate keys, lone surrogates, and deep nesting.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 64
MAX_DIGITS = 400
"""Digits of one number: the largest float has 309 before its decimal point."""
SURROGATE = re.compile(r"[\ud800-\udfff]")
SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def _refuse(literal: str) -> NoReturn:
    raise ValueError(f"{literal[:40]}{'...' if len(literal) > 40 else ''} is not a number that JSON knows")


def _float(literal: str) -> float:
    value = float(literal)
    return value if math.isfinite(value) else _refuse(literal)


def _int(literal: str) -> int:
    return int(literal) if len(literal) <= MAX_DIGITS else _refuse(literal)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:80]!r} occurs twice")
    return values


DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_float, parse_int=_int, object_pairs_hook=_object)


def loads(text: str, *, max_depth: int = MAX_DEPTH) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: one of the above; json.JSONDecodeError, with line and column, if it is not JSON at all.
    """
    try:
        value = DECODER.decode(text)
    except RecursionError:
        raise ValueError(f"more than {max_depth} levels of nesting") from None
    check(value, max_depth=max_depth, surrogates=bool(SURROGATE_ESCAPE.search(text)))
    return value


def check(value: Any, *, max_depth: int = MAX_DEPTH, surrogates: bool = True) -> None:
    """Raises ValueError for a value that a JSON file should not hold.

    It is nested deeper than `max_depth`, or has an integer of thousands of digits, or a lone surrogate (not checked if
    `surrogates` is false).
    """
    todo: list[tuple[Any, int]] = [(value, 0)]
    while todo:
        inner, depth = todo.pop()
        if isinstance(inner, str):
            if surrogates and not inner.isascii() and SURROGATE.search(inner):
                raise ValueError("half of a surrogate pair, which is not a character")
        elif isinstance(inner, int):
            if inner.bit_length() > MAX_DIGITS * 3:
                raise ValueError("a number of hundreds of digits")
        elif isinstance(inner, dict | list):
            if depth == max_depth:
                raise ValueError(f"more than {max_depth} levels of nesting")
            children = [*inner.keys(), *inner.values()] if isinstance(inner, dict) else inner
            todo.extend((child, depth + 1) for child in children)
