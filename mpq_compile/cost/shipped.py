"""Measurements that come with the package, for devices that it was profiled on; read-only.

One file a device, ``hw_profiles/measurements/<fingerprint>.jsonl.gz``, an export of
``mpq profile``. A row serves where all of its key agrees: the device's fingerprint, the toolchain
and the kernels too. So rows of older kernels are never used, and a machine of another kind never
sees them. The user's own measurement of a key is preferred whatever its age.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from mpq_compile.cost.jsonl import read_jsonl
from mpq_compile.cost.measurement import Measurement, MeasurementKey, Row
from mpq_compile.cost.profile_file import PROFILE_DIR

SHIPPED_DIR = PROFILE_DIR / "measurements"
SUFFIX = ".jsonl.gz"


def shipped_measurements(
    keys: Iterable[MeasurementKey], folder: Path
) -> dict[MeasurementKey, Measurement]:
    """Return the shipped measurements of those keys that have one; none where MPQ_SHIPPED=0."""
    found = {}
    for key in keys:
        row = _rows_of(key.device, folder).get(key)
        if row is not None:
            found[key] = row
    return found


def shipped_items(device: str, operators: Sequence[str], folder: Path) -> list[Row]:
    """Return all shipped rows of some operators on a device."""
    return [row for row in _rows_of(device, folder).items() if row[0].operator in operators]


def _rows_of(device: str, folder: Path) -> Mapping[MeasurementKey, Measurement]:
    if os.environ.get("MPQ_SHIPPED") == "0":
        return {}
    path = _files(folder).get(device)
    return {} if path is None else _rows(path)


@cache
def _files(folder: Path) -> dict[str, Path]:
    """Return the files by device: a fingerprint is looked up and never made part of a path."""
    return {path.name.removesuffix(SUFFIX): path for path in folder.glob(f"*{SUFFIX}")}


@cache
def _rows(path: Path) -> dict[MeasurementKey, Measurement]:
    """Return the rows of a file, read once a process."""
    return dict(read_jsonl(path))
