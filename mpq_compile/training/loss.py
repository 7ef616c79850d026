"""What training minimises: distance from the float network, or from labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from mpq_compile.calibrate import Batch
from mpq_compile.errors import CalibrationError, PlanError, nearest
from mpq_compile.sensitivity.heads import Head

LOSSES = ("distillation", "labels", "both")


def check_loss(name: str) -> None:
    """Raise ``PlanError`` for an unknown loss."""
    if name not in LOSSES:
        raise PlanError(
            f"unknown loss {name!r}",
            expected=f"one of {', '.join(LOSSES)}",
            found=repr(name),
            remedy=nearest(name, LOSSES),
        )


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss of a batch.

    ``distillation`` is KL(float ‖ quantized) of the outputs (Hinton et al., arXiv 1503.02531, at
    temperature 1), in nats for classes; it needs no labels. ``labels`` is the cross-entropy of the
    one output that holds class scores, ``both`` the sum of the two.

    Args:
        name: distillation, labels or both.
        teacher: The float graph; called with flat inputs.
        heads: How outputs are read.
    """

    name: str
    teacher: fx.GraphModule
    heads: Sequence[Head]

    def __call__(self, outputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return the mean over the samples of ``batch``, a scalar."""
        terms = []
        if self.name != "labels":
            terms.append(self.divergence(outputs, batch).mean())
        if self.name != "distillation":
            terms.append(self._cross_entropy(outputs, batch))
        return torch.stack(terms).sum()

    def divergence(self, outputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return the divergence from float of each sample, [B]."""
        with torch.no_grad():
            exact = self.teacher(*batch.inputs)
        found = [head.divergence(head.scores(exact), head.scores(outputs)) for head in self.heads]
        return torch.stack(found).sum(0)

    def _cross_entropy(self, outputs: Sequence[Tensor], batch: Batch) -> Tensor:
        heads = [head for head in self.heads if head.classes is not None]
        if batch.labels is None or len(heads) != 1:
            raise CalibrationError(
                "there is nothing to compare labels with",
                expected="batches of (inputs, labels), and one output of class scores",
                found="no labels" if batch.labels is None else f"{len(heads)} such outputs",
                remedy="add labels to the data, or use loss='distillation', which needs none",
            )
        scores = heads[0].scores(outputs)
        labels = batch.labels.reshape(len(scores), 1, -1).long()
        return -scores.gather(1, labels).mean()
