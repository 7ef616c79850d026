"""The aarch64 tiers, executed: the batteries of the host's tiers once more under an emulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import emulator
import pytest
import test_elementwise
import test_matmul
import test_pool

from mpq_compile.kernels.tier import TIERS

pytestmark = pytest.mark.skipif(bool(emulator.missing_tool()), reason=str(emulator.missing_tool()))
NEON = TIERS["neon"]


def batteries(*modules: ModuleType) -> Iterator[FunctionType]:
    """Yield the tests of modules that run on every tier."""
    for module in modules:
        for name, test in vars(module).items():
            if name.startswith("test_") and _tier_mark(test):
                yield test


def _tier_mark(test: Any) -> list[pytest.Mark]:
    return [mark for mark in getattr(test, "pytestmark", []) if mark.args[:1] == ("tier",)]


def for_tiers(test: FunctionType, *names: str) -> Callable[..., None]:
    """Return a test of the host's tiers as the same test of the tiers ``names``."""
    copy = FunctionType(test.__code__, test.__globals__, test.__name__, test.__defaults__)
    marks = _tier_mark(test)
    copy.pytestmark = [mark for mark in test.pytestmark if mark not in marks]
    tiers = [TIERS[name] for name in names]
    return pytest.mark.parametrize("tier", tiers, ids=names)(copy)


for _test in batteries(test_matmul, test_elementwise, test_pool):
    globals()[_test.__name__] = for_tiers(_test, "neon")
