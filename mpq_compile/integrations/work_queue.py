"""Units of work in a store that processes share: who takes which, and what came out.

A unit belongs to the rank that first wrote its name beside it, in one atomic step; the leader may
take it over where that rank is lost. Tensors travel as safetensors, in pieces, for a message to a
store holds 8 MiB; a result is announced when all of it is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from safetensors.torch import load, save
from torch import Tensor
from torch.distributed import PrefixStore, Store

from mpq_compile.workpool import Results

_PIECE = 2**22
_POSTED, _DONE = "posted", "done"


@dataclass(frozen=True, kw_only=True)
class WorkQueue:
    """The queue of one piece of work.

    Args:
        store: Its part of the store.
        rank: Of this process.
        units: Names of the units.
    """

    store: Store
    rank: int
    units: tuple[str, ...]

    @classmethod
    def post(cls, store: Store, rank: int, key: str, units: Sequence[str]) -> WorkQueue:
        """Offer units to all ranks."""
        put(store, _POSTED, json.dumps({"key": key, "units": list(units)}).encode())
        return cls(store=store, rank=rank, units=tuple(units))

    @staticmethod
    def is_posted(store: Store) -> bool:
        """Tell whether there is a queue."""
        return store.check([_POSTED])

    @classmethod
    def join(cls, store: Store, rank: int) -> tuple[WorkQueue, str]:
        """Return the queue that was posted, and the hash of what its results depend on."""
        offered = json.loads(get(store, _POSTED))
        return cls(store=store, rank=rank, units=tuple(offered["units"])), offered["key"]

    def claims(self) -> Iterator[int]:
        """Yield the units that this rank got, each when the one before it is done."""
        own = str(self.rank).encode()
        for number in range(len(self.units)):
            if self.store.compare_set(f"by/{number}", "", str(self.rank)) == own:
                yield number

    def owner(self, number: int) -> int:
        """Return the rank that has a unit."""
        return int(self.store.get(f"by/{number}"))

    def deliver(self, number: int, results: Results) -> None:
        """Announce the results of a unit."""
        put(self.store, f"result/{number}", save(plain(results)))
        self.store.queue_push(_DONE, f"{number} {self.rank}")

    def delivered(self) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
        """Yield units, ranks and results that were announced since, out of the store."""
        for _ in range(self.store.queue_len(_DONE)):
            number, rank = map(int, self.store.queue_pop(_DONE).split())
            yield number, rank, load(get(self.store, f"result/{number}", remove=True))


def part(store: Store, *names: object) -> Store:
    """Return a part of a store, with keys of its own."""
    return PrefixStore("/".join(map(str, names)), store)


def put(store: Store, key: str, data: bytes) -> None:
    """Write bytes of any length; the key itself last."""
    pieces = range(0, len(data), _PIECE)
    for number, start in enumerate(pieces):
        # Bytes are taken; torch's stubs know of text alone.
        store.set(f"{key}/{number}", data[start : start + _PIECE])  # type: ignore[arg-type]
    store.set(key, str(len(pieces)))


def get(store: Store, key: str, remove: bool = False) -> bytes:
    """Read what ``put`` wrote."""
    names = [f"{key}/{number}" for number in range(int(store.get(key)))]
    data = b"".join(store.get(name) for name in names)
    for name in (key, *names) if remove else ():
        store.delete_key(name)
    return data


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors takes them: contiguous, none the view of another."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
