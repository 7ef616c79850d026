"""What runs a loaded library: one function for the whole network, or Relax's virtual machine.

Both take and return flat TVM tensors and serve one call at a time: the first computes in one
arena, the second keeps its registers between instructions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpq_compile.lower.arena import offsets_of


class Program:
    """Calls ``main(inputs…, parameters, arena, outputs…)``.

    Args:
        library: The loaded library.
        parameters: Kernel parameters, flat, in order.
        arena: Bytes in which the network computes.
        outputs: ``{"shape", "dtype"}`` of each output.
    """

    def __init__(
        self,
        library: Any,
        parameters: Sequence[np.ndarray],
        arena: int,
        outputs: Sequence[Mapping[str, Any]],
    ) -> None:
        import tvm

        self._main = library["main"]
        self._empty = tvm.runtime.empty
        self._outputs = [((int(np.prod(o["shape"])),), o["dtype"]) for o in outputs]
        self._parameters = tvm.runtime.tensor(_joined(parameters))
        self._arena = tvm.runtime.empty((arena // 4,), "int32")

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """Run the network; return TVM tensors."""
        outputs = [self._empty(shape, dtype) for shape, dtype in self._outputs]
        self._main(*inputs, self._parameters, self._arena, *outputs)
        return outputs


class Machine:
    """Relax's virtual machine, for what is no plain list of calls.

    Args:
        library: The loaded library.
        parameters: Kernel parameters, flat, in order.
    """

    def __init__(self, library: Any, parameters: Sequence[np.ndarray]) -> None:
        import tvm
        import tvm_ffi
        from tvm import relax

        self._machine = relax.VirtualMachine(library, tvm.cpu())
        self._main = self._machine["main"]
        self._parameters = tvm_ffi.convert([tvm.runtime.tensor(value) for value in parameters])

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """Run the network; return TVM tensors."""
        outputs = self._main(*inputs, self._parameters)
        return list(outputs) if not hasattr(outputs, "numpy") else [outputs]


def _joined(parameters: Sequence[np.ndarray]) -> np.ndarray:
    """Return all parameters in one buffer, each where the library expects it."""
    offsets, size = offsets_of([value.nbytes for value in parameters])
    joined = np.zeros(max(size, 1), np.uint8)
    for value, offset in zip(parameters, offsets, strict=True):
        joined[offset : offset + value.nbytes] = value.view(np.uint8)
    return joined
