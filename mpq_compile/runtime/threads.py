"""Thread count of kernels: ``MPQ_THREADS``, else the cores this process may use.

TVM reads its thread count once, so this runs before TVM is imported.
"""

from __future__ import annotations

import os

from mpq_compile.errors import DeviceError


def allowed_cpus() -> set[int]:
    """Return the CPUs that the process's affinity allows."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def physical_cores() -> int:
    """Return how many physical cores the process's affinity allows."""
    return max(1, len({_core_of(cpu) for cpu in allowed_cpus()}))


def _core_of(cpu: int) -> str:
    path = f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    try:
        with open(path, encoding="utf-8") as siblings:
            return siblings.read().strip()
    except OSError:
        return str(cpu)


def thread_count() -> int:
    """Return the number of threads kernels are generated for, and tell TVM the same."""
    given = os.environ.get("MPQ_THREADS")
    if given is not None and not (given.isdigit() and int(given) > 0):
        raise DeviceError(
            "MPQ_THREADS is not a thread count",
            expected="a whole number above 0",
            found=repr(given),
            remedy="unset it, or set it to e.g. 2",
        )
    threads = int(given) if given else physical_cores()
    os.environ.setdefault("TVM_NUM_THREADS", str(threads))
    allowed = allowed_cpus()
    if allowed != set(range(len(allowed))):
        # TVM binds worker i to CPU i, which here would be another process's.
        os.environ.setdefault("TVM_BIND_THREADS", "0")
    return threads
