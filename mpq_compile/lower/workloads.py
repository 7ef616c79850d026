"""Nodes of a materialized graph → workloads of the kernels. Imports neither torch nor tvm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from mpq_compile.kernels.elementwise_workload import QuantizeRowsWorkload
from mpq_compile.kernels.embedding_workload import EmbeddingWorkload, embedding_bits
from mpq_compile.kernels.geometry import NARROW_BITS, is_depthwise
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import FEW_ROWS, ConvWorkload, LinearWorkload
from mpq_compile.types import Candidate, Site, storage

Pads = tuple[int, int, int, int]


def compute_of(candidate: Candidate) -> str:
    """Return how a candidate multiplies: int8, bf16, fp32 or weight_only."""
    if candidate.is_float:
        return candidate.name
    return "int8" if candidate.integer_compute else "weight_only"


def conv_compute_of(candidate: Candidate) -> str:
    """Return how a convolution multiplies: as :func:`compute_of`, weight-only ones as bf16.

    bf16 holds codes of up to 8 bits exactly. They are widened when the artifact is loaded, once,
    so that a weight-only convolution has the speed of the bf16 kernel of every tier.
    """
    compute = compute_of(candidate)
    return "bf16" if compute == "weight_only" else compute


def kernel_weight_bits(rows: int, candidate: Candidate, tier: Tier) -> int:
    """Return the weight layout that a linear kernel reads.

    Only few rows read packed weights: with many, unpacking costs more time than it saves, so the
    codes are unpacked when the artifact is loaded.
    """
    if rows > FEW_ROWS:
        return unpacked_weight_bits(candidate, tier)
    if candidate.is_float or candidate.weight_bits > NARROW_BITS:
        return 8
    return 2 if candidate.weight_bits == 2 else 4


def unpacked_weight_bits(candidate: Candidate, tier: Tier) -> int:
    """Return the bits that a kernel of unpacked weights is told of: 4 where it gains by them.

    Elsewhere w4a8 and w8a8 are one kernel, which is compiled and measured once.
    """
    narrow = compute_of(candidate) == "int8" and candidate.weight_bits <= NARROW_BITS
    return NARROW_BITS if narrow and not candidate.group_size and tier.narrow_sums else 8


def conv_workload(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    geometry: tuple[Any, ...],
    compute: str,
    weight_bits: int,
    out: str,
    residual: str | None,
) -> ConvWorkload:
    """Return the workload of a convolution.

    Args:
        input_shape: [B, C, H, W].
        weight_shape: [N, C/groups, KH, KW].
        geometry: (stride, padding, dilation, groups, input_dilation) as the operators have them.
        compute: See :func:`conv_compute_of`.
        weight_bits: See :func:`unpacked_weight_bits`.
        out: Storage of the output.
        residual: Storage of the residual, or None.
    """
    stride, padding, dilation, groups, input_dilation = geometry
    batch, channels, height, width = input_shape
    workload = ConvWorkload(
        batch=batch,
        height=height,
        width=width,
        in_channels=channels,
        out_channels=weight_shape[0],
        kernel=(weight_shape[2], weight_shape[3]),
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        groups=groups,
        input_dilation=tuple(input_dilation),
        compute=compute,  # type: ignore[arg-type]
        out=out,  # type: ignore[arg-type]
        residual=residual,  # type: ignore[arg-type]
    )
    if is_depthwise(workload):
        return workload  # the kernel does not gain by few bits
    return replace(workload, weight_bits=weight_bits)  # type: ignore[arg-type]


def linear_workload(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    candidate: Candidate,
    tier: Tier,
    out: str,
    residual: str | None,
) -> LinearWorkload:
    """Return the workload of a linear layer over the last dimension of its input."""
    rows = 1
    for size in input_shape[:-1]:
        rows *= size
    return LinearWorkload(
        rows=rows,
        in_features=weight_shape[1],
        out_features=weight_shape[0],
        compute=compute_of(candidate),  # type: ignore[arg-type]
        weight_bits=kernel_weight_bits(rows, candidate, tier),  # type: ignore[arg-type]
        group_size=candidate.group_size,
        row_scales=candidate.dynamic,
        out=out,  # type: ignore[arg-type]
        residual=residual,  # type: ignore[arg-type]
    )


def input_workload(site: Site, candidate: Candidate) -> QuantizeRowsWorkload | None:
    """Return what a dynamic site runs before its own kernel; None for all others."""
    if not candidate.dynamic or not site.multiplies:
        return None
    *rows, features = site.input_shape
    return QuantizeRowsWorkload(rows=math.prod(rows), features=features)


def embedding_workload(
    site: Site, candidate: Candidate, index: Literal["int32", "int64"] = "int64"
) -> EmbeddingWorkload:
    """Return the workload of a lookup; ``index`` is the type of the numbers."""
    rows, width = site.weight_shape
    group = candidate.group_size or width
    return EmbeddingWorkload(
        tokens=math.prod(site.input_shape),
        rows=rows,
        width=width,
        compute=candidate.name if candidate.is_float else "int",  # type: ignore[arg-type]
        weight_bits=8 if candidate.is_float else embedding_bits(candidate.weight_bits, group),
        group_size=candidate.group_size,
        index=index,
    )


def site_workload(
    site: Site,
    candidate: Candidate,
    tier: Tier,
    geometry: tuple[Any, ...],
    residual: bool,
    final: bool,
) -> ConvWorkload | LinearWorkload | EmbeddingWorkload:
    """Return the workload of a site between neighbours of its own format.

    This is what is measured: a uniform network. ``final`` sites feed the network's output and
    store fp32.
    """
    fmt = storage(candidate.input_format)
    out = "fp32" if final else fmt
    added = fmt if residual else None
    if site.op == "embedding":
        return embedding_workload(site, candidate)
    if site.op == "linear":
        return linear_workload(site.input_shape, site.weight_shape, candidate, tier, out, added)
    compute = conv_compute_of(candidate)
    # A transposed convolution runs as one over its spread input: [C, N/g, …] → [N, C/g, …].
    weight_shape = (site.out_channels, site.input_shape[1] // site.groups, *site.weight_shape[2:])
    bits = unpacked_weight_bits(candidate, tier)
    return conv_workload(site.input_shape, weight_shape, geometry, compute, bits, out, added)
