"""Runs kernels for aarch64 on any Linux: cross-compiled, linked to ``driver.c``, run by QEMU.

What it shows is correctness. Times under emulation mean nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm.libinfo
import tvm_ffi.libinfo

from mpq_compile.kernels.tier import Tier

COMPILER = "aarch64-linux-gnu-gcc"
QEMU = "qemu-aarch64-static"
# The oldest model that has the flags of a tier: a stray newer instruction is a fault.
CPUS = {"neon": "neoverse-n1", "neon_i8mm": "max", "neon_i8mm_bf16": "max"}
TIMEOUT_S = 120
TYPE_CODES = {"i": 0, "u": 1, "f": 2}


def missing_tool() -> str | None:
    """Return what the emulation lacks on this machine, for the reason of a skip; else None."""
    packages = {QEMU: "qemu-user-static", COMPILER: "gcc-aarch64-linux-gnu"}
    absent = [package for tool, package in packages.items() if not shutil.which(tool)]
    return f"needs Debian's {' and '.join(absent)}" if absent else None


def emulate(
    function: Any, tier: Tier, arguments: Sequence[np.ndarray], result: np.ndarray
) -> np.ndarray:
    """Compile a function for an aarch64 tier, call it with arrays, return its ``result``.

    Raises ``AssertionError`` with the program's error output where the call fails.
    """
    function = function.with_attr("global_symbol", "main")
    target = tvm.target.Target(tier.target(2))
    with tempfile.TemporaryDirectory() as folder:
        kernel, program = Path(folder) / "kernel.o", Path(folder) / "program"
        tvm.compile(function, target=target).mod.write_to_file(str(kernel), "o")
        _compile("-static", _driver(), kernel, "-lm", "-o", program)
        done = subprocess.run(
            [QEMU, "-cpu", CPUS[tier.name], program],
            input=_message([*arguments, result]),
            capture_output=True,
            timeout=TIMEOUT_S,
        )
    assert done.returncode == 0, (done.returncode, done.stderr.decode(errors="replace"))
    return np.frombuffer(done.stdout, result.dtype).reshape(result.shape)


@cache
def _driver() -> Path:
    """Return the compiled driver, which every program of this process links."""
    target = Path(tempfile.mkdtemp(prefix="mpq_driver_")) / "driver.o"
    folders = tvm_ffi.libinfo.include_paths(), [tvm.libinfo.find_include_path()]
    headers = [f"-I{path}" for path in dict.fromkeys(sum(folders, []))]
    source = Path(__file__).with_name("driver.c")
    _compile("-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", *headers, "-c", source, "-o", target)
    return target


def _compile(*options: Any) -> None:
    done = subprocess.run([COMPILER, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _message(arrays: Sequence[np.ndarray]) -> bytes:
    """Return the arguments as ``driver.c`` reads them."""
    parts = [np.int64(len(arrays)).tobytes()]
    for array in arrays:
        header = [TYPE_CODES[array.dtype.kind], 8 * array.dtype.itemsize, array.ndim, *array.shape]
        parts += [np.array(header, np.int64).tobytes(), array.tobytes()]
    return b"".join(parts)
