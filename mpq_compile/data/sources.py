"""Every kind of calibration data that is understood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mpq_compile.data import hugging_face, images, iterables, npz, torch_data
from mpq_compile.data.wanted import Reading, Wanted
from mpq_compile.errors import CalibrationError


@dataclass(frozen=True, kw_only=True)
class Source:
    """One kind of data.

    Args:
        accepts: Tells it from others.
        read: Opens it.
        single: True where what it yields are samples, not batches.
    """

    accepts: Callable[[Any], bool]
    read: Callable[[Any, Wanted], Reading]
    single: bool


# The first that accepts the data reads it.
SOURCES: Mapping[str, Source] = {
    "folder of images": Source(accepts=images.accepts, read=images.read, single=True),
    ".npz file": Source(accepts=npz.accepts, read=npz.read, single=False),
    # Before Dataset, and before what can be gone through: both may be that too.
    "Hugging Face data set": Source(
        accepts=hugging_face.accepts, read=hugging_face.read, single=True
    ),
    "DataLoader": Source(
        accepts=torch_data.accepts_loader, read=torch_data.read_loader, single=False
    ),
    "Dataset": Source(
        accepts=torch_data.accepts_dataset, read=torch_data.read_dataset, single=True
    ),
    "iterable of batches": Source(accepts=iterables.accepts, read=iterables.read, single=False),
}


def source_of(data: Any) -> Source:
    """Return what reads the user's data.

    Raises:
        CalibrationError: It is of no kind that is understood.
    """
    for source in SOURCES.values():
        if source.accepts(data):
            return source
    raise CalibrationError(
        "no calibration data",
        expected=f"one of: {', '.join(SOURCES)}",
        found=type(data).__name__,
        remedy="pass a few dozen representative inputs, e.g. [x1, x2, ...]",
    )
