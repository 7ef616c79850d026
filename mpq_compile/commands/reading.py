"""Files that commands read: data (.npz), plans, policies, problems (.json). Imports no torch."""

from __future__ import annotations

import json
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator

from mpq_compile.errors import CalibrationError, MpqError, PlanError
from mpq_compile.search.policy import Policy
from mpq_compile.types import Plan

SCHEMAS = Path(__file__).resolve().parents[1] / "schemas"
LABELS = "labels"
_BROKEN = (OSError, ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Samples of a ``.npz`` file.

    Args:
        path: The file.
        inputs: The model's inputs by name, in the order of the file, each [samples, ...].
        labels: [samples, ...] or None.
    """

    path: Path
    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray | None = None

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(next(iter(self.inputs.values())))


def read_data(path: Path) -> Data:
    """Read a ``.npz`` file: arrays batch-first, the one named ``labels`` apart. No pickle.

    Raises:
        CalibrationError: No such file, no ``.npz``, object arrays, nothing in it, lengths that
            differ, or values that are not finite.
    """
    arrays = _arrays(path)
    for name, array in arrays.items():
        _check_array(array, f"{path}: array {name!r}")
    labels = arrays.pop(LABELS, None)
    if not arrays:
        raise CalibrationError(
            "the file holds no input",
            where=str(path),
            expected=f"an array of inputs, and optionally {LABELS!r}",
            found=f"only {LABELS!r}" if labels is not None else "no arrays",
            remedy="save with np.savez(path, x=inputs, labels=labels)",
        )
    data = Data(path=path, inputs=arrays, labels=labels)
    _check_lengths(data)
    return data


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise _no_file(CalibrationError, path, "an .npz file")
    if not zipfile.is_zipfile(path):
        single = path.read_bytes()[:6] == b"\x93NUMPY"
        raise _not_an_archive(path, "a single array (.npy)" if single else "another kind of file")
    arrays: dict[str, np.ndarray] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                arrays[name] = _native(archive[name])
    except _BROKEN as error:
        raise _not_an_archive(path, error) from error
    return arrays


def _native(array: Any) -> np.ndarray:
    """Return a contiguous array in this machine's byte order; refuse what is no array."""
    if not isinstance(array, np.ndarray):
        raise ValueError("a member that is not an array")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)


def _not_an_archive(path: Path, found: object) -> CalibrationError:
    return CalibrationError(
        "the data cannot be read",
        where=str(path),
        expected="an .npz file of plain arrays, as np.savez writes it",
        found=found,
        remedy="save numbers, not objects, with np.savez(path, x=inputs, labels=labels)",
    )


def _no_file(kind: type[MpqError], path: Path, expected: str) -> MpqError:
    return kind(
        "no such file",
        where=str(path),
        expected=expected,
        found="a folder" if path.is_dir() else "nothing",
        remedy="correct the path",
    )


def _check_array(array: np.ndarray, where: str) -> None:
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise CalibrationError(
            "the array does not hold numbers",
            where=where,
            expected="float32, or another plain number type that the model takes",
            found=str(array.dtype),
            remedy="convert it before saving",
        )
    if not array.ndim or not len(array):
        raise CalibrationError(
            "the array holds no samples",
            where=where,
            expected="[samples, ...] with at least one sample",
            found=str(list(array.shape)),
            remedy="put the samples along the first axis",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = ~np.isfinite(array).reshape(len(array), -1)
        raise CalibrationError(
            "the data is not finite",
            where=where,
            expected="finite numbers",
            found=f"{bad.sum()} NaN or infinite values, the first in sample {bad.any(1).argmax()}",
            remedy="remove or repair these samples",
        )


def _check_lengths(data: Data) -> None:
    arrays = dict(data.inputs) if data.labels is None else {**data.inputs, LABELS: data.labels}
    if len({len(array) for array in arrays.values()}) > 1:
        raise CalibrationError(
            "the arrays hold different numbers of samples",
            where=str(data.path),
            expected=f"{data.samples} in each, as in {next(iter(arrays))!r}",
            found=", ".join(f"{name}: {len(array)}" for name, array in arrays.items()),
            remedy="put the samples along the first axis of every array",
        )


def read_json(path: Path) -> Any:
    """Parse a JSON file, or standard input for ``-``; raise ``PlanError`` where it is not JSON."""
    place = "standard input" if str(path) == "-" else str(path)
    if str(path) != "-" and not path.is_file():
        raise _no_file(PlanError, path, "a JSON file")
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        return json.loads(text)
    except json.JSONDecodeError as error:
        place, found = f"{place}:{error.lineno}", f"{error.msg} at column {error.colno}"
    except (UnicodeDecodeError, RecursionError) as error:
        found = str(error)
    raise PlanError(
        "the file is not JSON",
        where=place,
        expected="one JSON object in UTF-8",
        found=found,
        remedy="correct the file, or write it again",
    )


def schema(name: str) -> dict[str, Any]:
    """Return a published JSON schema: ``plan``, ``policy`` or ``problem``."""
    text = (SCHEMAS / f"{name}.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def read_plan(path: Path) -> Plan:
    """Read a plan that ``mpq plan -o`` wrote, or that of an artifact, which is checked first.

    Raises:
        PlanError: The file is not a plan.
        ArtifactError: The folder is no artifact, or a damaged one.
    """
    if path.is_dir():
        from mpq_compile.runtime.artifact import open_artifact

        return open_artifact(path)[1]
    return Plan.from_json(_valid(path, "plan", "mpq plan"))


def read_policy(path: Path) -> Policy:
    """Read a policy that ``mpq search -o`` wrote; raise ``PlanError`` where it is none."""
    return Policy.from_json(_valid(path, "policy", "mpq search"))


def _valid(path: Path, kind: str, verb: str) -> Any:
    """Return the data of a JSON file that its schema allows."""
    data = read_json(path)
    errors = sorted(Draft202012Validator(schema(kind)).iter_errors(data), key=_depth)
    if errors:
        raise PlanError(
            f"not a {kind}",
            where=f"{path}: {errors[0].json_path}",
            expected=f"a {kind} as `{verb} -o` writes it (schemas/{kind}.json)",
            found=errors[0].message[:200],
            remedy=f"make the {kind} again with `{verb}`",
        )
    return data


def _depth(error: Any) -> int:
    return len(error.absolute_path)
