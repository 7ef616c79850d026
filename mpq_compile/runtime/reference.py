"""A fixed workload that tells whether the machine is as usual, beside networks that are timed.

It needs neither a compiler nor a kernel, so that every process and every device has it: each
thread hashes a buffer that its own cache holds, without Python's lock. So it feels the clock and
whoever else wants the cores; the memory, which neighbours on a shared machine disturb all the
time, it leaves alone.
"""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

_BYTES = 1 << 18
# Threads of a kernel wait for their next call for about this long, and use their core meanwhile.
_QUIET_S = 2e-3


class Reference:
    """The workload for a number of threads; calling it gives its time in ms."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._data = [bytes(_BYTES)] * threads
        self()

    def __call__(self) -> float:
        time.sleep(_QUIET_S)
        start = time.perf_counter()
        list(self._pool.map(hashlib.sha256, self._data))
        return (time.perf_counter() - start) * 1e3
