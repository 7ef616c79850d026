"""Servers that are wrong in one way each: ``broken_server.py FAULT --tracker … --key …``."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from mpq_compile.kernels.workload import LinearWorkload
from mpq_compile.runtime import serve, service
from mpq_compile.runtime.device import LocalDevice
from mpq_compile.runtime.rpc_address import Address


class WrongNetworks(service.Service):
    """Gives outputs that are off by one."""

    def run_network(self, folder: str, inputs: str, outputs: str) -> None:
        """Run, and change what came out."""
        super().run_network(folder, inputs, outputs)
        with np.load(outputs) as arrays:
            values = [arrays[name] + 1 for name in arrays.files]
        with open(outputs, "wb") as stream:
            np.savez(stream, *values)


class OldVersion(service.Service):
    """Has another TVM."""

    def describe(self) -> dict[str, Any]:
        """Say so."""
        found = super().describe()
        return found | {"versions": found["versions"] | {"tvm": "0.1.0"}}


# The one kernel that a device which computes nothing is asked for.
WORKLOAD = LinearWorkload(rows=4, in_features=32, out_features=32, compute="fp32", out="fp32")


def compute_nothing() -> None:
    """Give every client a kernel that returns at once, whatever it has uploaded."""
    service.register()
    import tvm
    from tvm import tirx
    from tvm.rpc import server

    from mpq_compile.lower.emit import kernel_function

    device = LocalDevice()
    real = kernel_function(WORKLOAD, device.tier, device.threads, None)
    idle = real.with_body(tirx.Evaluate(0)).with_attr("global_symbol", "main")
    built = tvm.compile(idle, target=tvm.target.Target(device.tier.target(device.threads)))
    server._load_module = lambda path: built.mod


FAULTS = {
    "networks": lambda: service.register(WrongNetworks),
    "kernels": compute_nothing,
    "version": lambda: service.register(OldVersion),
}

if __name__ == "__main__":
    given = serve.parser().parse_args(sys.argv[2:])
    address = Address.of(given.tracker, given.key)
    serve.serve(address, port=given.port, functions=FAULTS[sys.argv[1]])
