"""Runs the library of an artifact on this machine. Needs TVM's runtime, not torch."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpq_compile.errors import DeviceError, MpqError
from mpq_compile.kernels.tier import host_flags, host_tiers, tier_named
from mpq_compile.lower.interface import REFERENCE_CELLS, REFERENCE_TABLE
from mpq_compile.runtime.artifact import LIBRARY, Manifest, kernel_parameters
from mpq_compile.runtime.engine import Machine, Make, Program
from mpq_compile.runtime.native import (
    aligned_copy,
    as_array,
    as_tensor,
    empty,
    is_tensor,
    shareable,
)
from mpq_compile.runtime.threads import thread_count

_ARCH_REQ_XCOMP_PERM, _XTILEDATA = 0x1023, 18


class Executor:
    """A loaded network: flat arrays in, flat arrays out, for the compiled shapes.

    Args:
        folder: The artifact.
        manifest: Its manifest, already checked.

    Raises:
        DeviceError: This CPU lacks what the kernels need.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        tier = tier_named(manifest.tier)
        if tier not in host_tiers():
            raise DeviceError(
                f"the artifact was built for {tier.name}, which this CPU does not execute",
                where=str(folder),
                expected=", ".join(sorted(tier.flags)) or "another architecture",
                found="missing " + ", ".join(sorted(tier.flags - host_flags())),
                remedy="compile for this CPU, or with MPQ_TIER set to a tier that both have",
            )
        thread_count()
        if tier.dot == "amx":
            request_amx()
        self.manifest = manifest
        self._output_shapes = [tuple(spec["shape"]) for spec in manifest.outputs]
        parameters = kernel_parameters(folder, manifest)
        self._engine = _engine(folder / LIBRARY, parameters, manifest)
        self._lock = threading.Lock()

    def run_flat(self, inputs: Sequence[Any], make: Make = empty) -> list[Any]:
        """Run on contiguous flat arrays (NumPy, torch or TVM); return flat tensors, those that
        ``make`` made or TVM's. Inputs that the network updates are changed in place."""
        tensors = [value if is_tensor(value) else as_tensor(value) for value in inputs]
        with self._lock:
            return self._engine(tensors, make)

    def traced(self, inputs: Sequence[Any], shape: tuple[int, ...]) -> tuple[list[Any], np.ndarray]:
        """Run on flat tensors of TVM's; return the outputs and the times that were written down.

        Args:
            inputs: TVM tensors, flat.
            shape: [phases, tasks, 2] of all kernels: int64 ns at which each task began and ended.
        """
        with self._lock:
            outputs, stamps = self._engine.traced(inputs, math.prod(shape))
        return outputs, stamps.reshape(shape)

    def reference(
        self, cells: np.ndarray | None = None, table: np.ndarray | None = None
    ) -> Callable[[], Any]:
        """Return the fixed workload of the library: whether the machine is as usual.

        Args:
            cells: ``REFERENCE_CELLS`` float32 values of each thread, that it multiplies.
            table: ``REFERENCE_TABLE`` int32 numbers below that of each thread, that it looks up.
        """
        threads = self.manifest.threads
        if cells is None:
            cells = np.ones(threads * REFERENCE_CELLS, np.float32)
        if table is None:
            order = np.random.default_rng(0).permutation(REFERENCE_TABLE)
            table = np.tile(order.astype(np.int32), threads)
        return self._engine.reference(cells, table)

    def run(self, inputs: Sequence[Any], in_place: bool = False) -> list[Any]:
        """Run on arrays or torch tensors of any whole number of batches; same kind out.

        Inputs are left as they are; with ``in_place`` those that the network updates, such as a
        cache, are changed themselves and returned, which saves copying them.

        Raises:
            MpqError: Number, shape or dtype of the inputs is wrong, or an input cannot be changed
                in place.
        """
        check_inputs(inputs, self.manifest)
        as_torch = is_torch(inputs[0])
        compiled = [tuple(spec["shape"]) for spec in self.manifest.inputs]
        if in_place:
            check_in_place(inputs, self.manifest)
        if [tuple(value.shape) for value in inputs] == compiled:
            return self._run_once(inputs, as_torch, in_place)
        return self._run_slices(inputs, as_torch)

    def _run_once(self, inputs: Sequence[Any], as_torch: bool, in_place: bool = False) -> list[Any]:
        flat = [_contiguous(value, as_torch) for value in inputs]
        updates = self.manifest.updates
        if not in_place:
            for index in updates.values():
                flat[index] = _copied(flat[index], as_torch)
        outputs = self.run_flat(flat, _torch_tensor if as_torch else empty)
        results = []
        for place, (output, shape) in enumerate(zip(outputs, self._output_shapes, strict=True)):
            if place not in updates:
                results.append(_shaped(output, shape, as_torch))
                continue
            changed = updates[place]
            results.append(inputs[changed] if in_place else flat[changed].reshape(shape))
        return results

    def run_tensors(self, inputs: Sequence[Any]) -> list[Any]:
        """Run on torch tensors of the compiled shapes and types, which are not checked."""
        return self._run_once(inputs, True)

    def _run_slices(self, inputs: Sequence[Any], as_torch: bool) -> list[Any]:
        """Run another batch as slices of the compiled one.

        A batch that is no multiple ends with a slice of its last samples, some of which run
        twice; one that is smaller is filled up with its last sample. The results of a slice are
        copied into their place while they are in the cache.
        """
        size, total = self.manifest.inputs[0]["shape"][0], inputs[0].shape[0]
        if total < size:
            filled = [_fill(value, size, as_torch) for value in inputs]
            return [output[:total] for output in self._run_once(filled, as_torch)]
        joined = [
            np.empty((total, *spec["shape"][1:]), spec["dtype"]) for spec in self.manifest.outputs
        ]
        for first in slice_starts(total, size):
            part = [_contiguous(value[first : first + size], as_torch) for value in inputs]
            for index in self.manifest.updates.values():
                part[index] = _copied(part[index], as_torch)
            outputs = zip(joined, self.run_flat(part), self._output_shapes, strict=True)
            for whole, output, shape in outputs:
                whole[first : first + size] = np.from_dlpack(output).reshape(shape)
        return [_as_torch(whole) for whole in joined] if as_torch else joined


