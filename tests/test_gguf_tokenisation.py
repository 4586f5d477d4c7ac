"""GGUF files: llama.cpp splits text as the tokenizer does, and knows the special tokens."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, TokenType

from harness.formats import gguf
from tests.helpers.gguf_files import load
from tests.helpers.models import BOS, BOS_ID, EOS, EOS_ID, LLAMA3_REGEX, edit_json, save_model

HARD = [
    "",
    " ",
    "   leading and trailing   ",
    "tabs\tand\r\nCRLF\r\n\r\nlines\n\n\n",
    "I'LL don't WE'VE it's 'tis O'Neill's",
    "1 12 123 1234 12345 3.14159 1,000,000 २१ ४५६७ Ⅻ ½",
    "Article 21-A(1)(b); clause (2)—proviso… “quoted” § 3½%",
    "भारत का संविधान: अनुच्छेद २१-क, क्ष त्र ज्ञ श्र ऋ ॐ।",
    "Конституция 宪法 日本国憲法 대한민국 دستور Ελλάδα ไทย",
    "👩‍👩‍👧‍👦 🇮🇳 e\u0301 é ﬁ \u200d\u200b\ufeff \u202e rtl \u00a0nbsp\u3000ideographic",
    "nul \x00 and \x07 control \x7f \ud7ff \U0010ffff",
    f"{BOS}twice{EOS} and {BOS} {EOS}{EOS}",
    "<|begin_of_text <|end_of_text|",
    "x" * 300 + " " * 40 + "_" * 70,
]


def random_strings(count: int) -> list[str]:
    rng = random.Random(0)
    pools = [
        " \t\n\r",
        "abcdefXYZ'",
        "0123456789०१२",
        "कखगािी्ंः",
        "éüßñ漢字ひ한",
        '!?.,;:()[]{}-—…"“”|<>',
        "😀👍\u200d\ufe0f\u0301",
        "\x00\x01\x1f\x85\xa0\u2028",
    ]
    return ["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 40))) for _ in range(count)]


GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
QWEN2 = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {"Regex": LLAMA3_REGEX.replace("{1,3}", "")},
            "behavior": "Isolated",
            "invert": False,
        },
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    ],
}
SMOLLM = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, GPT2]}


@pytest.mark.parametrize(
    ("pre", "ignore_merges", "pre_tokenizer"),
    [
        ("llama-bpe", True, None),
        ("smaug-bpe", False, None),
        ("gpt-2", False, GPT2),
        ("qwen2", False, QWEN2),
        ("smollm", False, SMOLLM),
    ],
)
def test_llama_cpp_splits_text_as_the_tokenizer_does(
    tiny_model: Path, tmp_path: Path, pre: str, ignore_merges: bool, pre_tokenizer: dict[str, Any] | None
) -> None:
    from transformers import AutoTokenizer

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["ignore_merges"] = ignore_merges
    data["pre_tokenizer"] = pre_tokenizer or data["pre_tokenizer"]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    assert gguf.write(folder, tmp_path / "model.gguf", "q8_0")["pre"] == pre
    tokenizer, backend = AutoTokenizer.from_pretrained(folder), load(tmp_path / "model.gguf")
    wrong = [
        text for text in HARD + random_strings(300) if backend.model.tokenize(text) != tokenizer(text)["input_ids"]
    ]
    backend.close()
    assert not wrong


def test_a_wrong_pre_tokenizer_is_noticed(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    monkeypatch.setattr(gguf.vocabulary, "_pre", lambda tokenizer, file: "gpt-2")
    gguf.write(tiny_model, tmp_path / "model.gguf", "q8_0")
    tokenizer, backend = AutoTokenizer.from_pretrained(tiny_model), load(tmp_path / "model.gguf")
    assert any(backend.model.tokenize(text) != tokenizer(text)["input_ids"] for text in HARD)
    backend.close()


def test_exactly_one_bos_and_no_eos(tiny_model: Path, tmp_path: Path) -> None:
    gguf.write(tiny_model, tmp_path / "model.gguf", "q8_0")
    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert fields["tokenizer.ggml.add_eos_token"].contents() is False
    backend = load(tmp_path / "model.gguf")
    ids = backend.model.tokenize("Article 21")
    backend.close()
    assert ids[0] == BOS_ID
    assert ids.count(BOS_ID) == 1
    assert EOS_ID not in ids


def test_a_larger_embedding_is_padded_with_unused_tokens(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", vocabulary=560)
    facts = gguf.write(folder, tmp_path / "model.gguf", "q8_0")
    types = GGUFReader(tmp_path / "model.gguf").fields["tokenizer.ggml.token_type"].contents()
    assert facts["vocabulary"] == len(types) == 560
    assert set(types[512:]) == {int(TokenType.UNUSED)}
    assert types[510:512] == [int(TokenType.CONTROL)] * 2


def test_all_end_tokens_of_the_generation_config_end_generation(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    edit_json(folder / "generation_config.json", eos_token_id=[EOS_ID, 44, 45])
    assert gguf.write(folder, tmp_path / "model.gguf", "q8_0")["end_ids"] == [44, 45, EOS_ID]
