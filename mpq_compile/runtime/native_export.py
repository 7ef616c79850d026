"""An artifact for programs without Python: ``mpq export ARTIFACT --native DIR``.

The folder holds the library, the parameters as the kernels read them, and a text that says what
to allocate, one record a line. ``examples/cpp`` describes the format, reads it and runs it.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mpq_compile.errors import ArtifactError
from mpq_compile.kernels.tier import tier_named
from mpq_compile.runtime.artifact import (
    LIBRARY,
    Manifest,
    kernel_parameters,
    open_artifact,
    put_in_place,
)
from mpq_compile.runtime.engine import joined

VERSION = 1
DESCRIPTION, PARAMETERS = "network.txt", "parameters.bin"


def export_native(artifact: str | Path, folder: str | Path) -> Path:
    """Write the network of ``artifact`` to ``folder``, whole or not at all; return ``folder``.

    Parameters are packed for the kernels, so the files are larger than the artifact's weights
    where fewer than eight bits are stored.

    Raises:
        ArtifactError: The artifact is damaged, runs on Relax's virtual machine, or ``folder``
            holds something else than such an export.
    """
    artifact, folder = Path(artifact), Path(folder)
    manifest, _ = open_artifact(artifact)
    if manifest.arena is None:
        raise ArtifactError(
            "this network has no native form",
            where=str(artifact),
            expected="a network that is one function",
            found="one that Relax's virtual machine runs",
            remedy="run it from Python; compiled anew, the artifact's notes say what needs it",
        )
    with tempfile.TemporaryDirectory(prefix="mpq-native-") as staging:
        made = Path(staging)
        (made / LIBRARY).write_bytes((artifact / LIBRARY).read_bytes())
        weights, _ = joined(kernel_parameters(artifact, manifest))
        weights.tofile(made / PARAMETERS)
        lines = [f"mpq-network {VERSION}", *_records(manifest, made)]
        (made / DESCRIPTION).write_text("\n".join(lines) + "\n", encoding="ascii")
        put_in_place(made, folder, DESCRIPTION)
    return folder


def _records(manifest: Manifest, folder: Path) -> Iterator[str]:
    """Yield the lines of the description after the first."""
    tier = tier_named(manifest.tier)
    for kind, name in (("library", LIBRARY), ("parameters", PARAMETERS)):
        content = (folder / name).read_bytes()
        yield f"{kind} {name} {len(content)} {zlib.crc32(content):08x}"
    yield f"tier {tier.name}"
    yield " ".join(["flags", *sorted(tier.flags)])
    yield f"threads {manifest.threads}"
    yield f"arena {manifest.arena}"
    yield from (_tensor("input", spec) for spec in manifest.inputs)
    yield from (_tensor("output", spec) for spec in manifest.outputs)
    yield from (f"update {place} {index}" for place, index in manifest.updates.items())


def _tensor(kind: str, spec: Mapping[str, Any]) -> str:
    """Return the line of a tensor: its type as NumPy's files spell it, then its shape."""
    return " ".join([kind, np.dtype(spec["dtype"]).newbyteorder("<").str, *map(str, spec["shape"])])