def check_inputs(inputs: Sequence[Any], manifest: Manifest) -> None:
    """Raise ``MpqError`` where number, shape or dtype of the inputs is wrong."""
    expected, dynamic = manifest.inputs, manifest.dynamic_batch
    fits = len(inputs) == len(expected) and all(
        _fits(value, spec, dynamic) for value, spec in zip(inputs, expected, strict=True)
    )
    fits = fits and len({is_torch(value) for value in inputs}) == 1
    if not fits or (dynamic and len({value.shape[0] for value in inputs}) > 1):
        raise MpqError(
            "wrong input",
            expected=", ".join(f"{s['dtype']}{list(s['shape'])}" for s in expected),
            found=", ".join(_described(value) for value in inputs),
            remedy="pass inputs like the example inputs"
            + ("; the batch may differ, the same for all of them" if dynamic else ""),
        )


def check_in_place(inputs: Sequence[Any], manifest: Manifest) -> None:
    """Raise ``MpqError`` where an input that the network updates cannot be changed in place."""
    for index in manifest.updates.values():
        compiled = tuple(manifest.inputs[index]["shape"])
        if tuple(inputs[index].shape) != compiled or not shareable(inputs[index]):
            raise MpqError(
                "an input cannot be changed in place",
                where=f"input {index}",
                expected=f"contiguous, aligned, writable memory of shape {list(compiled)}",
                found=_described(inputs[index]),
                remedy="pass what the last call returned, a clone, or leave in_place out",
            )


def slice_starts(total: int, size: int) -> list[int]:
    """Return the first sample of each slice of ``size`` of at least as many samples."""
    return [min(first, total - size) for first in range(0, total, size)]


def _engine(
    library: Path, parameters: Sequence[np.ndarray], manifest: Manifest
) -> Program | Machine:
    if manifest.arena is None:
        return Machine(library, parameters)
    return Program(library, parameters, manifest.arena, manifest.outputs, manifest.updates)


def _fits(value: Any, spec: Mapping[str, Any], dynamic: bool) -> bool:
    """Tell whether an array is one that the network takes, of any batch where that is free."""
    if not hasattr(value, "shape") or str(getattr(value, "device", "cpu")) != "cpu":
        return False
    shape, compiled = tuple(value.shape), tuple(spec["shape"])
    rest = len(shape) == len(compiled) and shape[1:] == compiled[1:]
    same_dtype = str(value.dtype).removeprefix("torch.") == spec["dtype"]
    return same_dtype and (shape == compiled or (dynamic and rest and shape[0] > 0))


def _described(value: Any) -> str:
    if not hasattr(value, "shape"):
        return type(value).__name__
    device = str(getattr(value, "device", "cpu"))
    kind = f"{value.dtype}{list(value.shape)}"
    return kind if device == "cpu" else f"{kind} on {device}"


def request_amx() -> None:
    """Ask Linux for the tile registers, once a process; harmless to repeat."""
    import ctypes

    ctypes.CDLL(None, use_errno=True).syscall(158, _ARCH_REQ_XCOMP_PERM, _XTILEDATA)


def is_torch(value: Any) -> bool:
    """Tell whether a value is torch's, without importing it."""
    return type(value).__module__.partition(".")[0] == "torch"


def _contiguous(value: Any, as_torch: bool) -> Any:
    if as_torch and value.is_contiguous():
        return value.detach().reshape(-1)
    # A copy by torch would wake its thread pool, which then spins beside TVM's for a while and
    # costs the network several times its own latency: NumPy copies in this thread.
    return np.ascontiguousarray(value.detach().numpy() if as_torch else value).reshape(-1)


def _copied(flat: Any, as_torch: bool) -> Any:
    """Return a copy of a flat array that a network may change."""
    copy = aligned_copy(flat.numpy() if as_torch else flat)
    return _as_torch(copy) if as_torch else copy


def _shaped(output: Any, shape: tuple[int, ...], as_torch: bool) -> Any:
    if not as_torch:
        return as_array(output).reshape(shape)
    import torch

    return (output if is_torch(output) else torch.from_dlpack(output)).view(shape)


def _torch_tensor(cells: int, dtype: str) -> Any:
    import torch

    return torch.empty(cells, dtype=getattr(torch, dtype))


def _fill(value: Any, size: int, as_torch: bool) -> Any:
    """Return an array with its last sample repeated up to ``size`` samples."""
    samples = value.detach().numpy() if as_torch else value
    filled = np.empty((size, *samples.shape[1:]), samples.dtype)
    filled[: len(samples)] = samples
    filled[len(samples) :] = samples[-1]
    return _as_torch(filled) if as_torch else filled


def _as_torch(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array)
