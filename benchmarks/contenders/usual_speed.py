"""Whether the cores are as fast as they were at best, which no contender can tell of itself.

On a shared machine two virtual cores are at times two threads of one core: whatever runs then
takes twice its time, for seconds on end. Dot products on all threads at once show it.
"""

from __future__ import annotations

import os
import time

# Beside this share of the best rate the machine is as usual.
_NEAR = 0.85
_FIRST_LOOKS, _BETWEEN_S = 40, 0.05


class UsualSpeed:
    """Looks at all threads of this process at once.

    Args:
        threads: As many as the contenders have.
    """

    def __init__(self, threads: int) -> None:
        os.environ["TVM_NUM_THREADS"] = str(threads)
        from kernel_peaks import int8_rate

        from mpq_compile.kernels.tier import detect_tier
        from mpq_compile.runtime.executor import request_amx

        tier = detect_tier()
        if tier.dot == "amx":
            request_amx()
        self._rate = int8_rate(tier, threads)
        self._best = max(self._look() for _ in range(_FIRST_LOOKS))

    def _look(self) -> float:
        time.sleep(_BETWEEN_S)
        return self._rate()

    def holds(self) -> bool:
        """Tell whether the machine is as usual now."""
        rate = self._rate()
        self._best = max(self._best, rate)
        return rate >= _NEAR * self._best

    def wait(self, patience_s: float) -> None:
        """Wait until it is, at most ``patience_s`` seconds."""
        end = time.monotonic() + patience_s
        while not self.holds() and time.monotonic() < end:
            time.sleep(_BETWEEN_S)
