"""A rank that computes units of what rank 0 offers, until it is told to leave."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import NoReturn

from safetensors.torch import load
from torch.distributed import DistError, Store

from mpq_compile.errors import CalibrationError, DeviceLostError
from mpq_compile.integrations.heartbeat import Pulse, heartbeat
from mpq_compile.integrations.rank_leader import LEADER
from mpq_compile.integrations.work_queue import WorkQueue, get, part
from mpq_compile.workpool import Perform, Task, Work

log = logging.getLogger(__name__)

# How often rank 0 is looked at: what is waited for is seen late by a share of the wait.
_SHORTEST_S, _LONGEST_S, _LATE = 0.005, 0.5, 0.02
# Groups that this process was to be part of.
_groups = count(1)


class Dismissed(BaseException):
    """This rank has nothing more to do in the context: it ends the body, and is no error."""


class NothingLeft(Exception):
    """All units of the work are taken, or rank 0 has gone on."""


@dataclass(kw_only=True)
class Helper:
    """Any rank but 0.

    Args:
        store: What all ranks share; the part of the group, once it is met.
        rank, size: Number of this rank, and how many were started.
        lease_s: Silence after which rank 0 counts as lost, in seconds.
        wait_s: How long to wait for rank 0 at first, in seconds.

    Attributes:
        units: Units of work that this rank computed.
    """

    store: Store
    rank: int
    size: int
    lease_s: float
    wait_s: float
    units: dict[int, int] = field(default_factory=dict)

    def opened(self, prepare: Callable[[], Perform]) -> NoReturn:
        """Join rank 0, prepare network and data, perform what is asked for; never return.

        Raises:
            Dismissed: Rank 0 has left the context, or this rank cannot help it.
            DeviceLostError: Rank 0 was lost.
        """
        self.store = _group(self.store, next(_groups), self.lease_s, self.wait_s)
        self._pulse = Pulse(self.store, self.lease_s)
        self._task = 0
        with heartbeat(self.store, self.rank, self.lease_s):
            try:
                self._serve(prepare)
            finally:
                self._pulse.leave(self.rank)

    def _serve(self, prepare: Callable[[], Perform]) -> NoReturn:
        try:
            perform = prepare()
            self.store.set(f"ready/{self.rank}", "1")
            while True:
                self._perform_next(perform)
        except (DeviceLostError, DistError):
            raise
        except Exception as error:
            log.warning("rank %d does not help: %s", self.rank, error)
            raise Dismissed(f"{error}") from error

    def sharing(self, task: Callable[[], Task]) -> AbstractContextManager[None]:
        """Do nothing: rank 0 offers tasks."""
        return nullcontext()

    def results(self, work: Work) -> NoReturn:
        """Compute the units that this rank gets.

        Raises:
            NothingLeft: At the end, for only rank 0 has all results.
        """
        self._works += 1
        place = part(self.store, "task", self._task, "work", self._works)
        for _ in pauses():
            if WorkQueue.is_posted(place):
                break
            if self._state() != ("open", self._task):
                raise NothingLeft
        queue, key = WorkQueue.join(place, self.rank)
        if key != work.key():
            raise _stranger(self.rank)
        for number in queue.claims():
            queue.deliver(number, work.compute(queue.units[number]))
            self.units[self.rank] = self.units.get(self.rank, 0) + 1
        raise NothingLeft

    def _perform_next(self, perform: Perform) -> None:
        """Wait for a task that this rank has not seen, and compute units of it."""
        for _ in pauses():
            word, number = self._state()
            if word == "end":
                raise Dismissed("rank 0 has left the context")
            if word == "open" and number != self._task:
                break
        self._task, self._works = number, 0
        place = part(self.store, "task", number)
        name, options = json.loads(get(place, "options"))
        with suppress(NothingLeft):
            perform(Task(name=name, options=options, tensors=load(get(place, "tensors"))))

    def _state(self) -> tuple[str, int]:
        """Return what rank 0 is at: "open" or "closed", and the number of the task; or "end".

        Raises:
            DeviceLostError: It is lost.
        """
        if not self._pulse.alive(LEADER):
            raise DeviceLostError(
                "rank 0 was lost, and with it the program",
                where=f"rank {self.rank}",
                expected=f"a sign of life every {self.lease_s:g} s",
                found="none",
                remedy="start all ranks again, or let torchrun do so (--max-restarts): slices that "
                "were complete are not computed again",
            )
        if not self.store.check(["state"]):
            return "closed", 0
        word, _, number = self.store.get("state").decode().partition(" ")
        return word, int(number or 0)


def _group(store: Store, least: int, lease_s: float, wait_s: float) -> Store:
    """Return the part of the newest group that is led, the ``least``-th of this program or later.

    Raises:
        Dismissed: It is over, or nobody leads it.
    """
    end = time.monotonic() + wait_s
    pulses: dict[int, Pulse] = {}
    for _ in pauses():
        number = int(store.get("leader")) if store.check(["leader"]) else 0
        own = part(store, number)
        if number >= least:
            pulse = pulses.setdefault(number, Pulse(own, lease_s))
            if own.check(["state"]) and own.get("state") == b"end":
                raise Dismissed("rank 0 was done before this rank came")
            if pulse.moves(LEADER):
                return own
        if time.monotonic() > end:
            raise Dismissed(f"nobody led within {wait_s:g} s")
    raise AssertionError("pauses do not end")


def _stranger(rank: int) -> CalibrationError:
    return CalibrationError(
        "this rank has another network, other data or other code than rank 0",
        where=f"rank {rank}",
        expected="the same model, weights, calibration data, version and torch on all ranks",
        found="another hash of them",
        remedy="make model and data alike on all ranks: same files, same seeds",
    )


def pauses() -> Iterator[None]:
    """Yield for ever, ever more slowly: who waits long shall not disturb, nor be late by much."""
    start = time.monotonic()
    while True:
        yield
        waited = time.monotonic() - start
        time.sleep(min(_LONGEST_S, _SHORTEST_S + _LATE * waited))
