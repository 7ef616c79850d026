"""Attention in a materialized graph: operands in one format, one operator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from mpq_compile.passes.base import argument
from mpq_compile.passes.materialized import Builder
from mpq_compile.passes.network import Network
from mpq_compile.quant import ops as qops
from mpq_compile.quant.multipliers import bounds_of, f32, scale_of, zero_point_of
from mpq_compile.types import storage

aten = torch.ops.aten


def attention(builder: Builder, node: fx.Node) -> tuple[fx.Node, str]:
    """Return the operator that replaces ``scaled_dot_product_attention``, and its format."""
    fmt, compute = builder.stored(node), builder.native[node.name]
    operands: Any = node.args[:3]
    q, k, v = (builder.qparams(operand, compute) for operand in operands)
    after = builder.qparams(node, fmt)
    depth = builder.network.shapes[operands[0].name][0][-1]
    scale: Any = argument(node, 6, "scale") or depth**-0.5
    args = (
        *(builder.operand(operand, compute) for operand in operands),
        _mask(builder, argument(node, 3, "attn_mask")),
        bool(argument(node, 5, "is_causal", False)),
        f32(scale_of(q) * scale_of(k) * scale),
        (zero_point_of(q), zero_point_of(v), zero_point_of(after)),
        f32(scale_of(v) / scale_of(after)),
        bounds_of(after),
        storage(fmt),
    )
    new = builder.graph.call_function(qops.ATTENTION, args)
    if storage(compute) != "u8":
        builder.floats.append(new.name)
    return new, fmt


def _mask(builder: Builder, mask: Any) -> fx.Node | None:
    """Return the float32 numbers that are added to the scores."""
    if mask is None:
        return None
    if builder.network.shapes[mask.name][1] != torch.bool:
        return builder.operand(mask, "fp32")
    if mask.name not in builder.masks:
        builder.masks[mask.name] = _added(builder, mask)
    return builder.masks[mask.name]


def added_mask_bytes(network: Network, calls: Iterable[str]) -> int:
    """Return the bytes of the two numbers that stand for each mask of truth values.

    ``calls`` are the nodes that :func:`attention` replaces.
    """
    masks: set[Any] = {argument(network.node(name), 3, "attn_mask") for name in calls} - {None}
    return sum(8 for mask in masks if network.shapes[mask.name][1] == torch.bool)


def _added(builder: Builder, mask: fx.Node) -> fx.Node:
    """Return 0 where a key is seen and −∞ where it is hidden."""
    seen, hidden = torch.zeros(1), torch.full((1,), float("-inf"))
    values = (builder.attribute(f"{mask.name}_{n}", t) for n, t in (("on", seen), ("off", hidden)))
    new = builder.graph.call_function(aten.where.self, (builder.raw(mask), *values))
    builder.floats.append(new.name)
    return new
