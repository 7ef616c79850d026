"""What links a library: this machine's compiler for its own architecture, zig for another."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from tvm.support import cc

from mpq_compile.errors import LoweringError
from mpq_compile.kernels.tier import Tier

# Makes a shared library of object files: (its path, their paths, options).
Link = Callable[..., None]
# The oldest C library that TVM's wheels, and so its devices, run with.
_GLIBC = "2.28"


def linker(tier: Tier) -> Link:
    """Return what links libraries of ``tier``, for TVM's ``export_library(fcompile=…)``.

    Raises:
        LoweringError: The tier is of another architecture, and no cross linker is installed.
    """
    if tier.triple is None or platform.machine() in tier.machine:
        return cc.create_shared
    if find_spec("ziglang") is None:
        raise LoweringError(
            "no linker for another architecture",
            where=f"tier {tier.name}",
            expected=f"ziglang, which links {tier.triple} on {platform.machine()}",
            found="not installed",
            remedy="pip install 'mpq_compile[cross]'",
        )
    command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{tier.triple}.{_GLIBC}"]

    def link(output: str, objects: Sequence[str], options: Sequence[str] = ()) -> None:
        _run([*command, "-shared", "-fPIC", "-o", output, *objects, *options, "-lm"])

    return link


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise LoweringError(
            "linking failed",
            where=" ".join(command[:6]),
            found=done.stderr.strip()[-600:],
            remedy="link an empty C file with the same command to see whether the linker works",
        )
