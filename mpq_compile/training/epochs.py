"""The batches of each epoch, from what the user has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from mpq_compile.calibrate import Batch, read_batches
from mpq_compile.data.batches import read_data
from mpq_compile.data.sources import source_of
from mpq_compile.errors import CalibrationError
from mpq_compile.passes.network import Network


class Epochs(Protocol):
    """Batches, epoch after epoch."""

    @property
    def steps(self) -> int:
        """Batches of an epoch."""

    def epoch(self, number: int) -> Iterator[Batch]:
        """Iterate over the batches of an epoch, from 0."""


def read_epochs(
    loader: Any, network: Network, batch_size: int, seed: int, samples: int | None = None
) -> Epochs:
    """Return the epochs of a loader.

    A tensor, a list or a one-shot iterable is pooled and shuffled anew for each epoch, and so are
    ``samples`` (by default 256) of a data set or a folder. What has a length and gives batches
    whenever it is asked, such as a ``DataLoader``, is taken as it comes: it shuffles and augments
    by itself.

    Raises:
        CalibrationError: No data, or a batch that does not fit the network.
    """
    iterated_anew = isinstance(loader, Iterable) and isinstance(loader, Sized)
    single = source_of(loader).single
    if iterated_anew and not single and not isinstance(loader, (Tensor, Sequence)):
        return _Loader(loader=loader, network=network)
    batches = read_data(loader, network, samples, seed).batches
    if not network.captured.dynamic_batch:
        return _Shuffled(batches=batches, seed=seed)
    return _Pool(batches=batches, batch_size=batch_size, seed=seed)


@dataclass(frozen=True, kw_only=True)
class _Loader:
    loader: Any
    network: Network

    @property
    def steps(self) -> int:
        return len(self.loader)

    def epoch(self, number: int) -> Iterator[Batch]:
        empty = True
        for item in self.loader:
            empty = False
            yield from read_batches([item], self.network)
        if empty:
            raise CalibrationError(
                "the loader gives no batches",
                where=f"epoch {number}",
                expected="the same data whenever it is iterated over",
                found="nothing",
                remedy="pass a list of batches, or a DataLoader",
            )


@dataclass(frozen=True, kw_only=True)
class _Shuffled:
    """Whole batches in a new order each epoch, for networks that fix their batch."""

    batches: Sequence[Batch]
    seed: int

    @property
    def steps(self) -> int:
        return len(self.batches)

    def epoch(self, number: int) -> Iterator[Batch]:
        for i in _order(len(self.batches), self.seed, number):
            yield self.batches[i]


@dataclass(frozen=True, kw_only=True)
class _Pool:
    """Samples in a new order each epoch; a last batch that is not full is left out."""

    batches: Sequence[Batch]
    batch_size: int
    seed: int
    _inputs: tuple[Tensor, ...] = field(init=False, repr=False)
    _labels: Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        columns = zip(*(batch.inputs for batch in self.batches), strict=True)
        object.__setattr__(self, "_inputs", tuple(torch.cat(column) for column in columns))
        labels = [batch.labels for batch in self.batches if batch.labels is not None]
        known = len(labels) == len(self.batches)
        object.__setattr__(self, "_labels", torch.cat(labels) if known else None)

    @property
    def _size(self) -> int:
        return min(self.batch_size, len(self._inputs[0]))

    @property
    def steps(self) -> int:
        return len(self._inputs[0]) // self._size

    def epoch(self, number: int) -> Iterator[Batch]:
        order = torch.tensor(_order(len(self._inputs[0]), self.seed, number))
        for chosen in order[: self.steps * self._size].split(self._size):
            yield Batch(
                inputs=tuple(value[chosen] for value in self._inputs),
                labels=None if self._labels is None else self._labels[chosen],
            )


def _order(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    return torch.randperm(count, generator=generator).tolist()
