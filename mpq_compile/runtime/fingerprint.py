"""What a measurement depends on beside its workload: the device, the toolchain, the kernels."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

from mpq_compile.kernels.tier import detect_tier, host_flags

_PACKAGE = Path(__file__).resolve().parents[1]
# What makes a library of a graph, beside the kernels.
_LOWERING = ("passes", "lower")
_DISTRIBUTIONS = ("apache-tvm", "apache-tvm-ffi", "mpq-compile")
_SOURCES = frozenset({".py", ".c", ".cc", ".cpp", ".h", ".hpp", ".s", ".S", ".ll"})


def device_fingerprint(*, tier: str | None = None, threads: int | None = None) -> str:
    """Return a stable name of this machine as the kernels see it.

    ``<machine>-<model>-<cores>c-<threads>t-<tier>-<digest of the CPU flags>``. The tier belongs to
    it because ``MPQ_TIER`` lets one machine run several. Clocks and load do not: they change.

    Args:
        tier: Tier of the kernels; that of this machine (or ``MPQ_TIER``) for None.
        threads: Threads of the build; :func:`default_threads` for None.
    """
    flags = hashlib.sha256(" ".join(sorted(host_flags())).encode()).hexdigest()[:8]
    return "-".join(
        (
            _slug(platform.machine()),
            _slug(_model_name()),
            f"{os.cpu_count() or 1}c",
            f"{threads or default_threads()}t",
            tier or detect_tier().name,
            flags,
        )
    )


def default_threads() -> int:
    """Return the threads TVM uses: ``TVM_NUM_THREADS``, else the CPUs this process may use."""
    given = os.environ.get("TVM_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def toolchain_hash() -> str:
    """Return 16 hex digits over the versions of TVM, its FFI, Python (minor) and this package."""
    python = f"python={sys.version_info.major}.{sys.version_info.minor}"
    versions = [python, *(f"{name}={_version(name)}" for name in _DISTRIBUTIONS)]
    return hashlib.sha256(";".join(versions).encode()).hexdigest()[:16]


def kernel_hash(folder: Path | None = None) -> str:
    """Return 16 hex digits over the source files of the kernels folder, sorted by path.

    The sources are read once a process: a running process has the kernels that it imported.
    """
    return _folder_hash((folder or _PACKAGE / "kernels").resolve())


def lowering_hash() -> str:
    """Return 16 hex digits over the sources that put a network together of its kernels."""
    text = "".join(_folder_hash(_PACKAGE / name) for name in _LOWERING)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _folder_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix()):
        if path.suffix not in _SOURCES or not path.is_file():
            continue
        content = path.read_bytes()
        # The length keeps content from passing for another file's name.
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


@cache
def _version(name: str) -> str:
    """Return a distribution's version: reading it takes half a millisecond."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


@cache
def _model_name() -> str:
    """Return the CPU's model: its name, or Arm's implementer and part numbers."""
    fields = _cpu_fields()
    if "model name" in fields:
        return fields["model name"]
    arm = [fields[key] for key in ("CPU implementer", "CPU part") if key in fields]
    return " ".join(arm) or platform.processor() or "unknown"


def _cpu_fields() -> dict[str, str]:
    """Return the fields of the first CPU in /proc/cpuinfo; empty where unreadable."""
    fields: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    return fields


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "unknown"


def cpu_clock_mhz() -> float | None:
    """Return the mean clock of the cores in MHz at this moment; None where it is not known."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    except (OSError, ValueError):
        return None
    return sum(clocks) / len(clocks) if clocks else None
