"""Where kernels and networks run and are timed: this machine, or one behind RPC.

Whatever measures asks a :class:`Device`, so that profiling, anchoring, verification and inference
are the same on every kind of target.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mpq_compile.kernels.tier import Tier, detect_tier
from mpq_compile.lock import timing_lock
from mpq_compile.runtime.fingerprint import cpu_clock_mhz, device_fingerprint
from mpq_compile.runtime.kernel_timing import Run, Task, local_run
from mpq_compile.runtime.threads import thread_count

if TYPE_CHECKING:
    from mpq_compile.runtime.timing import Timings
    from mpq_compile.runtime.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """State of a device at one moment; None where it cannot be read.

    Args:
        clock_mhz: Mean clock of its cores, MHz.
        load: Processes that want to run, averaged over the last minute.
    """

    clock_mhz: float | None
    load: float | None


class NetworkRunner(Protocol):
    """A network that was loaded on a device."""

    def run(self, inputs: Sequence[Any], in_place: bool = False) -> list[Any]:
        """Run on arrays or torch tensors of any whole number of batches; same kind out.

        With ``in_place`` inputs that the network updates are changed themselves and returned.
        """
        ...


class Device(Protocol):
    """One device. Times are only comparable where they were taken under one ``lock``."""

    @property
    def name(self) -> str:
        """Its name in messages and plans: ``local``, ``rpc://host:port/key``."""
        ...

    @property
    def present(self) -> bool:
        """Whether it can be reached; False where networks can only be built for it."""
        ...

    @property
    def fingerprint(self) -> str:
        """What measurements of it are filed under."""
        ...

    @property
    def tier(self) -> Tier:
        """Tier of the kernels that are built for it."""
        ...

    @property
    def threads(self) -> int:
        """Threads of the kernels that are built for it."""
        ...

    def workers(self) -> Sequence[Device]:
        """Return the devices that may be measured on at the same time, all with its fingerprint.

        One of them may be lost on the way (``DeviceLostError``); the others then do its work.
        """
        ...

    def lock(self) -> AbstractContextManager[None]:
        """Hold it alone: nothing else may be timed on it."""
        ...

    def conditions(self) -> Conditions:
        """Return its present clock and load."""
        ...

    def kernels(self, tasks: Sequence[Task]) -> list[Run]:
        """Build the kernels and load them, with the arguments of ``kernel_arguments``."""
        ...

    def open(self, folder: Path) -> NetworkRunner:
        """Load an artifact."""
        ...

    def time_networks(self, folders: Sequence[Path], blocks: int) -> Timings:
        """Time artifacts in one fresh process, in turns (``runtime.timing.time_folders``)."""
        ...

    def trace_network(self, folder: Path, calls: int) -> Trace:
        """Time the kernels of an artifact in a fresh process (``runtime.trace.trace_folder``)."""
        ...


class LocalDevice:
    """This machine."""

    name = "local"
    present = True

    @cached_property
    def tier(self) -> Tier:
        """The tier that was detected, or that ``MPQ_TIER`` names."""
        return detect_tier()

    @property
    def threads(self) -> int:
        """``MPQ_THREADS``, else the physical cores that this process may use."""
        return thread_count()

    @property
    def fingerprint(self) -> str:
        """The fingerprint of this machine at this tier and number of threads."""
        return device_fingerprint(tier=self.tier.name, threads=self.threads)

    def workers(self) -> Sequence[Device]:
        """Return this machine alone."""
        return [self]

    def lock(self) -> AbstractContextManager[None]:
        """Hold the lock of everything that is timed on this machine."""
        return timing_lock()

    def conditions(self) -> Conditions:
        """Return clock and load as Linux tells them."""
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        return Conditions(clock_mhz=cpu_clock_mhz(), load=load)

    def kernels(self, tasks: Sequence[Task]) -> list[Run]:
        """Compile the kernels into this process."""
        threads = self.threads  # before TVM is imported: it reads its thread count once
        return [local_run(task, self.tier, threads) for task in tasks]

    def open(self, folder: Path) -> NetworkRunner:
        """Load an artifact into this process."""
        from mpq_compile.runtime.artifact import open_artifact
        from mpq_compile.runtime.executor import Executor

        manifest, _ = open_artifact(folder)
        return Executor(folder, manifest)

    def time_networks(self, folders: Sequence[Path], blocks: int) -> Timings:
        """Time artifacts in one fresh process, without torch."""
        from mpq_compile.runtime.fresh import time_in_fresh_process

        return time_in_fresh_process(folders, blocks)

    def trace_network(self, folder: Path, calls: int) -> Trace:
        """Time the kernels of an artifact in a fresh process, without torch."""
        from mpq_compile.runtime.fresh import trace_in_fresh_process

        return trace_in_fresh_process(folder, calls)
