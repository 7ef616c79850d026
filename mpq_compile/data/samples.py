"""Samples in memory, by the name of each input. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# What labels are called among named arrays and columns.
LABELS = "labels"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples of a file, or of a folder of images.

    Args:
        path: Where they come from.
        inputs: The model's inputs by name, in order, each [samples, ...].
        labels: [samples, ...] or None.
    """

    path: Path
    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray | None = None

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(next(iter(self.inputs.values())))

    def first(self, count: int | None) -> Samples:
        """Return the first ``count`` of them; all for None."""
        labels = None if self.labels is None else self.labels[:count]
        inputs = {name: array[:count] for name, array in self.inputs.items()}
        return Samples(path=self.path, inputs=inputs, labels=labels)
