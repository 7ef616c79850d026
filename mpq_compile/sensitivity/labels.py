"""Labels → an index into class scores."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mpq_compile.errors import CalibrationError


def class_index(labels: Tensor, shape: Sequence[int], where: str | None = None) -> Tensor:
    """Return labels as an index, int64 [B, 1, positions].

    Args:
        labels: A class number for each sample and position.
        shape: [B, classes, positions] of the scores.
        where: What to call the batch in errors.

    Raises:
        CalibrationError: Too many or too few labels, or one that is no class.
    """
    size, classes, positions = shape
    index = labels.long()
    wrong = labels[(index != labels) | (index < 0) | (index >= classes)]
    if len(wrong) or labels.numel() != size * positions:
        raise CalibrationError(
            "labels do not match the class scores",
            where=where,
            expected=f"{positions} integers from 0 to {classes - 1} for each sample: the output "
            f"has {classes} classes",
            found=f"the label {wrong[0].item():g}" if len(wrong) else str(list(labels.shape)),
            remedy="number the classes as the network's outputs are, and leave out samples "
            "without a class",
        )
    return index.reshape(size, 1, positions)
