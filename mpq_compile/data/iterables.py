"""Batches as they are: an array, or anything that yields them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from mpq_compile.data.wanted import Reading, Wanted


def accepts(data: Any) -> bool:
    """Tell whether ``data`` can be gone through, and is no text and no mapping."""
    return isinstance(data, Iterable) and not isinstance(data, (str, bytes, Mapping))


def read(data: Any, wanted: Wanted) -> Reading:
    """Return the batches; an array by itself is one."""
    single = isinstance(data, (Tensor, np.ndarray))
    return Reading(items=iter([data] if single else data), what=type(data).__name__)
