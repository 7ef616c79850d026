"""The artifact: a folder with a library, the stored weights, the plan and a manifest of hashes.

No pickle. Hashes protect against damage, not against a hostile author: loading an artifact loads
native code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpq_compile.errors import ArtifactError
from mpq_compile.kernels.tier import tier_named
from mpq_compile.lower.interface import Step
from mpq_compile.lower.parameters import Recipe, StoredSite, build_parameter
from mpq_compile.types import AuditRow, Plan, Verification

VERSION = 7
LIBRARY, WEIGHTS, PLAN, MANIFEST = "network.so", "weights.bin", "plan.json", "manifest.json"
VERIFICATION, HISTORY, TRACE = "verification.json", "history.json", "trace.json"
# What was measured of an artifact stands beside it: no part of its hash.
_BESIDE = (MANIFEST, VERIFICATION, HISTORY, TRACE)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What stands in ``manifest.json``.

    Args:
        tier: Tier of the kernels.
        threads: Threads the kernels use.
        arena: Bytes of the buffer in which the network computes; None where Relax's virtual
            machine runs it.
        inputs, outputs: ``{"shape": […], "dtype": …}`` of each tensor; of inputs also ``"name"``,
            that of the model's ``forward``.
        updates: Numbers of outputs that are inputs, changed in place, to those inputs' numbers.
        out_spec: JSON of the tree of outputs, or "" for a tuple.
        dynamic_batch: True where other batches run as slices of the compiled one.
        sites: Stored weights.
        recipes: Kernel parameters in order.
        arrays: ``{"name", "dtype", "offset", "count"}`` of what ``weights.bin`` holds.
        audit: What runs at each site.
        notes: What the compiler has to say, for instance operators that run in float.
        provenance: Versions and hashes.
        steps: The kernels that the library calls, in order; none where the virtual machine calls
            them, or where the artifact is of before they were kept.
    """

    tier: str
    threads: int
    arena: int | None
    inputs: Sequence[Mapping[str, Any]]
    outputs: Sequence[Mapping[str, Any]]
    updates: Mapping[int, int]
    out_spec: str
    dynamic_batch: bool
    sites: Mapping[str, StoredSite]
    recipes: Sequence[Recipe]
    arrays: Sequence[Mapping[str, Any]]
    audit: Sequence[AuditRow]
    notes: Sequence[str]
    provenance: Mapping[str, str]
    steps: Sequence[Step] = ()

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        data = asdict(self)
        data["recipes"] = [recipe.to_json() for recipe in self.recipes]
        data["updates"] = [list(pair) for pair in sorted(self.updates.items())]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Rebuild a manifest."""
        fields = dict(data)
        fields["sites"] = {
            name: StoredSite(**{**site, "shape": tuple(site["shape"])})
            for name, site in data["sites"].items()
        }
        fields["steps"] = [Step(**step) for step in data.get("steps", ())]
        fields["recipes"] = [Recipe(**recipe) for recipe in data["recipes"]]
        fields["updates"] = {place: index for place, index in data["updates"]}
        fields["audit"] = [AuditRow(**row) for row in data["audit"]]
        return cls(**fields)


def write_weights(path: Path, arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Write the arrays one after the other, without padding; return their index."""
    index: list[dict[str, Any]] = []
    offset = 0
    with open(path, "wb") as stream:
        for name, array in arrays.items():
            data = np.ascontiguousarray(array)
            stream.write(data.tobytes())
            index.append(
                {"name": name, "dtype": str(data.dtype), "offset": offset, "count": data.size}
            )
            offset += data.nbytes
    return index


