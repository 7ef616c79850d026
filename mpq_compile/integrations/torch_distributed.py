"""Several processes, on one machine or more, that share the work of one call.

Rank 0 leads: it runs the program, measures, solves and writes. The other ranks run it as far as
network and data; from there they compute units of work that rank 0 offers in the key-value store
of ``torch.distributed``. No collectives are used, which a lost process would break: ranks may come
late, fail or be killed, and rank 0 does again what they leave undone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache

from torch.distributed import DistError, Store
from torch.distributed.rendezvous import rendezvous

from mpq_compile.errors import DeviceLostError
from mpq_compile.integrations import launch
from mpq_compile.integrations.rank_helper import Dismissed, Helper
from mpq_compile.integrations.rank_leader import LEADER, Leader
from mpq_compile.integrations.work_queue import part
from mpq_compile.workpool import using

log = logging.getLogger(__name__)

LEASE_S, WAIT_S = 15.0, 30.0
_CONNECT = timedelta(seconds=300)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of a ``with mpq.distributed()``.

    Args:
        rank: Number of this process.
        size: How many were started.
        units: Units of work that each rank computed so far; complete on rank 0.
    """

    rank: int
    size: int
    units: Mapping[int, int] = field(default_factory=dict)

    @property
    def leads(self) -> bool:
        """Tell whether this is the process that has the results."""
        return self.rank == LEADER


@contextmanager
def distributed(lease_s: float = LEASE_S, wait_s: float = WAIT_S) -> Iterator[Ranks]:
    """Share what is computed in the context among the processes that torchrun started.

    The body runs on rank 0. On the other ranks it runs up to the first call that has a model and
    data (``plan``, ``compile``, ``assign``, ``frontier``, …): there they help until rank 0 leaves
    the context, and the rest of their body is skipped. So the body begins with what makes the model
    and the data, alike on all ranks, and results are used on rank 0 alone::

        with mpq.distributed() as ranks:
            plan = mpq.plan(model, example, data, metric="kl")
        if ranks.leads:
            print(plan.assignment)

    Where nothing was launched (no ``RANK``, ``WORLD_SIZE`` and so on), it is one rank alone.

    Args:
        lease_s: Silence after which a rank counts as lost and its work is done again, in seconds.
        wait_s: How long rank 0 waits for the others at first, and they for rank 0, in seconds.

    Raises:
        DeviceLostError: Rank 0 was lost; on the other ranks.
    """
    if not launch.launched():
        yield Ranks(rank=LEADER, size=1)
        return
    rank, size = launch.rank(), launch.world_size()
    try:
        with _pool(rank, size, lease_s, wait_s) as pool, using(pool):
            yield Ranks(rank=rank, size=size, units=pool.units)
    except Dismissed as end:
        log.info("rank %d: %s", rank, end)
    except DistError as error:
        raise DeviceLostError(
            "the store that the ranks share was lost",
            where=f"rank {rank}",
            expected=f"a store at {launch.address()}",
            found=str(error).splitlines()[0],
            remedy="start all ranks again: slices that were complete are not computed again",
        ) from error


def _pool(
    rank: int, size: int, lease_s: float, wait_s: float
) -> AbstractContextManager[Leader | Helper]:
    if rank == LEADER:
        return Leader.of_new_group(_store(), size, lease_s, wait_s)
    return nullcontext(Helper(store=_store(), rank=rank, size=size, lease_s=lease_s, wait_s=wait_s))


@lru_cache(maxsize=1)
def _store() -> Store:
    """Return this process's connection; where nothing else serves the store, rank 0 does."""
    return part(next(rendezvous("env://", timeout=_CONNECT))[0], "mpq")
