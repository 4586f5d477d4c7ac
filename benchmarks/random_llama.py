"""Random weights of the Llama-3 8B shape, made on the GPU in seconds, to measure speed and memory without real weights.

    python benchmarks/random_llama.py OUT [--layers 32]

The tokenizer is the embedded model's, whose 2,048 ids are among the model's 128,256.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

EMBEDDED = Path(__file__).parent.parent / "data" / "tiny-llama3"


def make(out: Path, layers: int) -> None:
    """Writes the model and the tokenizer to `out`, in bf16 shards."""
    ids = json.loads((EMBEDDED / "config.json").read_text())
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_theta=500_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=ids["bos_token_id"],
        eos_token_id=ids["eos_token_id"],
        pad_token_id=ids["pad_token_id"],
        dtype="bfloat16",
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device=device)
    # Rotary tables are buffers that no weight file holds; loading recomputes them.
    for name, parameter in model.named_parameters():
        torch.nn.init.ones_(parameter) if "norm" in name else torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(out, max_shard_size="4GB")
    for file in EMBEDDED.glob("tokenizer*"):
        shutil.copy(file, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    options = parser.parse_args()
    began = time.monotonic()
    make(options.out, options.layers)
    print(
        f"{options.out}: {sum(f.stat().st_size for f in options.out.iterdir()) / 1e9:.1f} GB in {time.monotonic() - began:.0f} s"
    )
