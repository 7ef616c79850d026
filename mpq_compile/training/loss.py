"""What training minimises: distance from the float network, or from labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from mpq_compile.calibrate import Batch
from mpq_compile.errors import CalibrationError, PlanError, nearest
from mpq_compile.sensitivity.heads import Head
from mpq_compile.sensitivity.labels import class_index

_TINY = 1e-30
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

    ``distillation`` compares the outputs of all sites with what the float network has there, each
    as a share of its power: Σ‖y_q − y‖² / Σ‖y‖², averaged over sites (after FitNets, arXiv
    1412.6550, and QFT, arXiv 2212.07634). Outputs alone tell little where the float network is
    sure of every sample, as on data that it was trained on. ``labels`` is the cross-entropy of
    the one output that holds class scores, ``both`` the sum.

    Args:
        name: distillation, labels or both.
        teacher: The float graph; called with flat inputs, it returns what the student returns.
        heads: How outputs are read, where labels are compared with them.
        outputs: How many of what both return are the network's outputs, after which those of
            sites follow; 0 where there are outputs alone.
    """

    name: str
    teacher: fx.GraphModule
    heads: Sequence[Head] = ()
    outputs: int = 0

    def __call__(self, found: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return what is minimised, a scalar."""
        return self._sum(found, batch, slice(self.outputs, None))

    def judged(self, found: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return what tells whether training has helped, a scalar: of the outputs alone."""
        return self._sum(found, batch, slice(self.outputs or None))

    def _sum(self, found: Sequence[Tensor], batch: Batch, compared: slice) -> Tensor:
        terms = []
        if self.name != "labels":
            with torch.no_grad():
                exact = self.teacher(*batch.inputs)
            pairs = zip(found[compared], exact[compared], strict=True)
            errors = [_relative_error(x, y) for x, y in pairs if y.is_floating_point()]
            terms.append(torch.stack(errors).mean())
        if self.name != "distillation":
            terms.append(self._cross_entropy(found, batch))
        return torch.stack(terms).sum()

    def _cross_entropy(self, found: Sequence[Tensor], batch: Batch) -> Tensor:
        heads = [head for head in self.heads if head.classes is not None]
        if batch.labels is None or len(heads) != 1:
            raise CalibrationError(
                "there is nothing to compare labels with",
                expected="batches of (inputs, labels), and one output of class scores",
                found="no labels" if batch.labels is None else f"{len(heads)} such outputs",
                remedy="add labels to the data, or use loss='distillation', which needs none",
            )
        scores = heads[0].scores(found)
        return -scores.gather(1, class_index(batch.labels, scores.shape)).mean()


def _relative_error(found: Tensor, exact: Tensor) -> Tensor:
    return (found - exact).square().mean() / exact.square().mean().clamp_min(_TINY)
