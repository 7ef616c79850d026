"""One image → the array that a network takes. Imports neither torch nor, by itself, Pillow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from mpq_compile.data.wanted import Wanted
from mpq_compile.errors import CalibrationError, MpqError

# By number of channels, what Pillow calls such an image.
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Resize, crop, scale to [0, 1], normalise.

    The image is made as small as it can be with its shorter side at ``resize`` pixels (by default,
    with the crop just inside), the middle is cut out, and each channel c becomes
    (value / 255 − mean[c]) / std[c]. Grey images, palettes and such with transparency become what
    the channels ask for; transparency is dropped.

    Args:
        channels: 1 (grey) or 3 (red, green, blue).
        height, width: Of the result, in pixels.
        resize: Length of the shorter side before the cut, in pixels; None for as short as fits.
        mean, std: One number for all channels, or one for each.
    """

    channels: int
    height: int
    width: int
    resize: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __call__(self, image: Any) -> np.ndarray:
        """Return a Pillow image as float32 [channels, height, width]."""
        fitted = self._fitted(_eight_bits(image).convert(_MODES[self.channels]))
        values = np.asarray(fitted, np.float32).reshape(self.height, self.width, self.channels)
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        normal = (values / np.float32(255) - mean) / std
        return np.ascontiguousarray(normal.transpose(2, 0, 1))

    def _fitted(self, image: Any) -> Any:
        width, height = image.size
        scale = max(self.height / height, self.width / width, (self.resize or 0) / min(image.size))
        # Rounding must not leave it smaller than the cut.
        size = max(round(width * scale), self.width), max(round(height * scale), self.height)
        if size != image.size:
            image = image.resize(size, pillow().Resampling.BILINEAR)
        left, top = (size[0] - self.width) // 2, (size[1] - self.height) // 2
        return image.crop((left, top, left + self.width, top + self.height))

    @property
    def how(self) -> str:
        """Say what is done."""
        side = f"shorter side {self.resize}, " if self.resize else ""
        done = f"images: {side}centre {self.height} × {self.width}, scaled to [0, 1]"
        if set(self.mean) == {0.0} and set(self.std) == {1.0}:
            return f"{done}; no mean or deviation given: none is taken off"
        return f"{done}, mean {_listed(self.mean)}, deviation {_listed(self.std)}"


def transform_for(
    wanted: Wanted,
    resize: int | None = None,
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
) -> ImageTransform:
    """Return the transform that makes images fit the model.

    Raises:
        CalibrationError: The model does not take one batch of float images, or the numbers do not
            fit its channels.
    """
    shape = wanted.shapes[0] if len(wanted.shapes) == 1 else ()
    if len(shape) != 4 or shape[1] not in _MODES or wanted.dtypes[0] != "float32":
        found = ", ".join(
            f"{dtype} {list(s)}" for dtype, s in zip(wanted.dtypes, wanted.shapes, strict=True)
        )
        raise CalibrationError(
            "the model does not take images",
            expected="one float32 input [batch, channels, height, width] of 1 or 3 channels",
            found=found,
            remedy="pass arrays of what it takes: an .npz file, or batches",
        )
    for name, numbers in (("mean", mean), ("std", std)):
        _check_numbers(name, numbers, shape[1])
    return ImageTransform(
        channels=shape[1], height=shape[2], width=shape[3], resize=resize, mean=mean, std=std
    )


def _check_numbers(name: str, numbers: tuple[float, ...], channels: int) -> None:
    fit = len(numbers) in (1, channels) and all(map(math.isfinite, numbers))
    if fit and (name == "mean" or min(numbers) > 0):
        return
    above = "" if name == "mean" else " above 0"
    raise CalibrationError(
        f"the {name} of the images does not fit the model",
        expected=f"one number{above}, or one for each of {channels} channels",
        found=_listed(numbers) or "none",
        remedy="give those that the network was trained with, for values in [0, 1]",
    )


def _listed(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _eight_bits(image: Any) -> Any:
    """Return an image of 16 bits with the upper 8 of them; Pillow would cut off at 255."""
    if not image.mode.startswith("I;16"):
        if image.mode in ("I", "F"):
            raise ValueError(f"mode {image.mode}, whose range is not known")
        return image
    return pillow().fromarray((np.asarray(image) // 257).astype(np.uint8))


def is_image(value: Any) -> bool:
    """Tell whether ``value`` is an image of Pillow's; without the package, nothing is."""
    return type(value).__module__.startswith("PIL.") and hasattr(value, "convert")


def pillow() -> ModuleType:
    """Return Pillow's module of images; raise ``MpqError`` where it is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MpqError(
            "images need a package that is not installed",
            expected="Pillow",
            found=str(error),
            remedy="pip install 'mpq_compile[images]', or pass arrays in an .npz file",
        ) from error
    return Image
