"""Relax module → shared library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import relax

from mpq_compile.errors import LoweringError
from mpq_compile.kernels.plain_loops import unscheduled
from mpq_compile.kernels.tier import Tier
from mpq_compile.lower.lowering import Lowered
from mpq_compile.lower.pipeline import lower_pipeline

# Smaller loop nests cost less than sharing them among threads would.
_LARGE = 32768


@dataclass(frozen=True, kw_only=True)
class _Built:
    """A module that this process built, and its library."""

    module: Any
    settings: tuple[str, int]
    library: bytes
    unscheduled: list[str]


# Parameters are arguments of the library: networks that differ in scales, or in weight bits that
# share a kernel, have one library. Uniform assignments of a convolutional network do.
_BUILT: dict[int, _Built] = {}
_KEPT = 32


def build_library(lowered: Lowered, tier: Tier, threads: int, path: Path) -> list[str]:
    """Compile the module for ``tier`` and write the shared library to ``path``.

    Returns:
        Names of functions that no schedule fits: they run as TVM generated them.

    Raises:
        LoweringError: TVM or the linker refuses.
    """
    digest = tvm_ffi.structural_hash(lowered.module)
    built, settings = _BUILT.get(digest), (tier.name, threads)
    if built is not None and _fits(built, lowered.module, settings):
        path.write_bytes(built.library)
        return built.unscheduled
    names = _build(lowered, tier, threads, path)
    if len(_BUILT) >= _KEPT:
        _BUILT.clear()
    _BUILT[digest] = _Built(
        module=lowered.module, settings=settings, library=path.read_bytes(), unscheduled=names
    )
    return names


def _fits(built: _Built, module: Any, settings: tuple[str, int]) -> bool:
    return built.settings == settings and tvm_ffi.structural_equal(built.module, module)


def _build(lowered: Lowered, tier: Tier, threads: int, path: Path) -> list[str]:
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
    return unscheduled(module, _LARGE)


def _ends(text: str) -> str:
    """Keep what TVM says first and last; a whole module may stand between."""
    return text if len(text) <= 900 else f"{text[:400]} … {text[-400:]}"
