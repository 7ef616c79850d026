"""What the reference workload usually takes on this machine, remembered between processes.

A machine may be slow for longer than a process lives, and then its own looks call that usual.
"""

from __future__ import annotations

import json
import os

from mpq_compile.errors import MpqError
from mpq_compile.lock import make_cache_dir
from mpq_compile.lower.interface import REFERENCE
from mpq_compile.runtime.fingerprint import device_fingerprint

_FILE = "quiet.json"
# Processes that are remembered. Of these the fastest tenth tells: on a busy day few meet a machine
# that is as it should be. One that has become slower for good is known by nine tenths of new ones.
_KEPT, _SHARE = 40, 10


def usual_ms(tier: str, threads: int) -> float | None:
    """Return the usual time in ms; None where no process was here before."""
    seen = _read().get(_key(tier, threads), [])
    return sorted(seen)[len(seen) // _SHARE] if seen else None


def remember_ms(found: float, tier: str, threads: int) -> None:
    """Add what a process found. Where the cache cannot be written, nothing is remembered."""
    every, key = _read(), _key(tier, threads)
    every[key] = [*every.get(key, []), found][-_KEPT:]
    try:
        path = make_cache_dir() / _FILE
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(every), encoding="utf-8")
        part.replace(path)
    except (OSError, MpqError):  # a full disk, a read-only home: timing goes on without
        return


def _key(tier: str, threads: int) -> str:
    return f"{device_fingerprint(tier=tier, threads=threads)} {REFERENCE}"


def _read() -> dict[str, list[float]]:
    """Return what is remembered, by device; nothing where the file is missing or damaged."""
    try:
        data = json.loads((make_cache_dir() / _FILE).read_text(encoding="utf-8"))
        return {str(key): [float(ms) for ms in seen] for key, seen in data.items()}
    except (OSError, ValueError, TypeError, AttributeError, MpqError):
        return {}
