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
    """One kind of data: how it is told from others, and read."""

    accepts: Callable[[Any], bool]
    read: Callable[[Any, Wanted], Reading]


# The first that accepts the data reads it.
SOURCES: Mapping[str, Source] = {
    "folder of images": Source(accepts=images.accepts, read=images.read),
    ".npz file": Source(accepts=npz.accepts, read=npz.read),
    # Before Dataset, and before what can be gone through: both may be that too.
    "Hugging Face data set": Source(accepts=hugging_face.accepts, read=hugging_face.read),
    "DataLoader": Source(accepts=torch_data.accepts_loader, read=torch_data.read_loader),
    "Dataset": Source(accepts=torch_data.accepts_dataset, read=torch_data.read_dataset),
    "iterable of batches": Source(accepts=iterables.accepts, read=iterables.read),
}


def open_data(data: Any, wanted: Wanted) -> Reading:
    """Open the user's data.

    Raises:
        CalibrationError: It is of no kind that is understood, or cannot be read.
    """
    for source in SOURCES.values():
        if source.accepts(data):
            return source.read(data, wanted)
    raise CalibrationError(
        "no calibration data",
        expected=f"one of: {', '.join(SOURCES)}",
        found=type(data).__name__,
        remedy="pass a few dozen representative inputs, e.g. [x1, x2, ...]",
    )
