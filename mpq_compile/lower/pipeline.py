"""From a Relax module with our kernels and embedded float operators to one that can be built."""

from __future__ import annotations

from tvm import IRModule, relax
from tvm.ir.transform import Sequential
from tvm.target import Target

from mpq_compile.kernels.schedule import default_schedule
from mpq_compile.kernels.tier import Tier


def lower_pipeline(mod: IRModule, tier: Tier, threads: int) -> IRModule:
    """Return ``mod`` legalized, fused and scheduled, ready for ``relax.build``.

    Kernels of ours (marked ``emit.KERNEL_ATTRS``) are opaque to fusion and stay untouched; what
    comes of the other operators gets the default schedule, after which it is opaque as well, so
    that the default pipeline of ``relax.build`` adds nothing.

    Args:
        mod: Has a public ``main``; other Relax functions are private and are inlined.
        tier: Instruction set to schedule for.
        threads: Threads that large loops are shared among.
    """
    passes = [
        # Functions of embedded operators become plain bindings of main.
        relax.transform.InlinePrivateFunctions(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.DeadCodeElimination(),
        # Sorting and scanning have no loops that a schedule could improve.
        relax.backend.DispatchSampling(),
        relax.backend.DispatchSortScan(),
        # Operators become loops, and elementwise ones join their producers.
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
    ]
    with Target(tier.target(threads)):
        lowered = Sequential(passes)(mod)
    return default_schedule(lowered, tier, threads)
