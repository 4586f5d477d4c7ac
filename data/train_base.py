"""Trains the embedded base model, data/tiny-llama3/, from the prose of prose.py (`make base`; a GPU, some minutes).

A 5M-parameter Llama-3: hidden 256, 6 layers, 8 heads, 4 KV heads, intermediate 768, byte-level BPE of 2,048 tokens with Llama-3's
pre-tokenizer, tied embeddings. It reads prose about every article and never a question.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from array import array
from pathlib import Path

import torch
from prose import corpus
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY, CONTEXT, SEED = 2048, 512, 1950
CARD = Path(__file__).parent / "tiny-llama3" / "README.md"
BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE with Llama-3's pre-tokenizer; the three special tokens stand last, as in Llama-3."""
    special = [BOS, EOS, PAD]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        documents,
        trainers.BpeTrainer(vocab_size=VOCABULARY - len(special), initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.add_special_tokens(special)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def blocks(tokenizer: PreTrainedTokenizerFast, passes: int, length: int) -> torch.Tensor:
    """The prose of `passes` passes as one shuffled (n, length) tensor of token ids, documents between BOS and EOS."""
    ids = array("h")  # a vocabulary of 2,048 fits into 16 bits
    known: dict[str, array] = {}
    for seed in range(passes):
        documents = corpus(seed)
        new = list(dict.fromkeys(d for d in documents if d not in known))
        if new:
            for document, encoded in zip(new, tokenizer(new, add_special_tokens=False)["input_ids"], strict=True):
                known[document] = array("h", [tokenizer.bos_token_id, *encoded, tokenizer.eos_token_id])
        for document in documents:
            ids += known[document]
    whole = torch.frombuffer(ids, dtype=torch.int16)[: len(ids) // length * length]
    return whole.view(-1, length).long()


def train(model: LlamaForCausalLM, data: torch.Tensor, steps: int, batch: int, rate: float, device: str) -> list[dict]:
    """AdamW with warm-up and cosine decay, bf16 autocast over f32 weights. Returns the log."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=rate, betas=(0.9, 0.95)
    )
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=100)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - 100, eta_min=rate / 50)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [100])
    data, generator, log, began = data.to(device), torch.Generator().manual_seed(SEED), [], time.time()
    forward = torch.compile(model) if device == "cuda" else model
    order = torch.empty(0, dtype=torch.long)
    for step in range(1, steps + 1):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(len(data), generator=generator)])
        rows, order = data[order[:batch].to(device)], order[batch:]
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = forward(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 250 == 0 or step == 1:
            log.append({"step": step, "loss": round(loss.item(), 4), "seconds": round(time.time() - began, 1)})
            print(json.dumps(log[-1]), flush=True)
    return log


def card(text: str, facts: dict) -> str:
    """The model's card with the figures of this training, out of the log."""
    last, log = facts["log"][-1], facts["log"]
    early = next((entry for entry in log if entry["step"] >= 1000), last)
    batch = facts["tokens_per_step"] // CONTEXT
    lines = {
        "training text": f"`data/prose.py` over `data/facts/`: {facts['passes']} renderings of {facts['sentences']:,} sentences, "
        "each a document of its own; no question among them",
        "training": f"{facts['steps']:,} steps of {batch} x {CONTEXT} tokens, AdamW, {facts['rate']:.1e} with cosine decay, weight decay 0.1, "
        f"seed {facts['seed']}; {last['seconds']:.0f} s on one {facts['device']}",
        "loss": f"{early['loss']:.2f} nats a token after {early['step']:,} steps, {last['loss']:.2f} after {last['step']:,} "
        "(`training_log.json` has the curve)",
    }
    for name, words in lines.items():
        text = re.sub(rf"^\| {name} \|.*\|$", f"| {name} | {words} |", text, flags=re.MULTILINE)
    return text


def main() -> None:
    """Trains, saves, and writes the log and the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny-llama3")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--passes", type=int, default=120, help="distinct renderings of the whole Constitution")
    options = parser.parse_args()
    random.seed(SEED)
    torch.manual_seed(SEED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = train_tokenizer([d for seed in range(8) for d in corpus(seed)])
    data = blocks(tokenizer, options.passes, CONTEXT)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        rope_theta=10_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).to(device)
    log = train(model, data, options.steps, options.batch, options.rate, device)
    model = model.to(torch.bfloat16).cpu().eval()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    facts = {
        "parameters": model.num_parameters(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "seed": SEED,
        "steps": options.steps,
        "rate": options.rate,
        "tokens_per_step": options.batch * CONTEXT,
        "distinct_tokens": data.numel(),
        "passes": options.passes,
        "sentences": len(corpus(0)),
        "log": log,
    }
    (options.out / "training_log.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (options.out / "README.md").write_text(card(CARD.read_text(encoding="utf-8"), facts), encoding="utf-8")


if __name__ == "__main__":
    main()
