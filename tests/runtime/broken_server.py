"""Servers that are wrong in one way each: ``broken_server.py FAULT --tracker … --key …``."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from mpq_compile.runtime import serve, service
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


def compute_nothing() -> None:
    """Let every kernel return at once."""
    service.register()
    import tvm
    from tvm.rpc import server
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)
    def nothing(a: T.handle) -> None:
        T.evaluate(0)

    server._load_module = lambda path: tvm.compile(nothing).mod


FAULTS = {
    "networks": lambda: service.register(WrongNetworks),
    "version": lambda: service.register(OldVersion),
}

if __name__ == "__main__":
    given = serve.parser().parse_args(sys.argv[2:])
    address = Address.parse(f"{given.tracker}/{given.key}")
    serve.serve(address, port=given.port, functions=FAULTS[sys.argv[1]])
