"""Arithmetic of positions and masks: integers and truth values, which no quantizer touches."""

from __future__ import annotations

import torch

aten = torch.ops.aten

INDEX_OPS = frozenset(
    {
        aten.le.Tensor,
        aten.le.Scalar,
        aten.lt.Tensor,
        aten.lt.Scalar,
        aten.ge.Tensor,
        aten.ge.Scalar,
        aten.gt.Tensor,
        aten.gt.Scalar,
        aten.eq.Tensor,
        aten.eq.Scalar,
        aten.ne.Tensor,
        aten.ne.Scalar,
        aten.logical_and.default,
        aten.logical_or.default,
        aten.logical_not.default,
        aten.bitwise_and.Tensor,
        aten.bitwise_or.Tensor,
        aten.bitwise_not.default,
        aten.where.self,
        aten.index_select.default,
        aten.to.dtype,
    }
)
