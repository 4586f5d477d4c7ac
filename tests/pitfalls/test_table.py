"""Every fault of the table has its test, and every test is in the table."""

from __future__ import annotations

import re
from types import FunctionType

from tests import pitfalls
from tests.pitfalls import test_answering, test_numbers, test_training


def test_every_fault_is_in_the_table() -> None:
    table = re.findall(r"^    (\w+)  ", pitfalls.__doc__ or "", re.MULTILINE)
    modules = (test_answering, test_training, test_numbers)
    tests = [
        name
        for module in modules
        for name, value in vars(module).items()
        if name.startswith("test_") and type(value) is FunctionType
    ]
    assert sorted(tests) == sorted(f"test_{name}" for name in table)
