"""Sites in a materialized graph: integer weights, one multiply, its epilogue."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx

from mpq_compile.errors import LoweringError
from mpq_compile.passes import ops
from mpq_compile.passes.base import is_call
from mpq_compile.passes.materialized import Builder, SiteRecord
from mpq_compile.passes.rounding import fitted_bias, fitted_weight
from mpq_compile.quant import ops as qops
from mpq_compile.quant.multipliers import (
    ROW_ZERO_POINT,
    bounds_of,
    channel_multipliers,
    f32,
    scale_of,
    zero_point_of,
)
from mpq_compile.quant.weights import QuantizedWeight
from mpq_compile.types import Candidate, Site, storage

# |Σ x·w| ≤ K · 255 · 128 must stay below 2^31 for the kernels' int32 accumulators.
MAX_INPUTS = (2**31 - 1) // (255 * 128)


def site(builder: Builder, node: fx.Node) -> tuple[fx.Node, str]:
    site, candidate = builder.network.site_of[node.name], builder.candidates[node.name]
    x, residual = node.args[0], node.args[3]
    fmt = builder.stored(node)
    before, after = builder.qparams(x, candidate.input_format), builder.qparams(node, fmt)
    weight = _weight(builder, site, candidate)
    bias = fitted_bias(builder.network, builder.calibration, site.id, candidate)
    codes, weight_scale = _codes_and_scale(weight, candidate)
    _check_accumulator(site, codes, candidate)
    scale, shift = channel_multipliers(
        weight_scale.numpy(),
        bias.numpy(),
        scale_of(before),
        scale_of(after),
    )
    params = (
        builder.attribute(f"{site.path}.codes", codes),
        builder.attribute(f"{site.path}.multiplier", torch.from_numpy(scale)),
        builder.attribute(f"{site.path}.offset", torch.from_numpy(shift)),
    )
    added, added_qparams = builder.as_stored(residual)
    geometry = () if is_call(node, ops.site_linear) else tuple(node.args[4:9])
    zero_point = ROW_ZERO_POINT if candidate.dynamic else zero_point_of(before)
    epilogue = (
        (zero_point, zero_point_of(added_qparams), zero_point_of(after)),
        f32(scale_of(added_qparams) / scale_of(after)),
        bounds_of(after, *node.args[-2:]),
        storage(fmt),
    )
    target = qops.QCONV2D if geometry else qops.QLINEAR
    inputs: tuple[fx.Node, ...] = (builder.operand(x, candidate.input_format),)
    if candidate.dynamic:
        _check_dynamic(site, candidate)
        target, inputs = qops.QLINEAR_ROWS, _rows(builder, x)
    args = (*inputs, *params, added, *geometry, *epilogue)
    new = builder.graph.call_function(target, args)
    builder.records[new.name] = SiteRecord(
        site=site,
        candidate=candidate,
        node=new.name,
        weight=weight,
        bias=bias,
        has_bias=bool(bias.any()),
        input_scale=scale_of(before),
        output_scale=scale_of(after),
    )
    return new, fmt


def embedding(builder: Builder, node: fx.Node) -> tuple[fx.Node, str]:
    """A lookup: integer rows with their scales; what is found is float32."""
    site, candidate = builder.network.site_of[node.name], builder.candidates[node.name]
    weight = _weight(builder, site, candidate)
    codes, scale = _codes_and_scale(weight, candidate)
    params = (
        builder.attribute(f"{site.path}.codes", codes),
        builder.attribute(f"{site.path}.multiplier", scale),
    )
    new = builder.graph.call_function(qops.EMBEDDING, (builder.raw(node.args[0]), *params))
    builder.records[new.name] = SiteRecord(
        site=site,
        candidate=candidate,
        node=new.name,
        weight=weight,
        bias=torch.zeros(site.weight_shape[0]),
        has_bias=False,
        input_scale=1.0,
        output_scale=1.0,
    )
    return new, "fp32"


def _weight(builder: Builder, site: Site, candidate: Candidate) -> QuantizedWeight | Tensor:
    weight = builder.network.weight(site.id).float()
    if candidate.is_float:
        return weight if candidate.weight_bits == 32 else weight.bfloat16()
    return fitted_weight(builder.network, builder.calibration, site.id, candidate)


def _rows(builder: Builder, x: fx.Node) -> tuple[fx.Node, ...]:
    """Codes and row scales of a tensor; sites that read the same tensor share them."""
    if x.name not in builder.rows:
        both = builder.graph.call_function(qops.QUANTIZE_ROWS, (builder.operand(x, "fp32"),))
        picks = [builder.graph.call_function(operator.getitem, (both, i)) for i in range(2)]
        builder.rows[x.name] = tuple(picks)
    return builder.rows[x.name]


def _codes_and_scale(
    weight: QuantizedWeight | Tensor, candidate: Candidate
) -> tuple[Tensor, Tensor]:
    if isinstance(weight, QuantizedWeight):
        return weight.codes, weight.scale
    return weight, torch.ones(weight.shape[0])


def _check_accumulator(site: Site, codes: Tensor, candidate: Candidate) -> None:
    inputs = codes[0].numel()
    if candidate.integer_compute and inputs > MAX_INPUTS:
        raise LoweringError(
            "the int32 accumulator could overflow",
            where=site.id,
            expected=f"at most {MAX_INPUTS} inputs for an output",
            found=str(inputs),
            remedy="constrain this site to fp32 or bf16",
        )


def _check_dynamic(site: Site, candidate: Candidate) -> None:
    if site.op != "linear" or candidate.activation_bits != 8:
        raise LoweringError(
            "no kernel quantizes these activations at run time",
            where=site.id,
            expected="a linear layer with 8-bit activations",
            found=f"{candidate.name} for {site.op}",
            remedy="choose a candidate without d",
        )
