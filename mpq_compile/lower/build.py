"""Relax module → shared library."""

from __future__ import annotations

from pathlib import Path

import tvm
from tvm import relax

from mpq_compile.errors import LoweringError
from mpq_compile.kernels.schedule import unscheduled
from mpq_compile.kernels.tier import Tier
from mpq_compile.lower.lowering import Lowered
from mpq_compile.lower.pipeline import lower_pipeline


def build_library(lowered: Lowered, tier: Tier, threads: int, path: Path) -> list[str]:
    """Compile the module for ``tier`` and write the shared library to ``path``.

    Returns:
        Names of functions that no schedule fits: they run as TVM generated them.

    Raises:
        LoweringError: TVM or the linker refuses.
    """
    target = tvm.target.Target(tier.target(threads))
    try:
        module = lower_pipeline(lowered.module, tier, threads)
        executable = relax.build(module, target, exec_mode="compiled")
        executable.export_library(str(path))
    except Exception as error:
        raise LoweringError(
            "TVM could not build the library",
            where=f"tier {tier.name}",
            found=f"{type(error).__name__}: {_ends(str(error).strip())}",
            remedy="a C compiler must be installed for linking; `mpq doctor` checks it",
        ) from error
    return unscheduled_names(module)


def _ends(text: str) -> str:
    """Keep what TVM says first and last; a whole module may stand between."""
    return text if len(text) <= 900 else f"{text[:400]} … {text[-400:]}"


def unscheduled_names(module: tvm.IRModule) -> list[str]:
    """Return names of functions that the default schedule left as they are."""
    return unscheduled(module, 4096)
