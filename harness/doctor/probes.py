"""Tries what can crash, hang or be missing, each in a child process: `python -m harness.doctor.probes NAME DEVICE` prints a JSON object a line.

What was printed before a crash counts, so that a broken bitsandbytes does not hide the GPU.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import PROJECT

SECONDS = 120
"""Seconds after which a probe counts as hanging: the slowest, importing Unsloth, takes 8 s on two cores, and more on a cold disk."""
EMBEDDED = PROJECT / "data" / "tiny-llama3"


@dataclass(frozen=True)
class Probe:
    """What a child process reported."""

    facts: dict[str, Any]
    problem: str = ""
    """Why it ended early, in one line; empty if it did not."""


def probe(name: str, device: str, *more: str) -> Probe:
    """Runs a probe in a child process, with what it needs to know; never raises, whatever happens there."""
    with tempfile.TemporaryDirectory(prefix="harness-doctor-") as scratch:
        # Unsloth writes a folder of compiled code on import.
        environment = {**os.environ, "UNSLOTH_COMPILE_LOCATION": scratch}
        command = [sys.executable, "-m", "harness.doctor.probes", name, device, *more]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", env=environment, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return Probe({}, f"does not end within {SECONDS} s")
    facts: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith('{"harness": '):
            facts |= json.loads(line)["harness"]
    if done.returncode == 0:
        return Probe(facts)
    if done.returncode < 0:
        return Probe(facts, f"crashes ({signal.Signals(-done.returncode).name})")
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return Probe(facts, " ".join(lines[-1].split())[:300] if lines else f"ends with exit code {done.returncode}")


# ---------------------------------------------------------------------------------------------------- in the children


def _report(**facts: Any) -> None:
    print(json.dumps({"harness": facts}), flush=True)


def _torch(device: str) -> None:
    """The CUDA devices as torch sees them, then a forward and a backward through an NF4 layer."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import torch

        available = torch.cuda.is_available()
    _report(
        torch=torch.__version__,
        cuda_build=torch.version.cuda,
        warning=" ".join(str(w.message) for w in caught if "CUDA" in str(w.message)),
    )
    devices = []
    for i in range(torch.cuda.device_count() if available else 0):
        free, total = torch.cuda.mem_get_info(i)
        devices.append(
            {
                "name": torch.cuda.get_device_name(i),
                "capability": torch.cuda.get_device_capability(i),
                "free_bytes": free,
                "total_bytes": total,
            }
        )
    _report(devices=devices, bf16=available and torch.cuda.is_bf16_supported(including_emulation=False))
    device = "cuda" if available and device != "cpu" else "cpu"
    _report(nf4_device=device, nf4=_nf4(device))


def _nf4(device: str) -> str:
    """What is wrong with bitsandbytes' NF4 on a device; empty if its forward and backward pass give the right numbers."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Linear4bit

    from harness.models import devices

    torch.manual_seed(0)
    dtype = devices.compute_dtype(device)
    weight = torch.randn(128, 256)
    layer: Any = Linear4bit(256, 128, bias=False, compute_dtype=dtype, quant_type="nf4", compress_statistics=True)
    layer.load_state_dict({"weight": weight})
    layer = layer.to(device)
    layer.support_avx512bf16_for_cpu = False  # as in training: see harness.training.model.keep_gradients
    x = torch.randn(8, 256, device=device, dtype=dtype, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    if x.grad is None:
        return "gives no gradient"
    used = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()

    def differs(found: torch.Tensor, expected: torch.Tensor) -> bool:
        return not bool((found - expected).norm() <= 0.03 * expected.norm())  # the precision of bf16, summed

    # NF4 itself is off by a tenth: the mean error of a normal variable between its 16 levels.
    if not bool((used.cpu() - weight).norm() < 0.2 * weight.norm()) or differs(y.float(), x.float() @ used.T):
        return "computes wrong numbers in the forward pass"
    return "computes wrong numbers in the backward pass" if differs(x.grad.float(), used.sum(0).expand(8, -1)) else ""


def _unsloth(device: str) -> None:
    import unsloth  # pyright: ignore[reportMissingImports]

    _report(version=unsloth.__version__)


def _llamacpp(device: str) -> None:
    """Writes the embedded model as GGUF and has llama.cpp answer from it."""
    from harness.backends import Execution, Generation, Source
    from harness.formats import quantize

    xllamacpp = quantize.extension()
    kinds = [str(d["type"]).rpartition("_")[2] for d in xllamacpp.get_device_info()]
    _report(version=xllamacpp.__version__, gpu="GPU" in kinds, answered=0)
    if not EMBEDDED.is_dir():
        return
    from harness.backends.llamacpp import LlamaCppBackend
    from harness.formats import gguf

    with tempfile.TemporaryDirectory(prefix="harness-doctor-") as scratch:
        file = Path(scratch) / "model.gguf"
        gguf.write(EMBEDDED, file, "q4_k_m")
        backend = LlamaCppBackend(Source(file), Generation(4, (), 0), Execution(device=device, slots=1))
        answer = backend.answer([[2045, 65, 66]])[0]
        _report(answered=len(answer.answer_ids))
        backend.close()
    if answer.error:
        raise SystemExit(answer.error)


def _answering(device: str) -> None:
    """Times llama.cpp on a model's shape."""
    from harness.doctor import answering_time

    _report(**answering_time.measure_all(sys.argv[3]))


PROBES: dict[str, Callable[[str], None]] = {
    "torch": _torch,
    "unsloth": _unsloth,
    "llamacpp": _llamacpp,
    "answering": _answering,
}

if __name__ == "__main__":
    from harness.models.base_model import quiet_libraries

    quiet_libraries()
    PROBES[sys.argv[1]](sys.argv[2])
