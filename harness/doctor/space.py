"""The memory and disk that the config needs (`harness.doctor.estimate`), compared with what is free."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from harness.config import Config
from harness.doctor import Finding, estimate
from harness.errors import DeviceError
from harness.training.plan import GIB, Shape


def memory(config: Config, shape: Shape, lengths: list[int], device: str, free: int | None) -> list[Finding]:
    """Device memory for training and answering, and the machine's for the stage that takes most."""
    findings = []
    if free is not None and lengths:
        try:
            plan = estimate.training_plan(shape, config.train, lengths, free)
            kept = "computed again" if plan.checkpointing else "kept"
            value = f"about {plan.peak_bytes / GIB:.1f} GiB for {plan.tokens} tokens at once, activations {kept}; {free / GIB:.1f} free on the device"
            findings.append(Finding("ok", "training memory", value))
        except DeviceError as error:
            findings.append(Finding("fail", "training memory", error.problem, error.hint))
        one, full = estimate.answering(shape, config, lengths)
        value = f"{one / GIB:.1f} GiB for one question at a time, {full / GIB:.1f} for full batches; {free / GIB:.1f} free on the device"
        if one > free:
            hint = "leave base and merged_16bit out of predict.variants, or use a larger GPU"
            findings.append(Finding("fail", "answering memory", value, hint))
        elif full > free:
            findings.append(
                Finding("warn", "answering memory", f"{value}: batches will be halved", "lower predict.batch_tokens")
            )
        else:
            findings.append(Finding("ok", "answering memory", value))
    need = estimate.host_memory(shape, config, device, lengths)
    available = memory_available()
    value = f"{need.what} takes about {need.size_bytes / GIB:.1f} GiB of memory; {available / GIB:.1f} are available"
    if need.size_bytes > available:
        hint = "free some memory, or use a smaller model" + ("" if device == "cuda" else " or a GPU")
        return [*findings, Finding("fail", "memory", value, hint)]
    return [*findings, Finding("ok", "memory", value)]


def memory_available() -> int:
    """Bytes this process may still take: the machine's, or what its control group leaves (containers)."""
    available = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())  # "max" where there is none
        return min(available, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        return available


def disk(config: Config, shape: Shape, folder: Path, *, downloaded: bool) -> list[Finding]:
    """Space for what the run writes and, on the same disk or another, for the base if it is still to be downloaded."""
    disks: dict[int, tuple[Path, list[estimate.Need]]] = {}
    for need in estimate.disk(shape, config, downloaded=downloaded):
        place = folder if need.what == "base" else Path("runs").absolute()
        while not place.exists():
            place = place.parent
        disks.setdefault(place.stat().st_dev, (place, []))[1].append(need)
    findings = []
    for place, needs in disks.values():
        total, free = sum(need.size_bytes for need in needs), shutil.disk_usage(place).free
        parts = ", ".join(f"{need.what} {size_text(need.size_bytes)}" for need in needs)
        value = f"takes at most {size_text(total)} ({parts}); {size_text(free)} are free"
        enough = total <= free
        findings.append(
            Finding(
                "ok" if enough else "fail",
                "disk",
                value,
                "" if enough else "free some space, or name fewer export.formats",
            )
        )
    return findings


def size_text(size_bytes: int) -> str:
    """As disks are measured."""
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:,.1f} MB"
