"""The rank that runs the program: it offers work, computes its share and puts results together."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from safetensors.torch import save
from torch.distributed import Store

from mpq_compile.integrations.heartbeat import Pulse, heartbeat
from mpq_compile.integrations.work_queue import WorkQueue, part, plain, put
from mpq_compile.workpool import OneProcess, Perform, Results, Task, Work

log = logging.getLogger(__name__)

LEADER = 0
_POLL_S = 0.02


@dataclass(kw_only=True)
class Leader:
    """Rank 0 of a group.

    Args:
        store: The group's part of the store.
        size: How many ranks were started.
        lease_s: Silence after which a rank counts as lost, in seconds.
        wait_s: How long the first work waits for ranks that are not ready, in seconds.

    Attributes:
        units: Units of work that each rank computed.
    """

    store: Store
    size: int
    lease_s: float
    wait_s: float
    units: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pulse = Pulse(self.store, self.lease_s)
        self._others = range(LEADER + 1, self.size)
        self._tasks = 0
        self._works = 0
        self._task: Callable[[], Task] | None = None
        self._posted = False
        self._waited = False

    @classmethod
    @contextmanager
    def of_new_group(
        cls, store: Store, size: int, lease_s: float, wait_s: float
    ) -> Iterator[Leader]:
        """Lead a group of ranks that ends with the context."""
        number = store.add("leaders", 1)
        own = part(store, number)
        with heartbeat(own, LEADER, lease_s):
            leader = cls(store=own, size=size, lease_s=lease_s, wait_s=wait_s)
            store.set("leader", str(number))
            try:
                yield leader
            finally:
                leader.dismiss()

    def opened(self, prepare: Callable[[], Perform]) -> None:
        """Go on: this rank runs the program."""

    @contextmanager
    def sharing(self, task: Callable[[], Task]) -> Iterator[None]:
        """Offer the task when its first work comes up."""
        self._task, self._posted, self._works = task, False, 0
        try:
            yield
        finally:
            self._task = None
            if self._posted:
                self.store.set("state", f"closed {self._tasks}")

    def results(self, work: Work) -> Iterator[tuple[str, Results]]:
        """Yield all units: those computed here, as they are, and those that others deliver."""
        if self._task is None:  # nothing tells the others how to compute it
            yield from OneProcess().results(work)
            return
        self._await_others()
        self._works += 1
        place = part(self._offered(self._task), self._works)
        queue = WorkQueue.post(place, LEADER, work.key(), work.units)
        left = set(range(len(work.units)))
        for number in queue.claims():
            left.remove(number)
            yield self._computed(work, number)
            yield from self._arrived(queue, left)
        while left:
            yield from self._arrived(queue, left)
            for number in self._lost(queue, left):
                left.remove(number)
                yield self._computed(work, number)
            time.sleep(_POLL_S)

    def dismiss(self) -> None:
        """End the group, and wait for the ranks that are alive to hear of it."""
        self.store.set("state", "end")
        waiting = [rank for rank in self._others if self._pulse.joined(rank)]
        while waiting:
            waiting = [rank for rank in waiting if self._pulse.alive(rank)]
            time.sleep(_POLL_S)

    def _computed(self, work: Work, number: int) -> tuple[str, Results]:
        unit = work.units[number]
        self.units[LEADER] = self.units.get(LEADER, 0) + 1
        return unit, work.compute(unit)

    def _arrived(self, queue: WorkQueue, left: set[int]) -> Iterator[tuple[str, Results]]:
        for number, rank, results in queue.delivered():
            if number in left:
                left.remove(number)
                self.units[rank] = self.units.get(rank, 0) + 1
                yield queue.units[number], results

    def _lost(self, queue: WorkQueue, left: set[int]) -> list[int]:
        """Return units whose rank will not deliver them."""
        alive = {rank: self._pulse.alive(rank) for rank in self._others}
        lost = [number for number in sorted(left) if not alive[queue.owner(number)]]
        for number in lost:
            log.warning(
                "rank %d was lost; unit %s is computed again",
                queue.owner(number),
                queue.units[number],
            )
        return lost

    def _offered(self, task: Callable[[], Task]) -> Store:
        """Return the task's part of the store, the task being in it."""
        if not self._posted:
            self._posted = True
            self._tasks += 1
            asked = task()
            place = part(self.store, "task", self._tasks)
            put(place, "options", json.dumps([asked.name, asked.options]).encode())
            put(place, "tensors", save(plain(asked.tensors)))
            self.store.set("state", f"open {self._tasks}")
        return part(self.store, "task", self._tasks, "work")

    def _await_others(self) -> None:
        """Wait once for ranks that are still reading network and data."""
        end = time.monotonic() + (0.0 if self._waited else self.wait_s)
        self._waited = True
        while time.monotonic() < end and any(map(self._expected, self._others)):
            time.sleep(_POLL_S)

    def _expected(self, rank: int) -> bool:
        if self.store.check([f"ready/{rank}"]):
            return False
        return not self._pulse.joined(rank) or self._pulse.alive(rank)
