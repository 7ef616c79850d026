"""Single samples → batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from mpq_compile.data.image_array import ImageTransform, is_image, transform_for
from mpq_compile.data.items import as_tensor, inputs_and_labels, labels_tensor
from mpq_compile.data.wanted import Wanted
from mpq_compile.errors import CalibrationError

Item = tuple[tuple[Tensor, ...], Tensor] | tuple[Tensor, ...]


class Collation:
    """Stacks samples to batches; images become what the model takes.

    Args:
        samples: In any of the forms of batches, without their first axis.
        wanted: What the model takes.

    Attributes:
        transform: What was done to images; None where there are none.
    """

    def __init__(self, samples: Iterable[Any], wanted: Wanted) -> None:
        self._samples, self._wanted = samples, wanted
        self.transform: ImageTransform | None = None

    def __iter__(self) -> Iterator[Item]:
        """Yield ``(inputs, labels)``, or inputs where not all samples have labels.

        Where the model fixes its batch, samples at the end that fill none are left out.

        Raises:
            CalibrationError: A sample that does not fit the model, by its number.
        """
        numbered = enumerate(self._samples)
        for part in _batched(numbered, self._wanted.batch):
            first, _ = part[0]
            if first and self._wanted.fixed and len(part) < self._wanted.batch:
                return
            rows = [self._row(sample, f"calibration sample {number}") for number, sample in part]
            columns = zip(*(inputs for inputs, _ in rows), strict=True)
            inputs = tuple(torch.stack(column) for column in columns)
            labels = [label for _, label in rows if label is not None]
            yield (inputs, torch.stack(labels)) if len(labels) == len(rows) else inputs

    def _row(self, sample: Any, where: str) -> tuple[tuple[Tensor, ...], Tensor | None]:
        wanted = self._wanted
        values, label = inputs_and_labels(sample, wanted, where)
        if len(values) != len(wanted.shapes):
            raise CalibrationError(
                "a sample does not fit the model's inputs",
                where=where,
                expected=f"{len(wanted.shapes)} inputs, optionally a label after them",
                found=f"{len(values)} values: {', '.join(type(v).__name__ for v in values)}",
                remedy="yield an input, a tuple of inputs, or (inputs, label) for each sample",
            )
        inputs = []
        for number, value in enumerate(values):
            made = self._made(value, wanted.dtypes[number])
            _check(made, wanted.shapes[number][1:], f"{where}, input {number}")
            inputs.append(made)
        return tuple(inputs), labels_tensor(label, where)

    def _made(self, value: Any, dtype: str) -> Any:
        if not is_image(value):
            return as_tensor(value, dtype)
        if self.transform is None:
            self.transform = transform_for(self._wanted)
        return torch.from_numpy(self.transform(value))


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    part: list[Any] = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def _check(value: Any, shape: tuple[int, ...], where: str) -> None:
    found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if found != list(shape):
        raise CalibrationError(
            "wrong shape of a sample",
            where=where,
            expected=str(list(shape)),
            found=found,
            remedy="bring all samples to the shape of the example's, without its batch",
        )
