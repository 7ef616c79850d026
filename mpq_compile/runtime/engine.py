"""What runs a loaded library: one function for the whole network, or Relax's virtual machine.

Both take flat tensors, which any library may own, and serve one call at a time: the first
computes in one arena, the second keeps its registers between instructions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mpq_compile.errors import DeviceError
from mpq_compile.lower.arena import offsets_of
from mpq_compile.lower.interface import REFERENCE, REFERENCE_CELLS, REFERENCE_FLAGS, TRACED
from mpq_compile.runtime.native import (
    ALIGNMENT,
    as_tensor,
    as_tuple,
    empty,
    huge_memory,
    is_tensor,
    load_library,
    start_machine,
)

# Makes a flat tensor of so many elements of a dtype.
Make = Callable[[int, str], Any]


class Program:
    """Calls ``main(inputs…, parameters, arena, outputs…)``.

    Args:
        library: Path of the library.
        parameters: Kernel parameters, flat, in order.
        arena: Bytes in which the network computes.
        outputs: ``{"shape", "dtype"}`` of each output.
        updates: Numbers of outputs that are inputs, changed in place, to those inputs' numbers.
    """

    def __init__(
        self,
        library: Path,
        parameters: Sequence[np.ndarray],
        arena: int,
        outputs: Sequence[Mapping[str, Any]],
        updates: Mapping[int, int],
    ) -> None:
        self._library = load_library(library)
        self._main = self._library["main"]
        kinds = [(math.prod(output["shape"]), str(output["dtype"])) for output in outputs]
        self._made = [kind for place, kind in enumerate(kinds) if place not in updates]
        self._updates = sorted(updates.items())
        weights, memory = joined(parameters, arena)
        self._arena = memory.view(np.int32)
        self._lent = as_tensor(weights), as_tensor(self._arena)

    def __call__(self, inputs: Sequence[Any], make: Make = empty) -> list[Any]:
        """Run the network; return the flat tensors that ``make`` made, and the changed inputs."""
        outputs = [make(cells, dtype) for cells, dtype in self._made]
        self._main(*inputs, *self._lent, *outputs)
        for place, index in self._updates:
            outputs.insert(place, inputs[index])
        return outputs

    def traced(self, inputs: Sequence[Any], stamps: int) -> tuple[list[Any], np.ndarray]:
        """Run the network; return its outputs and the times that it wrote down.

        Args:
            inputs: As of a call.
            stamps: How many times it writes, int64 ns.
        """
        self._arena[0] = TRACED
        try:
            outputs = self(inputs)
        finally:
            self._arena[0] = 0
        words = stamps * np.dtype(np.int64).itemsize // self._arena.itemsize
        return outputs, self._arena[len(self._arena) - words :].view(np.int64).copy()

    def reference(self, cells: np.ndarray, table: np.ndarray) -> Callable[[], Any]:
        """Return the library's reference workload on what tasks work on, ready to be called."""
        return _reference(self._library, cells, table)


class Machine:
    """Relax's virtual machine, for what is no plain list of calls.

    Args:
        library: Path of the library.
        parameters: Kernel parameters, flat, in order.
    """

    def __init__(self, library: Path, parameters: Sequence[np.ndarray]) -> None:
        self._library = load_library(library)
        self._machine = start_machine(self._library)
        self._main = self._machine["main"]
        self._parameters = as_tuple([as_tensor(value) for value in parameters])

    def __call__(self, inputs: Sequence[Any], make: Make = empty) -> list[Any]:
        """Run the network; return TVM tensors: the machine makes them itself."""
        outputs = self._main(*inputs, self._parameters)
        return [outputs] if is_tensor(outputs) else list(outputs)

    def traced(self, inputs: Sequence[Any], stamps: int) -> tuple[list[Any], np.ndarray]:
        """Raise: the machine's kernels are not timed one by one."""
        raise DeviceError("Relax's virtual machine does not say when it calls a kernel")

    def reference(self, cells: np.ndarray, table: np.ndarray) -> Callable[[], Any]:
        """Return the library's reference workload on what tasks work on, ready to be called."""
        return _reference(self._library, cells, table)


def _reference(library: Any, cells: np.ndarray, table: np.ndarray) -> Callable[[], Any]:
    # A virtual machine's library imports the one that holds the functions.
    function = library.get_function(REFERENCE, query_imports=True)
    flags = empty(len(cells) // REFERENCE_CELLS * REFERENCE_FLAGS, "int32")
    return partial(function, as_tensor(cells), as_tensor(table), flags)


def joined(parameters: Sequence[np.ndarray], behind: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return all parameters in one buffer, each where the library expects it, and zeros behind it.

    Both in one piece need fewer pages than two would.
    """
    offsets, size = offsets_of([value.nbytes for value in parameters])
    memory = huge_memory(max(size, ALIGNMENT) + behind)
    for value, offset in zip(parameters, offsets, strict=True):
        memory[offset : offset + value.nbytes] = value.view(np.uint8)
    return memory[: max(size, 1)], memory[max(size, ALIGNMENT) :]


def placed(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return copies of flat arrays in memory as parameters have it: what times a kernel by itself
    would else time pages that a network does not run on."""
    memory, _ = joined(arrays)
    offsets, _ = offsets_of([array.nbytes for array in arrays])
    return [
        memory[offset : offset + array.nbytes].view(array.dtype)
        for array, offset in zip(arrays, offsets, strict=True)
    ]
