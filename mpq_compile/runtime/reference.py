"""A fixed workload that tells whether the machine is as usual, beside networks that are timed.

It needs neither a compiler nor a kernel, so that every process and every device has it: each
thread hashes a buffer in its own cache (clock and contention of the cores) and copies one that
fits in no cache (contention of the memory). Both release Python's lock.
"""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_HASHED_BYTES, _COPIED_BYTES = 1 << 19, 1 << 23


class Reference:
    """The workload for a number of threads; calling it gives its time in ms."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._data = [np.ones(_COPIED_BYTES, np.uint8) for _ in range(threads)]
        self._copies = [np.empty_like(data) for data in self._data]
        self()

    def __call__(self) -> float:
        start = time.perf_counter()
        list(self._pool.map(_work, self._data, self._copies))
        return (time.perf_counter() - start) * 1e3


def _work(data: np.ndarray, copy: np.ndarray) -> None:
    hashlib.sha256(data[:_HASHED_BYTES].data)
    np.copyto(copy, data)
