"""How long training will take on this machine, from the model's size and the card's speed.

A step takes 4 operations for each weight and token (a forward pass, and the gradients of the activations; those of frozen weights are not
computed), and never less than the time to start its kernels. Both were fitted on measured steps: Llama-3 8B on an H200 (870 tokens in 0.076 s,
docs/speed.md), SmolLM2-135M on an H100 (0.076 s) and on two CPU cores (8 rows in 5 to 10 s). Other cards scale by their listed speed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from harness.config import Config
from harness.doctor.answering_time import in_words
from harness.doctor.finding import Finding
from harness.questions.asking import text_of
from harness.questions.rows import Row
from harness.training.plan import Shape

WHAT = "training time"
PEAKS = {
    "B200": 2250, "H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L40": 181, "A40": 150, "A10": 125, "L4": 121, "V100": 125, "T4": 65,
    "RTX 5090": 210, "RTX 4090": 165, "RTX 4080": 97, "RTX 3090": 71, "RTX A6000": 155,
}  # fmt: off
"""10^12 operations a second on dense 16-bit matrices, as the makers list them; the first that occurs in a card's name counts."""
USED = 0.35
"""Share of the listed speed that a step reaches."""
CORE = 3.1e10
"""Operations a second of a CPU core."""
LEAST_STEP = {"cuda": 0.075, "cpu": 0.5}
"""Seconds."""
CHARACTERS_PER_TOKEN = 4.0
"""Of English text, where no tokenizer is here yet."""


def finding(
    config: Config, shape: Shape | None, rows: Sequence[Row], device: str, cards: Sequence[dict[str, Any]]
) -> Finding | None:
    """About how long `train` takes; None where nothing is trained, or the card's speed is not known."""
    settings, data = config.train, config.data
    if shape is None or not rows or data.training_file is None:
        return None
    speed = _speed(device, cards)
    if speed is None:
        name = str(cards[0]["name"]) if cards else device
        return Finding("ok", WHAT, f"not estimated: the speed of {name} is not listed")
    count = len(rows) * (
        1.0 if data.test else 1 - sum(_share(size, len(rows)) for size in (data.heldout, data.dev_size))
    )
    steps = settings.max_steps or max(1, round(settings.epochs * count / settings.batch_size))
    characters = sum(len(text_of(row)) + len(row.answer) for row in rows) / len(rows) + len(config.prompt.template)
    tokens = settings.batch_size * min(characters / CHARACTERS_PER_TOKEN, settings.max_length)
    weights = shape.projections + shape.vocabulary * shape.hidden
    step = max(4 * weights * tokens / speed, LEAST_STEP[device])
    value = f"about {in_words(steps * step)}, within a factor of two: {steps:,} steps of some {tokens:,.0f} tokens, {step:.2g} s each"
    return Finding("ok", WHAT, value)


def _share(size: float | int, rows: int) -> float:
    return float(size) if size < 1 else size / rows


def _speed(device: str, cards: Sequence[dict[str, Any]]) -> float | None:
    if device == "cpu":
        return CORE * (os.cpu_count() or 1)
    names = [str(card["name"]) for card in cards]
    peaks = [next((peak for key, peak in PEAKS.items() if key in name), None) for name in names]
    known = [peak for peak in peaks if peak]
    return USED * min(known) * 1e12 if known and len(known) == len(peaks) else None
