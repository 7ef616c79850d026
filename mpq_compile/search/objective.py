"""What a search lowers: the cross-entropy of labels, and what the bits cost.

    L = CE + λ · complexity                     [source: EdMIPS, GMPQ], λ is given
    L = CE + λ_t · complexity / budget          [derived], λ_t follows the budget

A weight λ says nothing to a user and differs from network to network; a budget does not. For one,
the price is raised while the expected cost is above it and lowered while it is below, as in the
method of multipliers: with h = complexity / budget − 1,

    λ_t = max(0, μ_t + κ h)        μ_{t+1} = max(0, μ_t + η h)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpq_compile.calibrate import Batch
from mpq_compile.errors import CalibrationError
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.sensitivity.heads import Head, find_heads
from mpq_compile.sensitivity.slices import Slice

# κ and η: nats for a cost of twice the budget, at once and after each step that it stays there.
_GAIN, _RATE = 1.0, 0.1


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a unit of complexity costs at a step, in nats.

    Args:
        limit: Complexity that the budget allows; None where ``fixed`` is the price.
        fixed: λ of the published loss.
        pressure: μ.
    """

    limit: float | None
    fixed: float = 0.0
    pressure: float = 0.0

    def at(self, complexity: float) -> float:
        """Return nats a unit of complexity."""
        if self.limit is None:
            return self.fixed
        return max(0.0, self.pressure + _GAIN * (complexity / self.limit - 1)) / self.limit

    def after(self, complexity: float) -> Price:
        """Return the price of the next step."""
        if self.limit is None:
            return self
        raised = self.pressure + _RATE * (complexity / self.limit - 1)
        return Price(limit=self.limit, fixed=self.fixed, pressure=max(0.0, raised))


def labelled_head(graph: QuantizedGraph, batches: Sequence[Batch], method: str) -> Head:
    """Return the first output that holds class scores.

    Raises:
        CalibrationError: A batch has no labels, no output has classes, or a label is none of them.
    """
    for index, batch in enumerate(batches):
        if batch.labels is None:
            raise CalibrationError(
                f"the search {method!r} needs labels",
                where=f"batch {index}",
                expected="batches of (inputs, labels)",
                found="inputs only",
                remedy="give labels, or plan with a metric without them, such as metric='kl'",
            )
    heads = find_heads(graph, [Slice(start=0, batch=batches[0])])
    head = next((head for head in heads if head.classes is not None), None)
    if head is None:
        raise CalibrationError(
            f"the search {method!r} needs class scores",
            expected="an output [batch, classes]",
            found="regressions only",
            remedy="plan with a metric for regressions, such as metric='sqnr'",
        )
    with torch.no_grad():
        outputs = graph.module(*batches[0].inputs)
    _check_labels(head.scores(outputs).shape, batches)
    return head


def _check_labels(shape: Sequence[int], batches: Sequence[Batch]) -> None:
    _, classes, positions = shape
    for index, batch in enumerate(batches):
        labels = batch.labels
        assert labels is not None
        fitting = labels.numel() == len(batch.inputs[0]) * positions
        if labels.is_floating_point() or not fitting:
            raise CalibrationError(
                "labels do not match the class scores",
                where=f"batch {index}",
                expected=f"{positions} integer labels for each sample",
                found=f"{labels.dtype} {list(labels.shape)}",
                remedy="give the number of the right class for each position of the output",
            )
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise CalibrationError(
                "a label is no class of the network",
                where=f"batch {index}",
                expected=f"0 to {classes - 1}",
                found=f"{int(labels.min())} to {int(labels.max())}",
                remedy="number the classes as the network's outputs are",
            )


def cross_entropy(head: Head, outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Return −log p of the labels, a scalar: the mean over samples and positions."""
    scores = head.scores(outputs)
    index = labels.reshape(scores.shape[0], 1, scores.shape[2]).long()
    return -scores.gather(1, index).mean()
