"""Models that are not converted here, through a llama.cpp checkout: its `convert_hf_to_gguf.py` and `llama-quantize`."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from harness.errors import ConfigError, ModelError

log = logging.getLogger(__name__)

CONVERTER = "convert_hf_to_gguf.py"
QUANTIZER = ("build/bin/llama-quantize", "build/bin/Release/llama-quantize.exe", "llama-quantize")
DIRECT = ("f32", "f16", "q8_0")
"""Types that the converter writes itself; the others are quantised from its 16-bit file."""


def convert(
    checkout: Path,
    model_folder: Path,
    out: Path,
    type: str,
    *,
    threads: int,
) -> None:
    """Writes `out` with the programs of a llama.cpp checkout.

    Raises:
        ConfigError: the folder is not a checkout, or llama-quantize is not built.
        ModelError: a program failed, with the last line of its output.
    """
    script = checkout / CONVERTER
    if not script.is_file():
        raise ConfigError(f"export.llama_cpp: {checkout} has no {CONVERTER}", "name the folder of a llama.cpp checkout")
    converter = [sys.executable, str(script), str(model_folder)]
    if type in DIRECT:
        _run([*converter, "--outfile", str(out), "--outtype", type], model_folder)
        return
    program = next((path for name in QUANTIZER if (path := checkout / name).is_file()), None)
    if program is None:
        raise ConfigError(
            f"export.llama_cpp: {checkout} has no {QUANTIZER[0]}",
            "build it: cmake -B build && cmake --build build -t llama-quantize",
        )
    whole = out.with_name("16bit.gguf")
    try:
        _run([*converter, "--outfile", str(whole), "--outtype", "auto"], model_folder)
        _run([str(program), str(whole), str(out), type.upper(), str(threads)], model_folder)
    finally:
        whole.unlink(missing_ok=True)


def _run(command: list[str], model_folder: Path) -> None:
    name = Path(command[1] if command[0] == sys.executable else command[0]).name
    log.info(f"running {name}")
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise ConfigError(
            f"export.llama_cpp: {name} cannot be run ({error.strerror})", "build the checkout on this machine"
        ) from None
    if done.returncode:
        last = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "it said nothing")
        raise ModelError(f"{name} failed: {last}", "look whether the checkout supports this model", file=model_folder)
