"""Random cases of matrix-multiply workloads: the kernel's answer held against the oracle's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from programs import THREADS, call

from mpq_compile.cost.exactness import float_tolerance, oracle
from mpq_compile.kernels import matmul
from mpq_compile.kernels.tier import Tier, host_tiers
from mpq_compile.kernels.workload import Workload
from mpq_compile.runtime.kernel_case import Case, as_values, case_arguments, inside, make_case

# For emulated instructions: their loops take LLVM seconds to optimize.
PLAIN_TARGET = {**host_tiers()[-1].target(THREADS), "opt-level": 0}
_DTYPES = {"u8": "uint8", "bf16": "uint16", "fp32": "float32"}


def computed(
    workload: Workload,
    tier: Tier,
    case: Case,
    generate: Callable[[Workload, Tier, int], Any] = matmul.generate,
    target: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Compile for the tier, or for ``target``, and run; the output as the oracle gives it."""
    function = generate(workload, tier, THREADS)
    result = np.full(workload.stored_size, 77, _DTYPES[workload.out])
    out = call(function, tier, case_arguments(workload, tier, case), result, target)
    zero = case.zero_points[2] if workload.out == "u8" else 0
    values, blank = inside(workload, as_values(out), zero)
    assert blank, workload.key
    return values


def assert_matches(workload: Workload, tier: Tier, seed: int = 0, **options: Any) -> None:
    """Integer compute must equal the oracle; float compute agrees within its tolerance."""
    case = make_case(workload, seed)
    got, want = computed(workload, tier, case, **options), oracle(workload, case)
    name = f"{tier.name} {workload.key}"
    if workload.compute == "int8":
        np.testing.assert_array_equal(got, want, err_msg=name)
        return
    tolerance = float_tolerance(workload, want)
    wide = got.astype(np.float64), want.astype(np.float64)
    np.testing.assert_allclose(*wide, rtol=0, atol=tolerance, err_msg=name)
