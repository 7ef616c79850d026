"""One kernel on a device behind RPC. Its library, arrays and timer belong to the connection."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpq_compile.runtime.connection import Connection
from mpq_compile.runtime.kernel_timing import Run, block_calls


def remote_run(connection: Connection, library: Path, arrays: Sequence[np.ndarray]) -> Run:
    """Load a kernel on the device and call it; return what times one block, in seconds a call."""
    content = bytearray(library.read_bytes())
    key = connection.keep(lambda s: _load(s, library.name, content, arrays), "loading a kernel")

    def run() -> float:
        return connection.do(lambda _: _time(connection.objects[key]), "timing a kernel")

    weakref.finalize(run, connection.forget, key).atexit = False
    return run


def _load(session: Any, name: str, content: bytearray, arrays: Sequence[np.ndarray]) -> Any:
    """Return a timer and its arguments, on the device."""
    import tvm

    session.upload(content, name)
    module = session.load_module(name)
    session.remove(name)  # it is loaded
    device = session.cpu()
    arguments = [tvm.runtime.tensor(array, device) for array in arrays]
    call = module["main"]
    call(*arguments)
    start = time.perf_counter()
    call(*arguments)
    number = block_calls(time.perf_counter() - start)
    return module.time_evaluator("main", device, number=number, repeat=1), arguments


def _time(loaded: Any) -> float:
    evaluate, arguments = loaded
    return float(evaluate(*arguments).mean)
