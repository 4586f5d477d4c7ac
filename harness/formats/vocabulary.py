"""A Hugging Face tokenizer as llama.cpp's vocabulary: byte-level BPE with a pre-tokenizer that llama.cpp has too, or SentencePiece's kind.

A file with a wrong `tokenizer.ggml.pre` loads and answers, and the fault shows only in text that is split differently. So a tokenizer is accepted
only if its pre-tokenizer is one of PRE_TOKENIZERS, rule by rule; anything else is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from harness.errors import ModelError
from harness.formats import sentencepiece_vocabulary as sentencepiece
from harness.formats.safetensors_reader import read_json

# Keys of the special tokens, in the order in which llama.cpp ends generation on them.
END_KEYS = ("eos", "eot", "eom")

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

PRE_TOKENIZERS: dict[tuple[str, ...], dict[bool, str]] = {
    (f"split {LLAMA3}", "bytes"): {True: "llama-bpe", False: "smaug-bpe"},
    (f"split {QWEN2}", "bytes"): {False: "qwen2"},
    ("gpt2",): {False: "gpt-2"},
    ("digits", "gpt2"): {False: "smollm"},
}
"""Steps of the pre-tokenizer -> BPE's `ignore_merges` -> the name of llama.cpp (src/llama-vocab.cpp: its regular expressions, and which names
look a whole word up before merging)."""


class UnsupportedTokenizer(ModelError):
    """A tokenizer that only llama.cpp's own converter can write."""


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says about its tokenizer."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int]
    """`bos`, `eos`, `eot`, `eom`, `unk`, `pad` -> token id."""
    add_bos: bool
    add_eos: bool
    scores: list[float] | None = None
    """Of a SentencePiece vocabulary."""
    space_in_front: bool = False
    """Of a SentencePiece vocabulary: a text gets one."""

    def add_to(self, writer: GGUFWriter) -> None:
        """Writes the keys `tokenizer.ggml.*`."""
        writer.add_tokenizer_model("gpt2" if self.scores is None else "llama")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is None:
            writer.add_token_merges(self.merges)
        else:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.space_in_front)
        for name, token in self.special.items():
            getattr(writer, f"add_{name}_token_id")(token)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)


def load(folder: Path, config: dict[str, Any]) -> Vocabulary:
    """The vocabulary of a model folder, padded to the model's `vocab_size`.

    Raises:
        UnsupportedTokenizer: not a BPE tokenizer that llama.cpp splits in the same way.
        ModelError: no tokenizer, no end token, or more tokens than the model has embeddings.
    """
    file = folder / "tokenizer.json"
    if not file.is_file() and (folder / "tokenizer.model").is_file():
        raise UnsupportedTokenizer("its tokenizer is a SentencePiece model, not byte-level BPE", file=folder)
    tokenizer = read_json(file, "tokenizer")
    try:
        model, added = tokenizer["model"], tokenizer["added_tokens"]
        pieces = sentencepiece.is_sentencepiece(tokenizer)
        in_front = _space_in_front(tokenizer, file) if pieces else False
        pre = "default" if pieces else _pre(tokenizer, file)
        ids: dict[str, int] = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    except (KeyError, TypeError, AttributeError):
        raise ModelError("is not a tokenizer file", "save the tokenizer again", file=file) from None
    if odd := next(
        (token["content"] for token in added if token.get("lstrip") or token.get("rstrip") or token.get("single_word")),
        None,
    ):
        raise UnsupportedTokenizer(
            f"its token {odd!r} strips spaces or matches whole words only, which llama.cpp does not support", file=file
        )
    everything = {token["content"] for token in added}
    if not pieces and (stray := _not_bytes(model["vocab"], everything)):
        raise UnsupportedTokenizer(f"its token {stray!r} is not made of byte characters", file=file)
    rows = config["vocab_size"]
    highest = max(ids.values())
    if highest >= rows:
        raise ModelError(
            f"its tokenizer has {highest + 1} tokens and its embedding {rows} rows",
            "resize the embedding, or use the tokenizer of this model",
            file=folder,
        )
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [int(TokenType.UNUSED)] * rows
    control = {token["content"] for token in added if token.get("special")}
    for text, i in ids.items():
        tokens[i] = text
        types[i] = sentencepiece.token_type(text, control, everything, model.get("unk_token") if pieces else None)
    if len(set(tokens)) < rows:
        raise ModelError(
            "its tokenizer has two tokens of one id, or one named [PAD0]", "save the tokenizer again", file=file
        )
    special = _special(folder, config, ids)
    first, last = _template(tokenizer.get("post_processor"))
    return Vocabulary(
        pre,
        tokens,
        types,
        merges,
        special,
        _is(first, "bos", special, ids),
        _is(last, "eos", special, ids),
        sentencepiece.scores(tokens, merges) if pieces else None,
        in_front,
    )


def _space_in_front(tokenizer: dict[str, Any], file: Path) -> bool:
    found = sentencepiece.space_in_front(tokenizer)
    if found is None:
        raise UnsupportedTokenizer(
            "its SentencePiece tokenizer treats spaces in a way that is not known here", file=file
        )
    return found


