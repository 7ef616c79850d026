"""A folder of images as ``--data``, with what is to be done to them. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mpq_compile.commands import options
from mpq_compile.data.image_array import pillow
from mpq_compile.data.images import ImageFolder
from mpq_compile.errors import CalibrationError


def read_folder(path: Path, images: options.Images) -> ImageFolder:
    """Return the folder with the options that were given, looked through.

    Raises:
        CalibrationError: An option is no list of numbers, or there are no images.
        MpqError: Pillow is not installed.
    """
    given: dict[str, Any] = {
        name: _numbers(text, f"--{name}")
        for name, text in (("mean", images.mean), ("std", images.std))
        if text is not None
    }
    folder = ImageFolder(path=path, resize=images.resize, **given)
    pillow()
    folder.entries()
    return folder


def refuse_for_arrays(path: Path, images: options.Images) -> None:
    """Raise ``CalibrationError`` where options of images are given with something else."""
    given = [f"--{name}" for name, value in asdict(images).items() if value is not None]
    if given:
        raise CalibrationError(
            "arrays are taken as they are",
            where=str(path),
            expected="a folder of images",
            found=f"{', '.join(given)} with a file",
            remedy="leave the options out, or name a folder",
        )


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise CalibrationError(
            "not a list of numbers",
            where=option,
            expected="numbers with commas between, such as 0.485,0.456,0.406",
            found=repr(text),
            remedy="correct the option",
        ) from error
