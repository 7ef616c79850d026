"""A device on which kernels are timed, together with the place where what is measured is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

from mpq_compile.cost.drift import LONG, REFERENCE, Reference, Usual
from mpq_compile.cost.exactness import check_exact
from mpq_compile.cost.keys import key_of
from mpq_compile.cost.store import Store
from mpq_compile.lock import timing_lock
from mpq_compile.runtime.device import Device
from mpq_compile.runtime.kernel_timing import Run, Task

T = TypeVar("T")


class AtStore(Protocol):
    """Asks the store something, from whatever thread."""

    def __call__(self, question: Callable[[Store], T], /) -> T:
        """Return the store's answer."""
        ...


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A device and a way to the store.

    Args:
        device: The device.
        at_store: Asks the store, which may belong to another thread.
    """

    device: Device
    at_store: AtStore

    def kernels(self, tasks: Sequence[Task]) -> list[Run]:
        """Build kernels, and let each compute once: a time is believed only where the result is.

        Compiler and oracle keep this machine busy, so nothing is timed on it meanwhile.

        Raises:
            DeviceError: A kernel computes something else than its oracle.
        """
        with timing_lock(shared=True):
            runs = self.device.kernels(tasks)
            check_exact(zip(tasks, runs, strict=True), self.device.name)
        return runs

    @cached_property
    def reference(self) -> Reference:
        """The reference workload, with what the database knows of it."""
        key = key_of(REFERENCE, self.device)
        recent = self.at_store(lambda store: store.reference_times(key, LONG // 2))
        remembered = self.at_store(lambda store: store.get(key))
        return Reference(key, self.kernels([REFERENCE])[0], Usual(recent, remembered))
