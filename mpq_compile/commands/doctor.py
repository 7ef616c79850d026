"""``mpq doctor``: is everything here that the compiler needs?"""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from mpq_compile.commands import options
from mpq_compile.commands.outcome import Outcome
from mpq_compile.cost.store import Store, default_path
from mpq_compile.errors import MpqError
from mpq_compile.kernels.tier import detect_tier, host_flags, host_tiers
from mpq_compile.lock import user_cache_dir
from mpq_compile.runtime.threads import physical_cores, thread_count

# As in setup.py.
_PINS = {"torch": "2.13.0", "apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}
_COMPILERS = ("g++", "gcc", "clang++", "clang", "c++", "cc")
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
_SOURCE = "int mpq_answer(void) { return 42; }\n"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str | None = None


def doctor(as_json: options.Json = False) -> Outcome:
    """Check Python, torch, TVM, CPU, compiler and database. Exit code 1 where one fails."""
    checks = [_safely(name, look) for name, look in _CHECKS.items()]
    failed = any(check.status == "fail" for check in checks)
    data = {"ok": not failed, "checks": [asdict(check) for check in checks]}
    return Outcome(
        data=data, show=lambda console: _show(console, checks), exit_code=1 if failed else 0
    )


def _safely(name: str, look: Callable[[str], Check]) -> Check:
    try:
        return look(name)
    except MpqError as error:
        detail = str(error).partition("\n  remedy")[0].replace("\n ", ";")
        return Check(name=name, status="fail", detail=detail, remedy=error.remedy)
    except Exception as error:  # a check that breaks has found something
        return Check(name=name, status="fail", detail=f"{type(error).__name__}: {error}")


def _show(console: Console, checks: list[Check]) -> None:
    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table("check", "", "found", "remedy")
    for check in checks:
        cells = (check.name, check.status, check.detail, check.remedy or "")
        table.add_row(*cells, style=None if check.status == "ok" else styles[check.status])
    console.print(table)


def _python(name: str) -> Check:
    # Older ones do not get as far as this: the package refuses to be installed.
    detail = f"{platform.python_version()} on {platform.platform()}"
    return Check(name=name, status="ok", detail=detail)


def _torch(name: str) -> Check:
    return _package(name, "torch", "torch", "warn")


def _tvm(name: str) -> Check:
    thread_count()  # TVM reads its thread count when it is imported
    return _package(name, "apache-tvm", "tvm", "warn")


def _tvm_ffi(name: str) -> Check:
    # Later releases crash the process in places.
    return _package(name, "apache-tvm-ffi", "tvm_ffi", "fail")


def _package(
    name: str, distribution: str, module: str, otherwise: Literal["warn", "fail"]
) -> Check:
    """Import a package and compare its version with the one this was tested with."""
    pin = _PINS[distribution]
    remedy = f"pip install {distribution}=={pin}"
    try:
        found = metadata.version(distribution)
        importlib.import_module(module)
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        return Check(name=name, status="fail", detail=detail, remedy=remedy)
    if found.partition("+")[0] != pin:
        detail = f"{found}, not {pin}"
        return Check(name=name, status=otherwise, detail=detail, remedy=remedy)
    return Check(name=name, status="ok", detail=found)


def _cpu(name: str) -> Check:
    tiers = [tier.name for tier in host_tiers()]
    best = detect_tier().name
    detail = f"{platform.machine()}, tier {best} (of {', '.join(tiers)})"
    if best == "generic":
        remedy = "kernels run without vector instructions for int8; use a CPU that has them"
        return Check(name=name, status="warn", detail=detail, remedy=remedy)
    return Check(name=name, status="ok", detail=detail)


def _threads(name: str) -> Check:
    threads, cores = thread_count(), physical_cores()
    detail = f"{threads} threads on {cores} physical cores"
    if threads > cores:
        remedy = f"set MPQ_THREADS to at most {cores}"
        return Check(name=name, status="warn", detail=detail, remedy=remedy)
    return Check(name=name, status="ok", detail=detail)


def compiler() -> list[str] | None:
    """Return the command that TVM links with: ``CXX``, ``CC`` or what the path has."""
    given = os.environ.get("CXX") or os.environ.get("CC")
    if given:
        return shlex.split(given)
    found = next(filter(None, map(shutil.which, _COMPILERS)), None)
    return [found] if found else None


def _compiler(name: str) -> Check:
    command = compiler()
    if command is None or shutil.which(command[0]) is None:
        detail = "none" if command is None else f"{command[0]} is not in the path"
        remedy = "install one (apt install g++), or set CXX"
        return Check(name=name, status="fail", detail=detail, remedy=remedy)
    return Check(name=name, status="ok", detail=" ".join(command))


def _linker(name: str) -> Check:
    command = compiler()
    if command is None:
        return Check(name=name, status="fail", detail="there is no compiler to link with")
    with tempfile.TemporaryDirectory(prefix="mpq-doctor-") as folder:
        source, library = Path(folder, "answer.c"), Path(folder, "answer.so")
        source.write_text(_SOURCE, encoding="utf-8")
        arguments = [*command, "-shared", "-fPIC", "-x", "c", str(source), "-o", str(library)]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
        if done.returncode:
            remedy = "install the C library's headers and the linker (apt install build-essential)"
            detail = done.stderr.strip()[-300:]
            return Check(name=name, status="fail", detail=detail, remedy=remedy)
        answer = ctypes.CDLL(str(library)).mpq_answer()
    if answer != 42:
        return Check(name=name, status="fail", detail=f"a built library returned {answer}")
    return Check(name=name, status="ok", detail="a library was built, loaded and called")


def _database(name: str) -> Check:
    path = default_path()
    if not path.exists():
        return _new_database(name, path)
    with Store(path, read_only=True) as store:
        detail = f"{len(store)} measurements in {path}"
    if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        remedy = "set MPQ_DB to a file that may be written, to measure more"
        return Check(name=name, status="warn", detail=f"{detail}, read-only", remedy=remedy)
    return Check(name=name, status="ok", detail=detail)


def _new_database(name: str, path: Path) -> Check:
    # Only the user's own cache folder is made; the folder of MPQ_DB must be there.
    made = path.parent == user_cache_dir()
    folder = _existing(path.parent) if made else path.parent
    if folder.is_dir() and _takes_files(folder):
        return Check(name=name, status="ok", detail=f"{path}: made when first measured")
    detail = f"{path}: {folder} " + ("may not be written" if folder.is_dir() else "is missing")
    remedy = "create the folder, or set MPQ_DB to a file in a folder that may be written"
    return Check(name=name, status="fail", detail=detail, remedy=remedy)


def _takes_files(folder: Path) -> bool:
    """Try it: permissions alone say yes to root, also of folders like /proc."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _existing(folder: Path) -> Path:
    return next((place for place in (folder, *folder.parents) if place.exists()), folder)


def _amx(name: str) -> Check:
    if "amx_tile" not in host_flags():
        return Check(name=name, status="ok", detail="this CPU has no AMX")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0:
        return Check(name=name, status="ok", detail="Linux permits the tile registers")
    detail = f"Linux refuses the tile registers: {os.strerror(ctypes.get_errno())}"
    remedy = "set MPQ_TIER=vnni_bf16, or use Linux 5.16 or later"
    return Check(name=name, status="fail", detail=detail, remedy=remedy)


_CHECKS: dict[str, Callable[[str], Check]] = {
    "python": _python,
    "torch": _torch,
    "tvm": _tvm,
    "tvm-ffi": _tvm_ffi,
    "cpu": _cpu,
    "amx": _amx,
    "threads": _threads,
    "compiler": _compiler,
    "linker": _linker,
    "database": _database,
}
