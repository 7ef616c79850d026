"""The aarch64 tiers, executed: the batteries of the host's tiers once more under an emulator."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import emulator
import matmul_cases as cases
import numpy as np
import pytest
import test_elementwise
import test_matmul
import test_pool
import test_random_sweep
import test_schedule
import torch
from tvm import tirx
from tvm.script import tirx as T

from mpq_compile.kernels.schedule import default_schedule
from mpq_compile.kernels.tier import TIERS

pytestmark = pytest.mark.skipif(bool(emulator.missing_tool()), reason=str(emulator.missing_tool()))

SLOW = pytest.mark.slow
NEON, MATRIX = "neon", "neon_i8mm_bf16"
# Where tiers run one kernel, one of them is enough outside of the longer sweep.
ON_BOTH = (test_matmul.test_integer_convolution_equals_the_oracle,)
ON_MATRIX = (
    test_matmul.test_bf16_convolution_is_close,
    test_matmul.test_linear,
    test_matmul.test_linear_over_bf16,
    test_matmul.test_linear_with_group_scales,
    test_matmul.test_formats_of_groups_narrower_than_a_vector,
)
IN_SWEEP_ONLY = (
    test_matmul.test_few_rows_weight_only,
    test_matmul.test_few_rows_with_group_scales,
    test_elementwise.test_multiply,
    test_elementwise.test_concat,
    test_elementwise.test_transpose_convert,
    test_elementwise.test_transpose_convert_in_parallel,
)


def batteries(*modules: ModuleType) -> Iterator[FunctionType]:
    """Yield the tests of modules that run on every tier of the host."""
    for module in modules:
        for name, test in vars(module).items():
            if name.startswith("test_") and _other_marks(test) != getattr(test, "pytestmark", []):
                yield test


def _other_marks(test: Any) -> list[pytest.Mark]:
    marks = getattr(test, "pytestmark", [])
    return [mark for mark in marks if mark.args[:1] != ("tier",)]


def on_aarch64(test: FunctionType) -> Any:
    """Return a test of the host's tiers as the same test of the aarch64 tiers."""
    copy: Any = FunctionType(test.__code__, test.__globals__, test.__name__, test.__defaults__)
    copy.pytestmark = _other_marks(test)
    tiers = [
        pytest.param(TIERS[name], id=name, marks=() if name in _quick(test) else SLOW)
        for name in emulator.CPUS
    ]
    return pytest.mark.parametrize("tier", tiers)(copy)


def _quick(test: FunctionType) -> tuple[str, ...]:
    """Return the tiers of a test outside of the longer sweep."""
    if test in IN_SWEEP_ONLY:
        return ()
    if test in ON_BOTH:
        return NEON, MATRIX
    return (MATRIX,) if test in ON_MATRIX else (NEON,)


for _test in batteries(test_matmul, test_elementwise, test_pool):
    globals()[_test.__name__] = on_aarch64(_test)


def scheduled(name: str) -> list[Any]:
    """Return a case of the float operators unless it is more than one function."""
    quick = name in ("softmax_odd", "gelu")
    return [] if name == "attention" else [pytest.param(name, marks=() if quick else SLOW)]


@pytest.mark.parametrize("name", sum(map(scheduled, test_schedule.CASES), []))
def test_scheduled_float_operators_equal_torch(name):
    function, shapes = test_schedule.CASES[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape) for shape in shapes]
    module = default_schedule(test_schedule.legalized(function, inputs), TIERS[NEON], 2)
    (kernel,) = (f for f in module.functions.values() if isinstance(f, tirx.PrimFunc))
    expected = function(*inputs).numpy()
    arrays = [x.numpy() for x in inputs]
    result = emulator.emulate(kernel, TIERS[NEON], arrays, np.zeros_like(expected))
    assert test_schedule.closeness(result, expected) <= 2e-6


@SLOW
@pytest.mark.parametrize("name", emulator.CPUS)
@pytest.mark.parametrize("seed", range(150))
def test_random_workloads(seed, name):
    workload = test_random_sweep.random_workload(np.random.default_rng(seed))
    cases.assert_matches(workload, TIERS[name], seed=seed)


@pytest.mark.parametrize("reads,writes", [(64, 0), (0, 1), (0, 64)])
def test_the_emulation_catches_a_step_past_the_end(reads, writes):
    @T.prim_func(s_tir=True)
    def main(
        x: T.Buffer((100,), "uint8"),  # type: ignore[valid-type]
        y: T.Buffer((100,), "uint8"),  # type: ignore[valid-type]
    ):
        for i in range(100):
            y[i + writes] = x[i + reads]

    x = np.arange(100, dtype=np.uint8)
    with pytest.raises(AssertionError, match="Segmentation fault|wrote past the end"):
        emulator.emulate(main, TIERS[NEON], [x], np.zeros_like(x))
