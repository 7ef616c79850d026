"""Relax module → shared library: one function for the whole network, else a virtual machine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import relax

from mpq_compile.errors import LoweringError
from mpq_compile.kernels.plain_loops import unscheduled
from mpq_compile.kernels.tier import Tier
from mpq_compile.lower.entry import build_entry
from mpq_compile.lower.interface import Step
from mpq_compile.lower.linker import linker
from mpq_compile.lower.lowering import Lowered
from mpq_compile.lower.naming import node_of
from mpq_compile.lower.pipeline import lower_pipeline
from mpq_compile.lower.program import NotAProgram, read_program
from mpq_compile.lower.reference import with_reference

log = logging.getLogger(__name__)

# Smaller loop nests cost less than sharing them among threads would.
_LARGE = 32768


@dataclass(frozen=True, kw_only=True)
class Library:
    """What was built.

    Args:
        unscheduled: Names of functions that no schedule fits: they run as TVM generated them.
        arena: Bytes that ``main(inputs…, parameters, arena, outputs…)`` needs for what it computes
            on the way; None where Relax's virtual machine runs the network.
        steps: The kernels that it calls, in order; none where the virtual machine calls them.
        machine_reason: Why the virtual machine runs it; "" where it does not.
    """

    unscheduled: list[str]
    arena: int | None
    steps: Sequence[Step] = ()
    machine_reason: str = ""


@dataclass(frozen=True, kw_only=True)
class _Built:
    """A module that this process built, and its library."""

    module: Any
    settings: tuple[Any, ...]
    content: bytes
    library: Library


# Parameters are arguments of the library: networks that differ in scales, or in weight bits that
# share a kernel, have one library. Uniform assignments of a convolutional network do.
_BUILT: dict[int, _Built] = {}
_KEPT = 32


def build_library(lowered: Lowered, tier: Tier, threads: int, path: Path) -> Library:
    """Compile the module for ``tier`` and write the shared library to ``path``.

    Raises:
        LoweringError: TVM or the linker refuses.
    """
    digest = tvm_ffi.structural_hash(lowered.module)
    # Modules that differ in names alone are equal, but their steps are not.
    built, settings = _BUILT.get(digest), (tier, threads, _names(lowered.module))
    if built is not None and _fits(built, lowered.module, settings):
        path.write_bytes(built.content)
        return built.library
    library = _build(lowered, tier, threads, path)
    if len(_BUILT) >= _KEPT:
        _BUILT.clear()
    _BUILT[digest] = _Built(
        module=lowered.module, settings=settings, content=path.read_bytes(), library=library
    )
    return library


def _fits(built: _Built, module: Any, settings: tuple[Any, ...]) -> bool:
    return built.settings == settings and tvm_ffi.structural_equal(built.module, module)


def _names(module: Any) -> tuple[str, ...]:
    blocks = module["main"].body.blocks
    return tuple(binding.var.name for block in blocks for binding in block.bindings)


def _build(lowered: Lowered, tier: Tier, threads: int, path: Path) -> Library:
    target = tvm.target.Target(tier.target(threads))
    link = linker(tier)
    try:
        module = lower_pipeline(lowered.module, tier, threads)
        executable, library = _executable(module, target, tier, threads)
        executable.export_library(str(path), fcompile=link)
    except Exception as error:
        raise LoweringError(
            "TVM could not build the library",
            where=f"tier {tier.name}",
            found=f"{type(error).__name__}: {_ends(str(error).strip())}",
            remedy="a C compiler must be installed for linking; `mpq doctor` checks it",
        ) from error
    return library


def _executable(module: Any, target: Any, tier: Tier, threads: int) -> tuple[Any, Library]:
    """Build one function where the network is a list of calls, else for the virtual machine."""
    missed = unscheduled(module, _LARGE)
    try:
        program = read_program(module)
        entry = build_entry(module, program, tier, threads)
    except NotAProgram as reason:
        log.info("the virtual machine runs this network: %s", reason)
        beside = with_reference(module, tier, threads)
        executable = relax.build(beside, target, exec_mode="compiled")
        return executable, Library(unscheduled=missed, arena=None, machine_reason=str(reason))
    steps = [
        Step(name=node_of(call.name) or call.function, kernel=call.function, phases=phases)
        for call, phases in zip(program.calls, entry.phases, strict=True)
    ]
    beside = with_reference(entry.module, tier, threads)
    executable = tvm.compile(beside, target=target)
    return executable, Library(unscheduled=missed, arena=entry.arena, steps=steps)


def _ends(text: str) -> str:
    """Keep what TVM says first and last; a whole module may stand between."""
    return text if len(text) <= 900 else f"{text[:400]} … {text[-400:]}"
