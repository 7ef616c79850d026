"""Samples in a ``.npz`` file, as the inputs of a model. Imports no torch."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mpq_compile.data.samples import LABELS, Samples
from mpq_compile.data.wanted import Reading, Wanted
from mpq_compile.errors import CalibrationError

_BROKEN = (OSError, ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile)


def accepts(data: Any) -> bool:
    """Tell whether ``data`` is a path, of no folder, or what was read from one."""
    return isinstance(data, Samples) or (isinstance(data, (str, Path)) and not Path(data).is_dir())


def read(data: Any, wanted: Wanted) -> Reading:
    """Return the file as one batch: inputs in the order of the model's, ``labels`` apart."""
    samples = data if isinstance(data, Samples) else read_npz(Path(data))
    refuse_float64(samples)
    samples = in_order(samples, wanted.names)
    inputs = tuple(samples.inputs.values())
    item = inputs if samples.labels is None else (inputs, samples.labels)
    return Reading(items=iter([item]), what=str(samples.path))


def read_npz(path: Path) -> Samples:
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
    _check_lengths(path, arrays if labels is None else {**arrays, LABELS: labels})
    return Samples(path=path, inputs=arrays, labels=labels)


def refuse_float64(samples: Samples) -> None:
    """Raise ``CalibrationError`` for inputs of NumPy's default type."""
    for name, array in samples.inputs.items():
        if array.dtype == "float64":
            raise CalibrationError(
                "the array has NumPy's default type, which networks do not take",
                where=f"{samples.path}: array {name!r}",
                expected="float32",
                found="float64",
                remedy=f"save {name}.astype(np.float32)",
            )


def in_order(samples: Samples, names: Sequence[str], least: int | None = None) -> Samples:
    """Return samples with an array for each input of a model, in the model's order.

    Arrays go to inputs by name where all of them have the inputs' names, and else in the order of
    the file.

    Args:
        samples: As they were read.
        names: Of the inputs, as the model's ``forward`` has them.
        least: How many of the inputs must be there, the first ones; None for all.

    Raises:
        CalibrationError: Too many or too few arrays, or one that has the name of an input and
            stands in another's place.
    """
    arrays = samples.inputs
    if not (len(names) if least is None else least) <= len(arrays) <= len(names):
        raise _misfit("the arrays are not those of the model's inputs", samples, names)
    wanted = names[: len(arrays)]
    if set(wanted) == set(arrays):
        return replace(samples, inputs={name: arrays[name] for name in wanted})
    if any(name in names and name != place for name, place in zip(arrays, wanted, strict=True)):
        raise _misfit("an array stands in another input's place", samples, names)
    return samples


def _misfit(message: str, samples: Samples, names: Sequence[str]) -> CalibrationError:
    return CalibrationError(
        message,
        where=str(samples.path),
        expected=f"arrays {', '.join(names)}, optionally {LABELS!r}",
        found=", ".join(samples.inputs),
        remedy="name the arrays like the parameters of forward, and leave all others out",
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise CalibrationError(
            "no such file",
            where=str(path),
            expected="an .npz file, or a folder of images",
            found="nothing",
            remedy="correct the path",
        )
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


def _check_lengths(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    if len({len(array) for array in arrays.values()}) > 1:
        first = next(iter(arrays))
        raise CalibrationError(
            "the arrays hold different numbers of samples",
            where=str(path),
            expected=f"{len(arrays[first])} in each, as in {first!r}",
            found=", ".join(f"{name}: {len(array)}" for name, array in arrays.items()),
            remedy="put the samples along the first axis of every array",
        )
