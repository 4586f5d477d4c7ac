"""The doctor on a CUDA machine: its description of the card agrees with torch, and NF4 works on it."""

from __future__ import annotations

import pytest
import torch

from harness.config import load
from harness.doctor import checks, probes
from harness.models import devices

pytestmark = pytest.mark.gpu


def test_the_card_is_described_and_nf4_works_on_it() -> None:
    probed = probes.probe("torch", "cuda")
    assert probed.problem == "" and probed.facts["nf4_device"] == "cuda" and probed.facts["nf4"] == ""
    driver, *cards = checks._device(load("llama3-8b"), probed, checks.driver_version())
    assert driver.status == "ok" and "unknown" not in driver.value
    assert len(cards) == torch.cuda.device_count() and torch.cuda.get_device_name(0) in cards[0].value
    assert checks._nf4(load("llama3-8b"), probed).status == "ok"


def test_the_dtype_is_the_cards_own() -> None:
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    assert devices.compute_dtype("cuda") is (torch.bfloat16 if native else torch.float16)
