"""Second-order loss with the Gauss-Newton form: the Kullback–Leibler divergence from float.

    ΔL_l(c) = ½ E (JΔ)ᵀ (diag p − ppᵀ) (JΔ)      [derived; the form is METHODS' 1]

J is the Jacobian of the logits. diag p − ppᵀ = S Sᵀ with S = diag(√p) − p√pᵀ, so that for any v
with E vvᵀ = 1 the square of ⟨Jᵀ S v, Δ⟩ has the right mean, and Jᵀ S v is one backward pass from
the log-probabilities with weights √p ∘ v: the chain rule through log-softmax makes it S v. With the
unit vectors for v the sum over classes is exact; where that would be too many passes, random signs
serve, whose squares vary less than those of normal numbers. Neither needs labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpq_compile.calibrate import Batch
from mpq_compile.passes.network import Network
from mpq_compile.quant.calibration import Calibration
from mpq_compile.sensitivity.base import Choices
from mpq_compile.sensitivity.heads import Head
from mpq_compile.sensitivity.quadratic import Quadratic
from mpq_compile.sensitivity.slices import Slice, draws
from mpq_compile.types import SensitivityTable


@dataclass(frozen=True, kw_only=True)
class GaussNewtonMetric:
    """Gauss-Newton loss increase, without labels.

    Args:
        samples: Calibration samples that are used.
        exact: Scores a sample up to which each gets a backward pass of its own.
        projections: Random backward passes where there are more.
        seed: Of the signs; the same seed gives the same table however the data is split.
        memory_mb: Memory for what is kept of a slice, 10⁶ bytes.
        resume: Go on where an earlier run was stopped.
    """

    samples: int = 256
    exact: int = 16
    projections: int = 8
    seed: int = 0
    memory_mb: float = 1024.0
    resume: bool = True
    needs_labels: bool = False
    unit: str = "KL"

    def __call__(
        self,
        network: Network,
        calibration: Calibration,
        batches: Sequence[Batch],
        choices: Choices,
    ) -> SensitivityTable:
        form = self.form(network, calibration, batches, choices)
        return form.table(self.unit, self.weights)

    def form(
        self,
        network: Network,
        calibration: Calibration,
        batches: Sequence[Batch],
        choices: Choices,
        name: str = "gauss_newton",
    ) -> Quadratic:
        """Return the pass whose inner products with ``weights`` make the quadratic form."""
        passes = max(self.exact, self.projections)
        return Quadratic.of(self, name, network, calibration, batches, choices, passes=passes)

    def weights(
        self, part: Slice, heads: Sequence[Head], scores: Sequence[Tensor]
    ) -> list[list[Tensor]]:
        """Return √p ∘ v for each v, over √positions; for a regression v itself."""
        roots = [_root(head, score) for head, score in zip(heads, scores, strict=True)]
        sizes = [root[0].numel() for root in roots]
        if sum(sizes) <= self.exact:
            return _unit_weights(roots, sizes)
        signs = torch.from_numpy(draws(self.seed, part, (self.projections, sum(sizes))) < 0.5)
        vectors = (signs.float() * 2 - 1) / self.projections**0.5
        return [
            [
                root * piece.reshape(root.shape)
                for root, piece in zip(roots, vectors[:, v].split(sizes, 1), strict=True)
            ]
            for v in range(self.projections)
        ]


def _root(head: Head, score: Tensor) -> Tensor:
    if head.classes is None:
        return torch.ones_like(score)
    return (score / 2).exp() / score.shape[2] ** 0.5


def _unit_weights(roots: Sequence[Tensor], sizes: Sequence[int]) -> list[list[Tensor]]:
    weights = []
    for chosen, size in enumerate(sizes):
        for element in range(size):
            weight = [torch.zeros(root.shape) for root in roots]
            weight[chosen].flatten(1)[:, element] = roots[chosen].flatten(1)[:, element]
            weights.append(weight)
    return weights
