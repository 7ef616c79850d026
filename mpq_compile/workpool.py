"""Work in units: the seam between what is computed and the processes that compute it.

A unit is a pure function of inputs that all processes of a pool share, so any of them may compute
it, and another may do it again. Whoever asks for units puts their results together in an order of
its own: what comes out does not depend on how many processes there are. Without a pool, units are
computed here, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Results = Mapping[str, "Tensor"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """Units that are to be computed.

    Args:
        key: Returns a hash of all that the results depend on.
        units: Their names, each once.
        compute: From the name of a unit to its results.
    """

    key: Callable[[], str]
    units: Sequence[str]
    compute: Callable[[str], Results]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Enough to do the same work elsewhere, in a process with the same network and data.

    Args:
        name: Of what is done.
        options: JSON data.
        tensors: What else it takes.
    """

    name: str
    options: Mapping[str, Any]
    tensors: Results = field(default_factory=dict)


Perform = Callable[[Task], None]


class WorkPool(Protocol):
    """Processes that compute units together."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def results(self, work: Work) -> Iterator[tuple[str, Results]]:
        """Yield each unit with its results, in any order."""

    def sharing(self, task: Callable[[], Task]) -> AbstractContextManager[None]:
        """Let the other processes perform the task whose work comes up in the context."""

    def opened(self, prepare: Callable[[], Perform]) -> None:
        """Tell that this process has network and data from now on.

        A process that only helps performs tasks here, with what ``prepare`` returns, and does not
        come back.
        """


class OneProcess:
    """This process alone."""

    size = 1

    def results(self, work: Work) -> Iterator[tuple[str, Results]]:
        """Compute the units in their order."""
        for unit in work.units:
            yield unit, work.compute(unit)

    def sharing(self, task: Callable[[], Task]) -> AbstractContextManager[None]:
        """Do nothing: there is nobody to share with."""
        return nullcontext()

    def opened(self, prepare: Callable[[], Perform]) -> None:
        """Go on."""


_ALONE = OneProcess()
_pool: ContextVar[WorkPool] = ContextVar("work pool", default=_ALONE)


def current_pool() -> WorkPool:
    """Return the pool of this thread's context."""
    return _pool.get()


@contextmanager
def using(pool: WorkPool) -> Iterator[None]:
    """Compute units in ``pool``."""
    token = _pool.set(pool)
    try:
        yield
    finally:
        _pool.reset(token)


def titled(title: str) -> str:
    """Return the title of a progress bar, with the number of processes where there are several."""
    size = current_pool().size
    return title if size == 1 else f"{title}, {size} ranks"
