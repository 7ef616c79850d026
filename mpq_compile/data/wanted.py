"""What a source of data is asked for: the inputs that a model takes, and how many samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

# Samples that are drawn from what holds more than calibration needs, where no number is given.
DRAWN = 256
# Samples of a batch, at most, where the network leaves that free.
MAX_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a model takes, and how many samples of it are to be read.

    Args:
        names: Names of the inputs, as the model's ``forward`` has them.
        shapes: Shapes of the inputs, batch first, those of the example.
        dtypes: Their types by NumPy's names, such as "float32".
        samples: Most samples to be read; None for all of what was made for calibration, and for
            ``DRAWN`` of a data set or a folder.
        seed: Which samples are drawn where there are more.
        fixed: True where the model takes batches of the example's length only.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    samples: int | None = None
    seed: int = 0
    fixed: bool = False

    @property
    def batch(self) -> int:
        """Samples to read at a time: the example's, where the model takes no others."""
        return self.shapes[0][0] if self.fixed and self.shapes[0] else MAX_BATCH

    def chosen(self, total: int) -> np.ndarray:
        """Return indices of the samples to be read out of ``total``, in the order to read them.

        The order is drawn too: data sets are often sorted by class.
        """
        count = min(total, self.most)
        return np.random.default_rng(self.seed % 2**63).permutation(total)[:count]

    @property
    def most(self) -> int:
        """Most samples of a data set."""
        return DRAWN if self.samples is None else self.samples

    def how(self, total: int) -> str:
        """Say which samples of ``total`` are read."""
        count = min(total, self.most)
        return f"{count:,} of {total:,} samples, drawn with seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Data that a source has opened.

    Args:
        items: Batches, each a tensor or an array, a tuple of the model's inputs, such inputs and
            labels, or a mapping from names to columns; or single samples, of the same forms.
        what: What is read, for the plan.
        notes: What the user should know of how it is read.
    """

    items: Iterator[Any]
    what: str
    notes: tuple[str, ...] = ()
