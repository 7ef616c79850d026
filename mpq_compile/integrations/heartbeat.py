"""Which processes of a group are alive, told by counters in the store that they share."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import Store

# Beats in the time after which a process that is silent counts as lost.
_BEATS = 4
_GONE = "gone"


@contextmanager
def heartbeat(store: Store, rank: int, lease_s: float) -> Iterator[None]:
    """Say meanwhile, from a thread with a connection of its own, that this process is alive."""
    stopped = threading.Event()
    own = store.clone()  # type: ignore[attr-defined]  # not in torch's stubs

    def beat() -> None:
        try:
            while not stopped.is_set():
                own.add(_key(rank), 1)
                stopped.wait(lease_s / _BEATS)
        except RuntimeError:
            return  # the store is gone: whoever uses it next says so

    thread = threading.Thread(target=beat, name="mpq heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(lease_s)


class Pulse:
    """Tells which ranks are alive: those that were heard of within the lease.

    Clocks of different machines are never compared: a counter that does not move is timed here.

    Args:
        store: As given to ``heartbeat``.
        lease_s: Silence after which a rank counts as lost, in seconds.
    """

    def __init__(self, store: Store, lease_s: float) -> None:
        self._store = store
        self._lease_s = lease_s
        self._heard: dict[int, tuple[int, float]] = {}
        self._first: dict[int, int] = {}

    def joined(self, rank: int) -> bool:
        """Tell whether a rank was ever heard of."""
        return self._store.check([_key(rank)])

    def alive(self, rank: int) -> bool:
        """Tell whether a rank may be working."""
        if self._store.check([f"{_GONE}/{rank}"]):
            return False
        count, now = self._store.add(_key(rank), 0), time.monotonic()
        last, since = self._heard.get(rank, (-1, now))
        if count != last:
            self._heard[rank] = count, now
            return True
        return now - since < self._lease_s

    def moves(self, rank: int) -> bool:
        """Tell whether a rank was heard of since the first time that this was asked."""
        first = self._first.setdefault(rank, self._store.add(_key(rank), 0))
        return self._store.add(_key(rank), 0) > first

    def leave(self, rank: int) -> None:
        """Say that a rank does nothing more."""
        self._store.set(f"{_GONE}/{rank}", "1")


def _key(rank: int) -> str:
    return f"beat/{rank}"