def read_weights(path: Path, index: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Return the arrays that :func:`write_weights` wrote."""
    return {
        entry["name"]: np.fromfile(
            path, np.dtype(entry["dtype"]), entry["count"], offset=entry["offset"]
        )
        for entry in index
    }


def kernel_parameters(folder: Path, manifest: Manifest) -> list[np.ndarray]:
    """Return the kernels' parameters, flat, in the order and layout in which they are read."""
    arrays = read_weights(folder / WEIGHTS, manifest.arrays)
    tier = tier_named(manifest.tier)
    return [build_parameter(recipe, manifest.sites, arrays, tier) for recipe in manifest.recipes]


def seal(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` with the hashes of every file of the artifact, and its own."""
    files = {
        path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name not in _BESIDE
    }
    body = {"format": "mpq-artifact", "version": VERSION, "files": files, **manifest.to_json()}
    body["sha256"] = _digest(body)
    (folder / MANIFEST).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """Return the hex digest of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(body: Mapping[str, Any]) -> str:
    text = json.dumps({k: v for k, v in body.items() if k != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def open_artifact(folder: str | Path) -> tuple[Manifest, Plan]:
    """Read and check an artifact.

    Raises:
        ArtifactError: It is missing, damaged, incomplete or of another version.
    """
    folder = Path(folder)
    body = _read_manifest(folder)
    for name, expected in body["files"].items():
        path = folder / name
        found = sha256(path) if path.is_file() else "no such file"
        if found != expected:
            raise ArtifactError(
                "a file of the artifact is damaged or missing",
                where=str(path),
                expected=f"sha256 {expected}",
                found=found,
                remedy="copy the artifact again, or compile it again",
            )
    meta = ("format", "version", "files", "sha256")
    manifest = Manifest.from_json({k: v for k, v in body.items() if k not in meta})
    plan = Plan.from_json(json.loads((folder / PLAN).read_text(encoding="utf-8")))
    return manifest, plan


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(
            "not an artifact",
            where=str(folder),
            expected=f"a folder with {MANIFEST}",
            found="no such file" if folder.is_dir() else "no such folder",
            remedy="name the folder that net.save() or `mpq compile -o` wrote",
        )
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        intact = body["sha256"] == _digest(body)
    except (ValueError, KeyError, TypeError):
        body, intact = {}, False
    if not intact:
        raise ArtifactError(
            "the manifest is damaged",
            where=str(path),
            expected="JSON whose hash is the one it names",
            found="another content",
            remedy="copy the artifact again, or compile it again",
        )
    if body.get("version") != VERSION:
        raise ArtifactError(
            "the artifact is of another version",
            where=str(path),
            expected=str(VERSION),
            found=str(body.get("version")),
            remedy="compile the network again with this version",
        )
    return body


def read_verification(folder: Path) -> Verification | None:
    """Return the measurement that accepted the artifact, or None.

    Raises:
        ArtifactError: The file is damaged.
    """
    path = folder / VERIFICATION
    if not path.is_file():
        return None
    try:
        return Verification(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            "the verification beside the artifact is damaged",
            where=str(path),
            expected="what a verification wrote",
            found=str(error)[:200],
            remedy="delete the file; `mpq verify` measures, `mpq compile` also keeps what it found",
        ) from error


def write_verification(folder: Path, verification: Verification) -> None:
    """Put a measurement beside the artifact; the artifact itself does not change."""
    text = json.dumps(asdict(verification), indent=1) + "\n"
    (folder / VERIFICATION).write_text(text, encoding="utf-8")


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def put_in_place(source: Path, target: Path, mark: str = MANIFEST) -> None:
    """Copy a folder so that ``target`` is there as a whole or not at all.

    Args:
        mark: Name of a file that says that ``target`` may be replaced.

    Raises:
        ArtifactError: ``target`` is there and is something else, or it cannot be written.
    """
    try:
        _put_in_place(source, target, mark)
    except OSError as error:
        raise ArtifactError(
            "the folder cannot be written",
            where=str(target),
            expected="a folder that this user may make or replace, with room for the files",
            found=error.strerror or error,
            remedy="choose another folder",
        ) from error


def _put_in_place(source: Path, target: Path, mark: str) -> None:
    if target.exists() and not (_is_empty(target) or (target / mark).is_file()):
        raise ArtifactError(
            "the folder holds something else than what is to be written",
            where=str(target),
            expected=f"a new or empty folder, or one with {mark} to replace",
            found="other files",
            remedy="choose another folder",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    shutil.copytree(source, staging, dirs_exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    os.replace(staging, target)
