"""Calls of kernels in tests: on this CPU where it executes the tier, else emulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from emulator import CPUS, emulate

from mpq_compile.kernels.tier import Tier, host_tiers

THREADS = 2


def call(
    function: Any,
    tier: Tier,
    arguments: Sequence[np.ndarray],
    result: np.ndarray,
    target: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Compile ``function`` for a tier, or for ``target`` on this CPU; return what it writes.

    Args:
        arguments: Flat arrays, without the result.
        result: Flat array of the result's size and dtype: what it holds before the call.
    """
    if target is None and tier.name in CPUS and tier not in host_tiers():
        return emulate(function, tier, arguments, result)
    spec = dict(target or tier.target(THREADS))
    program = tvm.compile(function, target=tvm.target.Target(spec))
    out = tvm.runtime.tensor(result)
    program["main"](*[tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arguments], out)
    return out.numpy()
