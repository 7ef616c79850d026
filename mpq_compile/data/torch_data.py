"""PyTorch's own: a DataLoader yields batches, a Dataset single samples."""

from __future__ import annotations

from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from mpq_compile.data.wanted import Reading, Wanted


def accepts_loader(data: Any) -> bool:
    """Tell whether ``data`` is a DataLoader."""
    return isinstance(data, DataLoader)


def read_loader(data: Any, wanted: Wanted) -> Reading:
    """Return the batches of a loader, as many as it has.

    A loader that shuffles and has no generator of its own draws its order from torch's global
    one, which is seeded while data is read; one with a generator decides for itself.
    """
    return Reading(items=iter(data), what=f"DataLoader of {type(data.dataset).__name__}")


def accepts_dataset(data: Any) -> bool:
    """Tell whether ``data`` is a Dataset."""
    return isinstance(data, Dataset)


def read_dataset(data: Any, wanted: Wanted) -> Reading:
    """Return samples that are drawn; the first ones where a data set can only be gone through."""
    name = type(data).__name__
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        first = islice(iter(data), wanted.most)
        return Reading(items=first, what=f"{name}: the first samples")
    chosen = wanted.chosen(len(data))
    rows = (data[int(index)] for index in chosen)
    return Reading(items=rows, what=f"{name}: {wanted.how(len(data))}")
