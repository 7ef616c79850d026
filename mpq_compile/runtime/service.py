"""What a device's server offers beside TVM's own functions: ``mpq.device.*``, JSON in and out.

These run in the process of a session, whose working directory holds what the client uploaded.
Neither torch nor a compiler is needed there.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mpq_compile.errors import MpqError
from mpq_compile.kernels.tier import host_flags, host_tiers
from mpq_compile.runtime.artifact import open_artifact
from mpq_compile.runtime.device import Device, LocalDevice
from mpq_compile.runtime.environment import process_limit_s
from mpq_compile.runtime.executor import Executor, request_amx
from mpq_compile.runtime.fingerprint import kernel_hash, toolchain_hash
from mpq_compile.runtime.native import torch_left_out
from mpq_compile.runtime.processes import FreshProcesses
from mpq_compile.runtime.timing import time_folders
from mpq_compile.runtime.trace import trace_folder

PREFIX = "mpq.device."
# Raised whenever a function or its data change: client and server must agree.
PROTOCOL = 3
# Loaded networks take memory; a client that asks for an older one has it loaded again.
_LOADED = 4


class Service:
    """The functions of one session. Made at its first call, before any kernel has run.

    Args:
        device: The machine that the server runs on.
    """

    def __init__(self, device: Device | None = None) -> None:
        self.device = device or LocalDevice()
        self._fresh = FreshProcesses(_measured, process_limit_s())
        self._lock = ExitStack()
        self._loaded: dict[str, Executor] = {}
        if self.device.tier.dot == "amx":
            request_amx()

    def describe(self) -> dict[str, Any]:
        """Say what this device is."""
        return {
            "protocol": PROTOCOL,
            "fingerprint": self.device.fingerprint,
            "tier": self.device.tier.name,
            "tiers": [tier.name for tier in host_tiers()],
            "threads": self.device.threads,
            "machine": platform.machine(),
            "host": platform.node(),
            "flags": sorted(host_flags()),
            "toolchain": toolchain_hash(),
            "kernels": kernel_hash(),
            "versions": versions(),
        }

    def conditions(self) -> dict[str, float | None]:
        """Return its present clock and load."""
        return asdict(self.device.conditions())

    def lock(self) -> None:
        """Wait for the lock of all that is timed on this machine, until the session ends."""
        self._lock.enter_context(self.device.lock())

    def unlock(self) -> None:
        """Give the lock back."""
        self._lock.close()

    def expect(self, folder: str, files: Sequence[str]) -> list[str]:
        """Make the folder of an artifact; return which of its files are still to be uploaded."""
        Path(folder).mkdir(exist_ok=True)
        return [name for name in files if not (Path(folder) / name).is_file()]

    def time_networks(self, folders: Sequence[str], blocks: int) -> dict[str, Any]:
        """Time artifacts in one fresh process; see ``Device.time_networks``."""
        return self._fresh.run(["time", list(folders), blocks])

    def trace_network(self, folder: str, calls: int) -> dict[str, Any]:
        """Time the kernels of an artifact in a fresh process; see ``Device.trace_network``."""
        return self._fresh.run(["trace", [folder], calls])

    def load(self, folder: str) -> None:
        """Load an artifact, or raise what says why it does not run here."""
        if folder not in self._loaded:
            while len(self._loaded) >= _LOADED:
                del self._loaded[next(iter(self._loaded))]
            manifest, _ = open_artifact(folder)
            self._loaded[folder] = Executor(Path(folder), manifest)

    def run_network(self, folder: str, inputs: str, outputs: str) -> None:
        """Run an artifact on the arrays of the file ``inputs``; write those of ``outputs``."""
        self.load(folder)
        with np.load(inputs, allow_pickle=False) as arrays:
            values = [arrays[name] for name in arrays.files]
        os.remove(inputs)
        with open(outputs, "wb") as stream:
            np.savez(stream, *self._loaded[folder].run(values))

    def fetch(self, file: str) -> bytes:
        """Return the content of a file in the session's folder, and remove it."""
        content = Path(file).read_bytes()
        os.remove(file)
        return content


def _measured(request: Sequence[Any]) -> dict[str, Any]:
    what, names, number = request
    folders = [Path(name) for name in names]
    if what == "trace":
        return trace_folder(folders[0], number).to_json()
    return time_folders(folders, number).to_json()


def versions() -> dict[str, str]:
    """Return the versions of what a client and a device must have in common, and of Python."""
    import tvm
    import tvm_ffi

    return {
        "tvm": str(tvm.__version__),
        "tvm_ffi": str(tvm_ffi.__version__),
        "python": platform.python_version(),
    }


FUNCTIONS = (
    "describe",
    "conditions",
    "lock",
    "unlock",
    "expect",
    "time_networks",
    "trace_network",
    "load",
    "run_network",
)


def register(make: Callable[[], Any] = Service) -> None:
    """Register the functions in this process; ``make`` gives a session's service."""
    with torch_left_out():
        import tvm  # noqa: F401 - its RPC
        import tvm_ffi

    services: list[Any] = []

    def function(name: str) -> Callable[[str], str]:
        def answer(arguments: str) -> str:
            if not services:
                services.append(make())
            return answered(getattr(services[0], name), json.loads(arguments))

        return answer

    for name in FUNCTIONS:
        tvm_ffi.register_global_func(PREFIX + name, function(name), override=True)

    def fetch(file: str) -> bytes:
        content: bytes = services[0].fetch(file)
        return content

    tvm_ffi.register_global_func(PREFIX + "fetch", fetch, override=True)


def answered(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Call a function; return its result or its error as JSON."""
    try:
        return json.dumps({"result": function(**arguments)})
    except MpqError as error:
        return json.dumps({"error": error.to_json()})
    except Exception as error:
        place = f"{platform.node()}, Python {sys.version_info.major}.{sys.version_info.minor}"
        found = f"{type(error).__name__}: {error}"[-2000:]
        text = {"error": "DeviceError", "message": "the device failed", "where": place}
        return json.dumps({"error": text | {"found": found}})
