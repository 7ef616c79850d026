"""A folder of images; folders in it are classes. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpq_compile.data.image_array import ImageTransform, pillow, transform_for
from mpq_compile.data.samples import Samples
from mpq_compile.data.wanted import Reading, Wanted
from mpq_compile.errors import CalibrationError

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"))
_SUFFIXES |= {".webp"}

# A file, and the number of its class where it has one.
Entry = tuple[Path, int | None]


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """A folder of images as calibration data.

    Folders in it are classes, numbered in the order of their names; a flat folder has no labels.
    Images are resized and cropped to the model's input and scaled to [0, 1]: see
    :class:`ImageTransform`.

    Args:
        path: The folder.
        mean, std: By channel or one for all, for values in [0, 1]; by default none is taken off.
        resize: Shorter side before the centre is cut out, in pixels; None for as short as fits.
            Networks of ImageNet are mostly evaluated with 256 for inputs of 224.
    """

    path: str | Path
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    resize: int | None = None

    def transform(self, wanted: Wanted) -> ImageTransform:
        """Return what brings its images to the model's input; raise where they cannot be."""
        return transform_for(wanted, self.resize, tuple(self.mean), tuple(self.std))

    def entries(self) -> list[Entry]:
        """Return its files, in order.

        Raises:
            CalibrationError: It is no folder, holds no image, or images beside classes.
        """
        root = Path(self.path)
        if not root.is_dir():
            raise _refused(root, "no such folder", "a file" if root.exists() else "nothing")
        flat = [path for path in _visible(root) if _is_image(path)]
        folders = [path for path in _visible(root) if path.is_dir()]
        classed: list[Entry] = [
            (path, i) for i, folder in enumerate(folders) for path in _images_below(folder)
        ]
        if flat and classed:
            found = f"{len(flat)} beside {len(folders)} folders"
            raise _refused(root, "images beside folders of images have no class", found)
        if not flat and not classed:
            raise _refused(root, "the folder holds no images", _census(root))
        return classed or [(path, None) for path in flat]


def accepts(data: Any) -> bool:
    """Tell whether ``data`` is a folder's path, or one with options."""
    return isinstance(data, ImageFolder) or (isinstance(data, (str, Path)) and Path(data).is_dir())


def read(data: Any, wanted: Wanted) -> Reading:
    """Return images that are drawn, with their labels, decoded as they are asked for."""
    folder = data if isinstance(data, ImageFolder) else ImageFolder(path=data)
    transform, entries = folder.transform(wanted), folder.entries()
    chosen = [entries[i] for i in wanted.chosen(len(entries))]
    return Reading(
        items=((_decoded(path, transform), label) for path, label in chosen),
        what=f"{folder.path}: {wanted.how(len(entries))}",
        notes=(transform.how,),
    )


def read_images(folder: ImageFolder, wanted: Wanted) -> Samples:
    """Return images that are drawn, in the order of their paths."""
    transform, entries = folder.transform(wanted), folder.entries()
    chosen = [entries[i] for i in sorted(wanted.chosen(len(entries)))]
    labels = [label for _, label in chosen if label is not None]
    images = np.stack([_decoded(path, transform) for path, _ in chosen])
    return Samples(
        path=Path(folder.path),
        inputs={wanted.names[0]: images},
        labels=np.asarray(labels) if labels else None,
    )


def _decoded(path: Path, transform: ImageTransform) -> np.ndarray:
    image = pillow()
    try:
        with image.open(path) as opened:
            return transform(opened)
    # Pillow raises whatever a decoder stumbles over.
    except (OSError, ValueError, SyntaxError, EOFError, image.DecompressionBombError) as error:
        raise CalibrationError(
            "an image cannot be read",
            where=str(path),
            expected="a whole image file",
            found=f"{type(error).__name__}: {str(error)[:200]}",
            remedy="replace or remove the file",
        ) from error


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and path.is_file()


def _images_below(folder: Path) -> Iterator[Path]:
    for path in _visible(folder):
        if path.is_dir():
            yield from _images_below(path)
        elif _is_image(path):
            yield path


def _census(folder: Path) -> str:
    others = sorted({path.suffix or path.name for path in _visible(folder) if path.is_file()})
    return f"files of other kinds ({', '.join(others[:5])})" if others else "nothing"


def _refused(path: Path, message: str, found: str) -> CalibrationError:
    return CalibrationError(
        message,
        where=str(path),
        expected="a folder of images, or of folders of images, one a class",
        found=found,
        remedy=f"images are files that end in {', '.join(sorted(_SUFFIXES))}",
    )
