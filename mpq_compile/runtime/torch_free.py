"""Loading TVM without torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def torch_left_out() -> Iterator[None]:
    """Keep TVM from importing torch, which it does on its own where it finds it.

    That takes a second and a hundred megabytes, which a process that only runs an artifact does
    not need. Where torch is imported already, nothing changes.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]
