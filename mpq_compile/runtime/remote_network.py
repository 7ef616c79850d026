"""A network on a device behind RPC: uploaded once a session, run on arrays that are sent."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpq_compile.runtime.artifact import MANIFEST, open_artifact, sha256
from mpq_compile.runtime.connection import Connection
from mpq_compile.runtime.executor import check_in_place, check_inputs, is_torch
from mpq_compile.runtime.service import PREFIX

# Runs an action with the device's present connection, again with another one where it is lost.
Steadily = Callable[[Callable[[Connection], Any]], Any]
_NUMBERS = itertools.count()


def uploaded(connection: Connection, folder: Path) -> str:
    """Copy an artifact to the device, as far as it is not there; return its name there."""
    place = f"artifact-{sha256(folder / MANIFEST)[:32]}"
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    # The manifest comes last: with it the artifact is whole.
    names = [*manifest["files"], MANIFEST]
    for name in connection.call("expect", folder=place, files=names):
        connection.upload(folder / name, f"{place}/{name}")
    return place


class RemoteNetwork:
    """A network that was loaded on a device.

    Args:
        folder: Its artifact, here.
        steadily: Gives actions the device's connection.

    Raises:
        DeviceError: The device lacks what its kernels need.
    """

    def __init__(self, folder: Path, steadily: Steadily) -> None:
        self._folder = folder
        self._steadily = steadily
        self._manifest, _ = open_artifact(folder)
        self._uploaded: tuple[Connection, str] | None = None
        steadily(lambda connection: connection.call("load", folder=self._place(connection)))

    def run(self, inputs: Sequence[Any], in_place: bool = False) -> list[Any]:
        """Run on arrays or torch tensors of any whole number of batches; same kind out.

        Caches travel there and back; ``in_place`` only changes what was passed, too.

        Raises:
            MpqError: Number, shape or dtype of the inputs is wrong.
            DeviceLostError: The device does not answer any more.
        """
        check_inputs(inputs, self._manifest)
        if in_place:
            check_in_place(inputs, self._manifest)
        as_torch = is_torch(inputs[0])
        arrays = [value.detach().numpy() if as_torch else value for value in inputs]
        outputs = self._steadily(lambda connection: self._run(connection, arrays))
        if in_place:
            for place, index in self._manifest.updates.items():
                arrays[index][...] = outputs[place]
                outputs[place] = arrays[index]
        if not as_torch:
            return outputs
        import torch

        return [torch.from_numpy(output) for output in outputs]

    def _place(self, connection: Connection) -> str:
        """Return the artifact's name there; it is uploaded once a session."""
        if self._uploaded is None or self._uploaded[0] is not connection:
            self._uploaded = connection, uploaded(connection, self._folder)
        return self._uploaded[1]

    def _run(self, connection: Connection, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        place = self._place(connection)
        given, made = (f"{kind}{next(_NUMBERS)}.npz" for kind in ("inputs", "outputs"))
        packed = io.BytesIO()
        np.savez(packed, *arrays)
        content = bytearray(packed.getbuffer())
        connection.do(lambda session: session.upload(content, given), "sending inputs")
        connection.call("run_network", folder=place, inputs=given, outputs=made)
        fetch = PREFIX + "fetch"
        answer = connection.do(lambda s: bytes(s.get_function(fetch)(made)), "fetching outputs")
        with np.load(io.BytesIO(answer), allow_pickle=False) as outputs:
            return [outputs[name] for name in outputs.files]
