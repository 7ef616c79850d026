"""A fixed workload inside every library: whether the cores are as usual, beside the network.

Every task multiplies and adds vectors that stay in registers, so that what it takes depends on
the clock, and on who else uses the vector units of its core, alone. On a shared machine two
virtual cores are at times two threads of one core: networks then take up to twice their time,
while work that waits for its own results (a hash) takes as long as ever.
"""

from __future__ import annotations

from tvm.ir import IRModule
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func
from tvm.target import Target
from tvm.tirx import PrimFunc

from mpq_compile.kernels.tier import Tier
from mpq_compile.lower.interface import REFERENCE, REFERENCE_CELLS

# Chains that do not wait for each other, enough of them to keep two pipelines of four steps busy,
# and not more than AVX2 has registers for.
_LANES = 16
_CHAINS = REFERENCE_CELLS // _LANES
# About a tenth of a millisecond.
_STEPS = 40_000


def with_reference(module: IRModule, tier: Tier, tasks: int) -> IRModule:
    """Return the module with the workload added, a function of float32 cells of every task."""
    return IRModule({**module.functions, REFERENCE: _function(tier, tasks)}, attrs=module.attrs)


def _function(tier: Tier, tasks: int) -> PrimFunc:
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name(REFERENCE)
        cells = T.arg("cells", T.buffer((tasks * REFERENCE_CELLS,), "float32"))
        with T.parallel(tasks) as task:
            chains = T.alloc_buffer((REFERENCE_CELLS,), "float32")
            half = T.broadcast(T.float32(0.5), _LANES)
            at = [T.ramp(chain * _LANES, 1, _LANES) for chain in range(_CHAINS)]
            own = [
                T.ramp(task * REFERENCE_CELLS + chain * _LANES, 1, _LANES)
                for chain in range(_CHAINS)
            ]
            for chain in range(_CHAINS):
                T.buffer_store(chains, cells[own[chain]], [at[chain]])
            with T.serial(_STEPS):
                for chain in range(_CHAINS):
                    T.buffer_store(chains, chains[at[chain]] * half + half, [at[chain]])
            for chain in range(_CHAINS):
                T.buffer_store(cells, chains[at[chain]], [own[chain]])
    function = builder.get().with_attr("target", Target(tier.target(tasks)))
    return function.with_attr({"global_symbol": REFERENCE, "tirx.noalias": True})
