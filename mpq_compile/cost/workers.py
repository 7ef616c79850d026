"""Work shared out to several devices at once; what one leaves undone, the others do.

The store belongs to the calling thread: workers ask it questions through a queue, so that each
round is on disk before the next one begins.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from mpq_compile.cost.bench import Bench
from mpq_compile.cost.store import Store
from mpq_compile.errors import DeviceLostError
from mpq_compile.runtime.device import Device

Item = TypeVar("Item")
T = TypeVar("T")
log = logging.getLogger(__name__)


def distribute(
    items: Iterable[Item], device: Device, store: Store, work: Callable[[Item, Bench], None]
) -> None:
    """Do ``work`` once for each item, on as many of the device's workers as there are.

    A worker that is lost is not used again; its item goes to another one.

    Raises:
        DeviceLostError: None is left; what was stored before stays stored.
    """
    workers = device.workers()
    if len(workers) > 1:
        _Farm(items, store, work).run(workers)
        return
    bench = Bench(device=workers[0], at_store=lambda question: question(store))
    for item in items:
        work(item, bench)


@dataclass(frozen=True, kw_only=True)
class _Question:
    ask: Callable[[Store], Any]
    answer: Future[Any]


@dataclass(frozen=True, kw_only=True)
class _Ended(Generic[Item]):
    bench: Bench
    item: Item
    done: Future[None]


class _Farm(Generic[Item]):
    """Hands items to idle workers and answers what they ask, all in the calling thread."""

    def __init__(
        self, items: Iterable[Item], store: Store, work: Callable[[Item, Bench], None]
    ) -> None:
        self._waiting = deque(items)
        self._store = store
        self._work = work
        self._inbox: SimpleQueue[_Question | _Ended[Item]] = SimpleQueue()
        self._busy = 0

    def run(self, workers: Sequence[Device]) -> None:
        """Return when every item is done."""
        benches = [Bench(device=worker, at_store=self._ask) for worker in workers]
        with ThreadPoolExecutor(len(benches)) as pool:
            try:
                self._serve(pool, deque(benches))
            finally:
                self._dismiss()

    def _ask(self, question: Callable[[Store], T]) -> T:
        """Ask from a worker's thread, and wait for the answer."""
        answer: Future[T] = Future()
        self._inbox.put(_Question(ask=question, answer=answer))
        return answer.result()

    def _serve(self, pool: ThreadPoolExecutor, idle: deque[Bench]) -> None:
        lost: DeviceLostError | None = None
        while self._waiting or self._busy:
            while self._waiting and idle:
                self._start(pool, idle.popleft(), self._waiting.popleft())
            if not self._busy:
                assert lost is not None
                raise lost
            event = self._inbox.get()
            if isinstance(event, _Question):
                self._answer(event)
                continue
            self._busy -= 1
            error = event.done.exception()
            if error is None:
                idle.append(event.bench)
                continue
            if not isinstance(error, DeviceLostError):
                raise error
            lost = error
            self._waiting.appendleft(event.item)
            log.warning("%s is lost; others do its work: %s", event.bench.device.name, error)

    def _start(self, pool: ThreadPoolExecutor, bench: Bench, item: Item) -> None:
        def ended(done: Future[None]) -> None:
            self._inbox.put(_Ended(bench=bench, item=item, done=done))

        self._busy += 1
        pool.submit(self._work, item, bench).add_done_callback(ended)

    def _answer(self, question: _Question) -> None:
        try:
            question.answer.set_result(question.ask(self._store))
        except BaseException as error:
            question.answer.set_exception(error)
            if not isinstance(error, Exception):
                raise  # Ctrl-C

    def _dismiss(self) -> None:
        """After an error: refuse what is still asked, so that each worker ends with its round."""
        while self._busy:
            with suppress(KeyboardInterrupt):  # it ends with the round all the same
                event = self._inbox.get()
                if isinstance(event, _Question):
                    event.answer.set_exception(CancelledError())
                else:
                    self._busy -= 1