def _pre(tokenizer: dict[str, Any], file: Path) -> str:
    """llama.cpp's name of the pre-tokenizer."""
    model = tokenizer["model"]
    if (
        model.get("type", "BPE") != "BPE"
        or model.get("byte_fallback")
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
    ):
        kind = "BPE with byte fallback (SentencePiece)" if model.get("byte_fallback") else model.get("type", "BPE")
        raise UnsupportedTokenizer(f"its tokenizer is {kind}, not byte-level BPE", file=file)
    # llama.cpp normalises nothing. Qwen's NFC changes only text that is not NFC already, which is rare; the harness itself passes
    # token ids.
    normalizer = tokenizer.get("normalizer")
    if normalizer is not None and normalizer != {"type": "NFC"}:
        raise UnsupportedTokenizer(
            f"its tokenizer normalises text ({tokenizer['normalizer'].get('type')}), which llama.cpp does not",
            file=file,
        )
    steps = tuple(_steps(tokenizer.get("pre_tokenizer") or {}))
    ignore_merges = bool(model.get("ignore_merges"))
    pre = PRE_TOKENIZERS.get(steps, {}).get(ignore_merges)
    if pre is None:
        raise UnsupportedTokenizer(
            f"its pre-tokenizer ({', '.join(steps) or 'none'}; ignore_merges {ignore_merges}) is not known here",
            file=file,
        )
    return pre


def _steps(node: dict[str, Any]) -> list[str]:
    """A pre-tokenizer's steps as words: `split REGEX`, `bytes`, `gpt2` (bytes after GPT-2's regular expression), `digits`."""
    match node.get("type"):
        case "Sequence":
            return [step for part in node["pretokenizers"] for step in _steps(part)]
        case "Split" if node.get("behavior") == "Isolated" and not node.get("invert") and "Regex" in node["pattern"]:
            return [f"split {node['pattern']['Regex']}"]
        case "ByteLevel" if not node.get("add_prefix_space"):
            return ["gpt2" if node.get("use_regex", True) else "bytes"]
        case "Digits" if node.get("individual_digits"):
            return ["digits"]
    return [f"unknown {node.get('type')}"]


def _not_bytes(vocab: dict[str, int], added: set[str]) -> str | None:
    """The first token with a character outside GPT-2's alphabet of 256 byte characters."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    alphabet = {chr(byte) for byte in printable} | {chr(0x100 + i) for i in range(256 - len(printable))}
    return next((token for token in vocab if token not in added and not alphabet.issuperset(token)), None)


def named_tokens(folder: Path, config: dict[str, Any], ids: dict[str, int], name: str) -> list[int]:
    """Ids of the special tokens of that name (`eos`, `bos`, ...): the tokenizer's, then those of generation_config.json and config.json."""
    files = [folder / "tokenizer_config.json", folder / "generation_config.json"]
    settings, generation = (read_json(file, file.stem) if file.is_file() else {} for file in files)
    entry = settings.get(f"{name}_token")
    text = entry.get("content") if isinstance(entry, dict) else entry
    found = [ids[text]] if text in ids else []
    for source in (generation, config):
        value = source.get(f"{name}_token_id")
        found += [
            i
            for i in (value if isinstance(value, list) else [value])
            if isinstance(i, int) and 0 <= i < config["vocab_size"]
        ]
    return list(dict.fromkeys(found))


def end_texts(folder: Path) -> tuple[str, ...]:
    """The texts of all tokens that end an answer, for a server's list of stops; GGUF itself has room for three of them."""
    tokenizer, config = read_json(folder / "tokenizer.json", "tokenizer"), read_json(folder / "config.json", "config")
    try:
        added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
        ids = {**tokenizer["model"]["vocab"], **added}
        texts = {i: text for text, i in ids.items()}
        return tuple(texts[i] for i in named_tokens(folder, config, ids, "eos") if i in texts)
    except (KeyError, TypeError, AttributeError):
        raise ModelError(
            "is not a tokenizer file", "save the tokenizer again", file=folder / "tokenizer.json"
        ) from None


def _special(folder: Path, config: dict[str, Any], ids: dict[str, int]) -> dict[str, int]:
    """Special tokens: those of the tokenizer, then those of generation_config.json and config.json."""

    def named(name: str) -> list[int]:
        return named_tokens(folder, config, ids, name)

    ends = named("eos")
    if not ends:
        raise ModelError("its tokenizer has no end token", "set eos_token in tokenizer_config.json", file=folder)
    special = dict(zip(END_KEYS, ends, strict=False))
    return {**{name: found[0] for name in ("bos", "unk", "pad") if (found := named(name))}, **special}


def _template(processor: dict[str, Any] | None) -> tuple[str | None, str | None]:
    """The special tokens that the post-processor puts before and after a text."""
    for node in (processor or {}).get("processors", [processor or {}]):
        if node.get("type") == "TemplateProcessing" and (single := node.get("single")):
            return single[0].get("SpecialToken", {}).get("id"), single[-1].get("SpecialToken", {}).get("id")
    return None, None


def _is(text: str | None, name: str, special: dict[str, int], ids: dict[str, int]) -> bool:
    return text is not None and name in special and ids.get(text) == special[name]
