"""Second-order Taylor loss with the empirical Fisher (MPQCO, arXiv 2110.06554).

With L = −log p_y the kept part of the Hessian is g gᵀ, g = ∇ log p_y, so

    ΔL_l(c) = 1/(2N) Σ_n (g_{n,l} · ΔW_l(c))²      [derived]

One backward pass serves all candidates (see ``gradients``). Needs labels, and vanishes where the
network is certain of them: ``fisher`` and ``gauss_newton`` do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpq_compile.calibrate import Batch
from mpq_compile.errors import CalibrationError
from mpq_compile.passes.network import Network
from mpq_compile.quant.calibration import Calibration
from mpq_compile.sensitivity.base import Choices
from mpq_compile.sensitivity.heads import Head
from mpq_compile.sensitivity.labels import class_index
from mpq_compile.sensitivity.quadratic import Quadratic
from mpq_compile.sensitivity.slices import Slice
from mpq_compile.types import SensitivityTable

_REMEDY = "use a metric without labels, such as metric='kl' or metric='sqnr'"


@dataclass(frozen=True, kw_only=True)
class TaylorMetric:
    """Empirical-Fisher loss increase; needs labels.

    Args:
        samples: Calibration samples that are used.
        memory_mb: Memory for what is kept of a slice of them, 10⁶ bytes.
        resume: Go on where an earlier run was stopped.
    """

    samples: int = 1024
    memory_mb: float = 1024.0
    resume: bool = True
    needs_labels: bool = True
    unit: str = "cross-entropy"

    def __call__(
        self,
        network: Network,
        calibration: Calibration,
        batches: Sequence[Batch],
        choices: Choices,
    ) -> SensitivityTable:
        for index, batch in enumerate(batches):
            if batch.labels is None:
                raise CalibrationError(
                    "the taylor metric needs labels",
                    where=f"calibration batch {index}",
                    expected="batches of (inputs, labels)",
                    found="inputs only",
                    remedy=f"give labels, or {_REMEDY}",
                )
        quadratic = Quadratic.of(self, "taylor", network, calibration, batches, choices, passes=1)
        return quadratic.table(self.unit, _label_weights)


def _label_weights(
    part: Slice, heads: Sequence[Head], scores: Sequence[Tensor]
) -> list[list[Tensor]]:
    """Pick log p_y of the first output with classes; over √positions, for a mean over them."""
    labels = part.batch.labels
    weights = [torch.zeros_like(score) for score in scores]
    first = next((i for i, head in enumerate(heads) if head.classes is not None), None)
    if first is None or labels is None:
        raise CalibrationError(
            "the taylor metric needs class scores",
            expected="an output [batch, classes]",
            found="regressions only",
            remedy=_REMEDY,
        )
    shape = scores[first].shape
    weights[first].scatter_(1, class_index(labels, shape), 1.0 / shape[2] ** 0.5)
    return [weights]
