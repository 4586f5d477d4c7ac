"""Tokenizers of the SentencePiece kind (BPE over characters with byte fallback: Gemma, Mistral, Phi-3, Llama 2) as llama.cpp's vocabulary.

llama.cpp merges the neighbours whose merged token has the highest score, the Hugging Face tokenizer those whose merge is first in its list. The score
of a token is therefore minus the index of the first merge that makes it. Spaces become U+2581 in both; whether one is put in front of a text is a key
of the file.

One difference remains: a `Metaspace` step puts no second space in front of a text that begins with one (and, with `first`, none behind a
special token), llama.cpp does. A server splits such texts differently; the harness itself passes token ids.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from gguf import TokenType

SPACE = "\u2581"
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
UNMERGED = -1e6
"""Score of a token that no merge makes."""


def is_sentencepiece(tokenizer: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is of this kind."""
    model = tokenizer["model"]
    return model.get("type", "BPE") == "BPE" and bool(model.get("byte_fallback"))


def space_in_front(tokenizer: dict[str, Any]) -> bool | None:
    """Whether a space is put in front of a text; None: its steps are not known to be llama.cpp's."""
    normalizer, pre = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    if (
        not steps
        and pre
        and pre.get("type") == "Metaspace"
        and pre.get("replacement") == SPACE
        and not pre.get("split")
    ):
        return {"always": True, "first": True, "never": False}.get(pre.get("prepend_scheme", "always"))
    # Gemma splits at spaces, none of which is left by then.
    idle = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    if pre is not None and pre != idle:
        return None
    if steps == [REPLACE]:
        return False
    return True if steps == [{"type": "Prepend", "prepend": SPACE}, REPLACE] else None


def scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Of each token, by the first merge that makes it."""
    first: dict[str, int] = {}
    for place, merge in enumerate(merges):
        first.setdefault(merge.replace(" ", ""), place)
    return [float(-first[token]) if token in first else UNMERGED for token in tokens]


def token_type(text: str, control: Collection[str], added: Collection[str], unknown: str | None) -> int:
    """llama.cpp's type of a token."""
    if text == unknown:
        return int(TokenType.UNKNOWN)
    if text in control:
        return int(TokenType.CONTROL)
    if unknown is not None and BYTE.fullmatch(text):
        return int(TokenType.BYTE)
    return int(TokenType.USER_DEFINED if text in added else TokenType.NORMAL)
