"""Convolutions and linears: the workload, the stored weights, the epilogue."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from mpq_compile.kernels.elementwise_workload import QuantizeRowsWorkload
from mpq_compile.lower.borders import border_for, workload_of
from mpq_compile.lower.emit import Value
from mpq_compile.lower.parameters import StoredSite, stored_arrays
from mpq_compile.lower.workloads import linear_workload
from mpq_compile.passes.materialized import SiteRecord
from mpq_compile.quant.weights import QuantizedWeight
from mpq_compile.types import Candidate

if TYPE_CHECKING:
    from mpq_compile.lower.lowering import Lowering


def conv2d(lowering: Lowering, node: fx.Node) -> Value:
    x = lowering.emitter.channels_last(lowering.value(node.args[0]))
    residual = None if node.args[4] is None else lowering.value(node.args[4])
    alone = workload_of(lowering, node, x.fmt, residual.fmt if residual else None)
    border = border_for(lowering, node)
    workload = replace(alone, bordered_input=x.bordered, border=border)
    if residual is not None:
        residual = lowering.emitter.channels_last(residual)
    out = _matmul(lowering, node, workload, x, residual, node.args[10:13], nhwc=True)
    return replace(out, bordered=any(border))


def linear(lowering: Lowering, node: fx.Node) -> Value:
    x = lowering.emitter.logical(lowering.value(node.args[0]))
    residual = None if node.args[4] is None else lowering.value(node.args[4])
    record = lowering.records[node.name]
    workload = linear_workload(
        x.shape,
        lowering.tensor(node.args[1]).shape,
        record.candidate,
        lowering.emitter.tier,
        str(node.args[8]),
        residual.fmt if residual else None,
    )
    if residual is not None:
        residual = lowering.emitter.logical(residual)
    return _matmul(lowering, node, workload, x, residual, node.args[5:8], nhwc=False)


def quantize_rows(lowering: Lowering, node: fx.Node) -> list[Value]:
    x = lowering.emitter.logical(lowering.value(node.args[0]))
    workload = QuantizeRowsWorkload(rows=x.size // x.shape[-1], features=x.shape[-1])
    results = [(x.shape, "u8"), (x.shape[:-1], "fp32")]
    return lowering.emitter.kernel_results(workload, [x.var], results)


def linear_rows(lowering: Lowering, node: fx.Node) -> Value:
    x, row_scales = lowering.value(node.args[0]), lowering.value(node.args[1])
    residual = None if node.args[5] is None else lowering.value(node.args[5])
    workload = linear_workload(
        x.shape,
        lowering.tensor(node.args[2]).shape,
        lowering.records[node.name].candidate,
        lowering.emitter.tier,
        str(node.args[9]),
        residual.fmt if residual else None,
    )
    if residual is not None:
        residual = lowering.emitter.logical(residual)
    return _matmul(
        lowering, node, workload, x, residual, node.args[6:9], nhwc=False, row_scales=row_scales
    )


def _matmul(
    lowering: Lowering,
    node: fx.Node,
    workload: Any,
    x: Value,
    residual: Value | None,
    epilogue: tuple[Any, ...],
    nhwc: bool,
    row_scales: Value | None = None,
) -> Value:
    zero_points, residual_scale, bounds = epilogue
    stored, scales = _store(lowering, node)
    values = {
        "input_scale": scales[0],
        "output_scale": scales[1],
        "zero_points": [int(z) for z in zero_points],
        "residual_scale": float(residual_scale),
        "bounds": [str(float(b)) for b in bounds],
    }
    weight, record = lowering.emitter.matmul_parameters(stored, workload, values)
    optional = [value.var for value in (row_scales, residual) if value is not None]
    arguments = [x.var, weight, record, *optional]
    if node.name in lowering.records:
        site = lowering.records[node.name].site.id
        lowering.kernel_of[site] = lowering.emitter.matmul_name(workload)
    return lowering.emitter.kernel(
        workload, arguments, lowering.shape(node), workload.out, nhwc, workload.stored_size
    )


def _store(lowering: Lowering, node: fx.Node) -> tuple[StoredSite, tuple[float, float]]:
    """Put the weights of a node among the stored arrays; return them and (input, output)."""
    record = lowering.records.get(node.name)
    if record is None:
        return _store_affine(lowering, node), (1.0, 1.0)
    return keep_site(lowering, record), (record.input_scale, record.output_scale)


def _store_affine(lowering: Lowering, node: fx.Node) -> StoredSite:
    # A lone batch norm: weights of one, its factors are already in units of the output.
    weight, scale, bias = (lowering.tensor(n) for n in node.args[1:4])
    integer = weight.dtype == np.int8
    site = StoredSite(
        name=node.name,
        kind="int",
        bits=2,
        shape=weight.shape,
        has_bias=True,
    )
    lowering.sites[node.name] = site
    lowering.emitter.arrays.update(stored_arrays(site, weight.astype(np.int8), scale, bias))
    assert integer or weight.dtype == np.float32
    return site


def keep_site(lowering: Lowering, record: SiteRecord) -> StoredSite:
    """Put the arrays of a site among the stored ones; what is there already is shared."""
    site, arrays = stored_site(record)
    network = lowering.network
    weight, scale = f"{site.name}.weight", f"{site.name}.scale"
    shared = _kept(lowering, site, arrays[weight], network.owner_of)
    if shared != site.name:
        site = replace(site, shared=shared)
        del arrays[weight]
    if scale in arrays:
        scaled = _kept(lowering, site, arrays[scale], network.scale_owner_of)
        if scaled != site.name:
            site = replace(site, scaled=scaled)
            del arrays[scale]
    lowering.sites[site.name] = site
    lowering.emitter.arrays.update(arrays)
    return site


def _kept(
    lowering: Lowering, site: StoredSite, array: np.ndarray, owner_of: Mapping[str, str]
) -> str:
    """Return the first site of the same owner that stores an equal array: this one, if none."""
    content = array.dtype.str, hashlib.sha256(array.tobytes()).digest()
    key = owner_of[site.name], site.kind, site.bits, site.shape, *content
    return lowering.kept.setdefault(key, site.name)


def stored_site(record: SiteRecord) -> tuple[StoredSite, dict[str, np.ndarray]]:
    candidate: Candidate = record.candidate
    if isinstance(record.weight, QuantizedWeight):
        kind, bits = "int", candidate.weight_bits
        weight, scale = record.weight.codes.numpy(), record.weight.scale.numpy()
    else:
        kind, bits = candidate.name, candidate.weight_bits
        scale = np.ones(len(record.weight), np.float32)
        bits16 = record.weight.dtype == torch.bfloat16
        raw = record.weight.contiguous()
        weight = raw.view(torch.int16).numpy().view(np.uint16) if bits16 else raw.numpy()
    site = StoredSite(
        name=record.site.id,
        kind=kind,
        bits=bits,
        shape=tuple(weight.shape),
        has_bias=record.has_bias,
    )
    return site, stored_arrays(site, weight, scale, record.bias.numpy())
