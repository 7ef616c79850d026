"""One kernel on a device behind RPC. Its library, arrays and timer belong to the connection."""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpq_compile.runtime.connection import Connection
from mpq_compile.runtime.kernel_timing import block_calls

# A process that loads a second library of one name is given the first one.
_NUMBERS = itertools.count()


class RemoteRun:
    """A kernel on the device of a connection.

    Args:
        connection: Keeps what is loaded.
        library: The kernel's library, on this machine.
        arrays: Its arguments, the outputs last.
        output_count: How many of them are outputs.
    """

    def __init__(
        self,
        connection: Connection,
        library: Path,
        arrays: Sequence[np.ndarray],
        output_count: int,
    ) -> None:
        content, name = bytearray(library.read_bytes()), f"kernel{next(_NUMBERS)}.so"
        key = connection.keep(lambda s: _load(s, name, content, arrays), "loading a kernel")
        self._connection, self._key, self._output_count = connection, key, output_count
        weakref.finalize(self, connection.forget, key).atexit = False

    def time(self) -> float:
        """Time one block of calls; seconds a call."""
        return self._connection.do(lambda _: _time(self._loaded), "timing a kernel")

    def outputs(self) -> list[np.ndarray]:
        """Call it once; return what it wrote."""
        return self._connection.do(
            lambda _: _outputs(self._loaded, self._output_count), "running a kernel"
        )

    @property
    def _loaded(self) -> Any:
        return self._connection.objects[self._key]


def _load(session: Any, name: str, content: bytearray, arrays: Sequence[np.ndarray]) -> Any:
    """Return the kernel, its timer and its arguments, on the device."""
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
    return call, module.time_evaluator("main", device, number=number, repeat=1), arguments


def _time(loaded: Any) -> float:
    _, evaluate, arguments = loaded
    return float(evaluate(*arguments).mean)


def _outputs(loaded: Any, count: int) -> list[np.ndarray]:
    call, _, arguments = loaded
    call(*arguments)
    return [tensor.numpy() for tensor in arguments[-count:]]
