"""Table look-ups of u8 codes, one or a whole vector at a time."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.emit import load, over_elements, store
from mpq_compile.kernels.tier import Tier


def emit_lookup(x: Any, table: Any, o: Any, size: int, tier: Tier, threads: int) -> None:
    """Emit o[i] = table[x[i]] for ``size`` u8 codes."""

    def step(at: Any, lanes: int) -> None:
        store(o, at, lanes, table[T.cast(load(x, at, lanes), "int32")])

    over_elements(size, 1, threads, step)
