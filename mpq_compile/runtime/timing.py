"""Times artifacts in this process: ``python -m mpq_compile.runtime.timing BLOCKS FOLDER…``.

Verification and the latency model start this module in fresh processes. It imports TVM's runtime
and NumPy, no torch.
"""

from __future__ import annotations

import json
import math
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mpq_compile.runtime.artifact import open_artifact
from mpq_compile.runtime.blocks import Beside, Blocks
from mpq_compile.runtime.core_waits import CoreWaits
from mpq_compile.runtime.environment import patience_s
from mpq_compile.runtime.executor import Executor
from mpq_compile.runtime.native import as_tensor
from mpq_compile.runtime.usual import remember_ms, usual_ms

# Seconds of warming up and of a block, for one network and for each of several in turns.
_ALONE_S, _IN_TURNS_S = (0.4, 0.12), (0.1, 0.04)
# Seconds between two looks at the reference within a block: what disturbs a shared machine comes
# and goes within tens of milliseconds, and looks before and after miss it.
_PART_S = 0.01
_LEAST_NETWORKS = 3
# How many times longer than meant a part of a block may take: threads that spin for one that has
# no core make a call of microseconds one of milliseconds.
_SLOWEST = 10.0


@dataclass(frozen=True, kw_only=True)
class Timings:
    """What one process measured of networks in turns.

    Args:
        latencies_ms: Latency of single calls in ms, by network, block and call.
        reference_ms: The reference workload beside each block in ms, the median over networks.
        usual_ms: Its usual time in this process, in ms: a fiftieth of the looks are below it.
        known_ms: Its usual time in earlier processes on this machine; None if there were none.
        waited: Share of the time of each block in which a thread waited for a core, the median
            over networks; empty where nobody looked.
        repeated: Parts of blocks (10 ms, or a call) that were dropped because of it.
        energy_mj: Energy of a call in mJ by network, where the processor tells it.
        memory_bytes: What loading and running the networks added to the process's memory.
    """

    latencies_ms: Sequence[Sequence[Sequence[float]]]
    reference_ms: Sequence[float]
    usual_ms: float
    repeated: int
    energy_mj: Sequence[float | None]
    memory_bytes: int
    known_ms: float | None = None
    waited: Sequence[float] = ()

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Timings:
        """Rebuild from :meth:`to_json`."""
        return cls(**data)

    def reordered(self, order: Sequence[int]) -> Timings:
        """Return the same with network ``order[i]`` where network ``i`` was found."""
        places = sorted(range(len(order)), key=order.__getitem__)
        return replace(
            self,
            latencies_ms=[self.latencies_ms[i] for i in places],
            energy_mj=[self.energy_mj[i] for i in places],
        )

    def medians_ms(self, network: int) -> list[float]:
        """Return the median of each block of a network."""
        return [statistics.median(block) for block in self.latencies_ms[network]]

    def levelled_ms(self, network: int) -> list[float]:
        """Return the median of each block as if all rounds had found the machine alike."""
        return [float(ms) for ms in self._levelled[network]]

    @cached_property
    def _levelled(self) -> np.ndarray:
        return levelled([self.medians_ms(i) for i in range(len(self.latencies_ms))])


def levelled(table: Sequence[Sequence[float]]) -> np.ndarray:
    """Return times by network and occasion without what an occasion has in common.

    A slow occasion (a round, a process) is slow for all networks in it, so its factor is the median
    over them of time over the network's own median; it is taken out. Two networks or one do not
    tell a slow occasion from their own noise.
    """
    times = np.asarray(table, dtype=float)
    if len(times) < _LEAST_NETWORKS:
        return times
    speeds = np.median(times / np.median(times, axis=1, keepdims=True), axis=0)
    return times / speeds * np.median(speeds)


def by_process(timings: Sequence[Timings]) -> np.ndarray:
    """Return the median of each network in each process in ms, drift taken out: [networks,
    processes]."""
    networks = range(len(timings[0].latencies_ms))
    return levelled([[statistics.median(t.levelled_ms(i)) for t in timings] for i in networks])


def example_inputs(executor: Executor) -> list[np.ndarray]:
    """Return random inputs of the compiled shapes."""
    generator = np.random.default_rng(0)
    inputs = []
    for spec in executor.manifest.inputs:
        values = generator.standard_normal(spec["shape"])
        integers = not spec["dtype"].startswith("float")
        inputs.append((np.abs(values) if integers else values).astype(spec["dtype"]).reshape(-1))
    return inputs


