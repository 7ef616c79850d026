"""What an output says: class scores, or a regression; and how far two outputs lie apart.

A head turns an output into *scores* whose likelihood is simple: log-probabilities of a categorical
distribution for each position, or values with normal errors of variance σ². The Kullback–Leibler
divergence from float is the loss of the metrics built on it: for classes in nats, averaged over
positions; for a regression ‖Δy‖² / 2σ² with σ² the mean of ‖y‖² over samples, which is half the
noise-to-signal ratio. Several outputs are independent: their divergences add [derived].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mpq_compile.errors import CalibrationError
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.sensitivity.slices import Slice

_TINY = 1e-30


@dataclass(frozen=True, kw_only=True)
class Head:
    """One output.

    Args:
        index: Its number among the network's outputs.
        classes: Axis of the classes; None for a regression.
        normalized: True where the output holds probabilities, the network's own softmax.
        power: σ², for a regression.
    """

    index: int
    classes: int | None
    normalized: bool = False
    power: float = 1.0

    def scores(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return log-probabilities [B, K, positions], or values [B, elements, 1] over σ."""
        value = outputs[self.index]
        if self.classes is None:
            return value.flatten(1).unsqueeze(2) / self.power**0.5
        moved = value.movedim(self.classes, 1).flatten(2) if value.dim() > 2 else value[..., None]
        if self.normalized:
            moved = moved.clamp_min(_TINY).log()
        return moved.log_softmax(1)

    def divergence(self, exact: Tensor, found: Tensor) -> Tensor:
        """Return KL(exact ‖ found) of each sample, [B], from scores."""
        if self.classes is None:
            return (found - exact).square().sum((1, 2)) / 2
        return (exact.exp() * (exact - found)).sum(1).mean(1).clamp_min(0.0)

    def displacement(self, exact: Tensor, found: Tensor) -> Tensor:
        """Return φ, [B, elements], whose ½‖φ‖² is the divergence to second order.

        For classes φ = 2 (√q − √p), which is bounded: ½‖φ‖² is the squared Hellinger distance,
        times four.
        """
        if self.classes is None:
            return (found - exact).flatten(1)
        positions = exact.shape[2]
        return (2.0 / positions**0.5 * ((found / 2).exp() - (exact / 2).exp())).flatten(1)


def find_heads(graph: QuantizedGraph, slices: Sequence[Slice]) -> tuple[Head, ...]:
    """Return how each float output is read.

    [B, K], also with axes of length one after it, holds class scores where K ≥ 2. More axes do
    where integer labels of the remaining shape are given: [B, K, ...] and [B, ..., K]. Everything
    else is a regression. Integer outputs tell nothing and are left out.

    Raises:
        CalibrationError: No output is float with the batch as first axis.
    """
    values = graph.float_values(slices[0].batch)
    outputs = values["output"]
    heads = [
        _head(index, value, slices[0].batch.labels)
        for index, value in enumerate(outputs)
        if _usable(value, slices[0].size)
    ]
    if not heads:
        raise CalibrationError(
            "no output tells how far a quantized network is from the float one",
            expected="a float output whose first axis is the batch",
            found=", ".join(f"{v.dtype} {list(v.shape)}" for v in outputs),
            remedy="return class scores or values, batch first, or use metric='roundoff'",
        )
    return _with_power(graph, slices, heads)


def _usable(value: object, size: int) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dim() > 0
        and len(value) == size
    )


def _head(index: int, value: Tensor, labels: Tensor | None) -> Head:
    axis = _class_axis(value, labels)
    if axis is None:
        return Head(index=index, classes=None)
    sums = value.sum(axis)
    normalized = bool((value >= 0).all() and ((sums - 1).abs() < 1e-3).all())
    return Head(index=index, classes=axis, normalized=normalized)


def _class_axis(value: Tensor, labels: Tensor | None) -> int | None:
    shape = tuple(value.shape)
    if len(shape) >= 2 and shape[1] >= 2 and all(size == 1 for size in shape[2:]):
        return 1
    if len(shape) < 3 or labels is None or labels.is_floating_point():
        return None
    for axis in (1, len(shape) - 1):
        if tuple(labels.shape) == shape[:axis] + shape[axis + 1 :]:
            return axis
    return None


def _with_power(
    graph: QuantizedGraph, slices: Sequence[Slice], heads: Sequence[Head]
) -> tuple[Head, ...]:
    """Measure the mean of ‖y‖² of each regression."""
    if all(head.classes is not None for head in heads):
        return tuple(heads)
    totals, count = dict.fromkeys(range(len(heads)), 0.0), 0
    for part in slices:
        graph.assign({})
        with torch.no_grad():
            outputs = graph.module(*part.batch.inputs)
        count += part.size
        for i, head in enumerate(heads):
            totals[i] += float(outputs[head.index].double().square().sum())
    return tuple(
        head if head.classes is not None else replace(head, power=max(totals[i] / count, _TINY))
        for i, head in enumerate(heads)
    )
