"""Finds loops that run one element at a time on one thread: what no schedule reached."""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import IRModule, tirx
from tvm.tirx import PrimFunc

from mpq_compile.kernels.access import constant

_PLAIN = (tirx.ForKind.SERIAL, tirx.ForKind.UNROLLED)


def unscheduled(mod: IRModule, min_elements: int) -> list[str]:
    """Return the functions that run at least ``min_elements`` iterations scalar and serial.

    Counted are the iterations of an innermost loop, those of the loops around it included, where
    none of these is parallel or a vector and the body reads or writes none. A loop whose extent
    is known at run time only counts once.
    """
    return [
        name.name_hint
        for name, func in mod.functions.items()
        if isinstance(func, PrimFunc) and plain_iterations(func) >= min_elements
    ]


def plain_iterations(func: PrimFunc) -> int:
    """Return the most iterations of a plain innermost loop; 0 where there is none."""
    return max(_loops_below(func.body, 1), default=0)


def _loops_below(body: Any, entered: int) -> list[int]:
    """Return the plain iterations of each outermost loop of a body entered so many times."""
    counts: list[int] = []

    def visit(loop: tirx.For) -> Any:
        counts.append(_plain_iterations(loop, entered))
        return tvm_ffi.WalkResult.SKIP

    tvm_ffi.structural_walk(body, (tirx.For, visit), order="pre")
    return counts


def _plain_iterations(loop: tirx.For, entered: int) -> int:
    if loop.kind not in _PLAIN:
        return 0
    iterations = entered * (_most(loop.extent) or 1)
    inner = _loops_below(loop.body, iterations)
    if inner:
        return max(inner)
    return 0 if _has_vectors(loop) else iterations


def _most(extent: Any) -> int | None:
    """Return the largest value of an extent, where a constant bounds it."""
    if not isinstance(extent, tirx.Min):
        return constant(extent)
    bounds = [bound for side in (extent.a, extent.b) if (bound := _most(side)) is not None]
    return min(bounds, default=None)


def _has_vectors(body: Any) -> bool:
    """Tell whether anything is loaded or stored through a ramp: our kernels write vectors so."""
    found: list[Any] = []
    tvm_ffi.structural_walk(body, (tirx.Ramp, found.append))
    return bool(found)