def time_folders(folders: Sequence[Path], blocks: int) -> Timings:
    """Load artifacts into this process and time them.

    They are loaded and visited in an order of this process's own. What is loaded early lies
    elsewhere in memory than what is loaded late, and is slower or faster for it by some percent:
    several processes with one order would all be wrong in the same way.
    """
    before = _resident_bytes()
    order = random.sample(range(len(folders)), len(folders))
    executors = [Executor(folders[i], open_artifact(folders[i])[0]) for i in order]
    warm_s, block_s = _ALONE_S if len(executors) == 1 else _IN_TURNS_S
    timers = [_Timer(executor, warm_s, block_s) for executor in executors]
    memory = max(0, _resident_bytes() - before)
    manifest = executors[0].manifest
    machine = manifest.tier, manifest.threads
    reference = _timed(executors[0].reference())
    found = time_in_turns(
        timers,
        reference,
        blocks,
        memory_bytes=memory,
        known_ms=usual_ms(*machine),
        waits=CoreWaits(),
        parts=[timer.parts for timer in timers],
        patience_s=patience_s(),
    )
    remember_ms(found.usual_ms, *machine)
    return found.reordered(order)


def _timed(call: Callable[[], Any]) -> Callable[[], float]:
    """Return a function that calls ``call`` and returns how long it took, in ms."""

    def timed() -> float:
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3

    return timed


class _Timer:
    """Times calls of one network, after warming up.

    Args:
        executor: The network.
        warm_s: Seconds of warming up.
        block_s: Seconds that all parts of a block should take; five calls at least are in one.
    """

    def __init__(self, executor: Executor, warm_s: float, block_s: float) -> None:
        tensors = [as_tensor(value) for value in example_inputs(executor)]
        self._call = _timed(lambda: executor.run_flat(tensors))
        end = time.perf_counter() + warm_s
        once = [self._call()]
        while time.perf_counter() < end:
            once.append(self._call())
        call_s = max(statistics.median(once) * 1e-3, 1e-7)
        self._number = max(1, min(200, int(_PART_S / call_s)))
        wanted = max(5 / self._number, block_s / max(_PART_S, call_s))
        self.parts = math.ceil(wanted)

    def __call__(self) -> list[float]:
        if self._number > 1:
            self._call()  # the first call finds caches that another network filled
        calls: list[float] = []
        end = time.perf_counter() + _SLOWEST * _PART_S
        while len(calls) < self._number and (not calls or time.perf_counter() < end):
            calls.append(self._call())
        return calls


def time_in_turns(
    timers: Sequence[Callable[[], list[float]]],
    reference: Callable[[], float],
    blocks: int,
    memory_bytes: int = 0,
    known_ms: float | None = None,
    waits: CoreWaits | None = None,
    parts: Sequence[int] | None = None,
    patience_s: float = math.inf,
) -> Timings:
    """Time networks so that every round visits all of them, with the reference beside each block.

    What disturbs the machine for longer than a block then disturbs all alike, so that ratios hold.
    Of each block the quietest parts count: see :mod:`blocks`.

    Args:
        timers: Each returns the latencies of some calls of its network, in ms.
        reference: Returns what the reference workload takes now, in ms.
        blocks: Blocks of each network.
        memory_bytes, known_ms: As in :class:`Timings`.
        waits: Tells how long threads waited; None where nobody looks.
        parts: How many parts, a call of its timer each, a block of each network is made of; one
            where it is None.
        patience_s: Seconds that are spent on the machine, beyond what is measured anyway.
    """
    beside = Beside(reference, known_ms, patience_s, blocks * len(timers))
    often = parts or [1] * len(timers)
    blocks_of = [Blocks(t, beside, waits, n) for t, n in zip(timers, often, strict=True)]
    surroundings = [[found.measure() for found in blocks_of] for _ in range(blocks)]
    return Timings(
        latencies_ms=[found.latencies_ms for found in blocks_of],
        reference_ms=[statistics.median(s.reference_ms for s in block) for block in surroundings],
        usual_ms=beside.usual_ms,
        repeated=sum(found.repeated for found in blocks_of),
        energy_mj=[found.energy_mj for found in blocks_of],
        memory_bytes=memory_bytes,
        known_ms=known_ms,
        waited=[statistics.median(s.waited for s in block) for block in surroundings],
    )


def _resident_bytes() -> int:
    """Return the most memory that this program has held.

    Linux's own figure: that of ``getrusage`` is inherited from the process that started this one.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            peaks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        return 1024 * int(peaks[0])
    except (OSError, IndexError, ValueError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(arguments: Sequence[str]) -> None:
    """Time artifacts: the number of blocks, then the folders; print timings as JSON."""
    blocks, *folders = arguments
    timings = time_folders([Path(folder) for folder in folders], int(blocks))
    print(json.dumps(timings.to_json()))


if __name__ == "__main__":
    main(sys.argv[1:])
