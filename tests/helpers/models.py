"""Small random models for tests: the real architecture and file formats, no download, a second to make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LLAMA3_REGEX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
VOCABULARY = 512
BOS_ID, EOS_ID = VOCABULARY - 2, VOCABULARY - 1

# Several scripts, so that hard strings meet merges and not only bytes; more than the merges can hold, so that some tokens end inside a
# character.
CORPUS = [
    "Article 21 protects life and personal liberty. No person shall be deprived of his life except by law.",
    "The President of India is the head of the Union; the Governor is the head of a State.",
    "Parliament may by law provide for the salaries, allowances and pensions of its Members under Article 106.",
    "What does Article 14 deal with? Equality before the law and the equal protection of the laws.",
    "भारत का संविधान भारत का सर्वोच्च विधान है। अनुच्छेद २१ जीवन का अधिकार देता है।",
    "Über naïve façades, it's clear they'll say: 'Don't!' -- 3.14159, 42, 1950-01-26.\r\n\tIndented\n\n\nlines",
    "宪法是国家的根本法。日本国憲法 대한민국 헌법 Конституция Индии",
]


def save_tokenizer(folder: Path, *, size: int = VOCABULARY, regex: str = LLAMA3_REGEX) -> Any:
    """Trains a byte-level BPE tokenizer of `size` tokens with Llama-3's pre-tokenizer, saves and returns it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(regex), behavior="isolated", invert=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(BOS, special=True, normalized=False), AddedToken(EOS, special=True, normalized=False)]
    )
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]),
        ]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False
    )
    fast.save_pretrained(folder)
    return fast


def save_model(
    folder: Path, *, steps: int = 0, shard: str = "5GB", dtype: str = "bfloat16", vocabulary: int = 0, **settings: Any
) -> Path:
    """Saves a small Llama-3 model (GQA, tied embeddings) with its tokenizer into `folder` and returns it.

    Args:
        steps: of training on CORPUS; 40 learn it by heart in a few seconds. With 0 the weights are random, and near-ties make the most
            probable token a coin toss.
        shard: the largest weights file.
        vocabulary: rows of the embedding; 0: as many as the tokenizer has tokens.
        settings: override those of `LlamaConfig` below.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = save_tokenizer(folder)
    values: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **settings,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary or len(tokenizer), **values))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    _train(model, tokenizer, steps)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    return folder


def _train(model: Any, tokenizer: Any, steps: int, rate: float = 5e-3) -> None:
    """Teaches the model to continue each sentence of CORPUS and to end after it."""
    import torch

    ids = [
        [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for text in CORPUS
    ]
    length = max(map(len, ids))
    inputs = torch.tensor([row + [tokenizer.eos_token_id] * (length - len(row)) for row in ids])
    labels = torch.tensor([row + [-100] * (length - len(row)) for row in ids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10) * (1 - step / steps)
        optimizer.zero_grad()
        model(inputs, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def edit_json(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; None removes one. A manifest loses its checksum, as a handwritten one has none."""
    values = {**json.loads(path.read_text()), "checksum": None, **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
