"""TVM's runtime without its compiler, which running an artifact never needs.

``import tvm`` loads LLVM: half a second, and 150 MB that stay resident. What runs a library is in
two small libraries beside it. A process may still import tvm, before or after.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mpq_compile.errors import DeviceError

# What kernels assume of the memory that they read and write.
ALIGNMENT = 64
# Of x86-64, and of aarch64 where pages are of 4 kB.
HUGE_PAGE = 2 * 1024 * 1024
# The machine itself; sorting and other functions that it calls by name.
_LIBRARIES = (("tvm_runtime", "RTLD_GLOBAL"), ("tvm_runtime_extra", "RTLD_LOCAL"))
# Arguments of vm_initialization: DLPack's kind and index of the CPU, and the pooled allocator.
_CPU, _FIRST, _POOLED = 1, 0, 2


def load_library(path: Path) -> Any:
    """Load a shared library that TVM exported; its functions do not keep it loaded."""
    return _loaded_runtime().load_module(str(path.resolve()))


def start_machine(library: Any) -> Any:
    """Return a virtual machine for a library that ``relax.build`` made."""
    machine = library["vm_load_executable"]()
    machine["vm_initialization"](_CPU, _FIRST, _POOLED)
    return machine


def empty(cells: int, dtype: str) -> Any:
    """Return a tensor whose content is not set."""
    return _loaded_runtime().from_dlpack(aligned_memory(cells * np.dtype(dtype).itemsize, dtype))


def as_tensor(value: Any) -> Any:
    """Return a flat array (NumPy, torch) as a tensor, without a copy where it is aligned."""
    ffi = _loaded_runtime()
    if isinstance(value, np.ndarray):
        return ffi.from_dlpack(_aligned(value))
    # A slice of a larger tensor may not be aligned.
    return ffi.from_dlpack(value if value.data_ptr() % ALIGNMENT == 0 else _aligned(value.numpy()))


def as_tuple(tensors: Sequence[Any]) -> Any:
    """Return tensors as one argument of a library's function."""
    return _loaded_runtime().convert(list(tensors))


def as_array(tensor: Any) -> np.ndarray:
    """Return a copy of a tensor."""
    return np.array(np.from_dlpack(tensor))


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """Return a copy of a flat array that tensors can share."""
    copy = aligned_memory(array.nbytes, array.dtype)
    copy[...] = array
    return copy


def shareable(value: Any) -> bool:
    """Tell whether a tensor can share an array's (NumPy, torch) memory, to change it too."""
    if isinstance(value, np.ndarray):
        flags = value.flags
        return bool(value.ctypes.data % ALIGNMENT == 0 and flags.writeable and flags.c_contiguous)
    return bool(value.data_ptr() % ALIGNMENT == 0 and value.is_contiguous())


def is_tensor(value: Any) -> bool:
    """Tell whether a library's function returned one tensor, not several."""
    return isinstance(value, _loaded_runtime().Tensor)


def _aligned(array: np.ndarray) -> np.ndarray:
    # DLPack refuses arrays that may not be written to.
    if array.ctypes.data % ALIGNMENT == 0 and array.flags.writeable:
        return array
    return aligned_copy(array.reshape(-1)).reshape(array.shape)


def aligned_memory(size: int, dtype: Any) -> np.ndarray:
    """Return a flat array of so many bytes that tensors can share; its content is not set."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype)


def huge_memory(size: int) -> np.ndarray:
    """Return so many zero bytes on huge pages, where the system has some to give.

    Pages of 4 kB lie all over the physical memory, otherwise in each process: which of them share
    sets of a cache is chance, and a virtual machine translates each address twice.
    """
    # Shared memory, the default, has huge pages by another setting of the system. The last page is
    # one only if the mapping covers all of it.
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, (-(-size // HUGE_PAGE) + 1) * HUGE_PAGE, flags=private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    content = np.frombuffer(memory, np.uint8)
    start = -content.ctypes.data % HUGE_PAGE
    return content[start : start + size]


@cache
def _loaded_runtime() -> Any:
    """Load the libraries once a process; return the module of tvm_ffi."""
    with torch_left_out():
        import tvm_ffi
        from tvm_ffi.libinfo import load_lib_ctypes
    if "tvm" in sys.modules:
        return tvm_ffi
    package = find_spec("tvm")
    if package is None or not package.submodule_search_locations:
        raise DeviceError(
            "TVM is not installed", expected="apache-tvm", remedy="pip install apache-tvm"
        )
    folder = Path(package.submodule_search_locations[0]) / "lib"
    for name, mode in _LIBRARIES:
        load_lib_ctypes("tvm", name, mode, extra_lib_paths=[folder])
    return tvm_ffi


@contextmanager
def torch_left_out() -> Iterator[None]:
    """Keep tvm_ffi from importing torch, which it does on its own where it finds it.

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
