"""Weights and ranges that a file came quantized with, as the sites of a network have them.

A site takes the file's codes where they mean exactly its weight: symmetric codes, with one scale
an output channel or a group of inputs, that no pass has changed since. What the file does not
give, or gives in another form, is calibrated like any other network's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mpq_compile.onnx_import.fixed import FixedRange, FixedSite
from mpq_compile.onnx_import.program import QuantizedConstant
from mpq_compile.passes.formats import quantizer_roots
from mpq_compile.passes.kinds import kinds
from mpq_compile.passes.network import Network
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.weights import QuantizedWeight
from mpq_compile.types import QParams, QSpec


def fixed_weights(network: Network) -> dict[str, QuantizedWeight]:
    """Return the codes of the file by site, where a site can take them as they are."""
    found: dict[str, QuantizedWeight] = {}
    for site, fixed in _fixed(network).items():
        weight = None if fixed.weight is None else _as_symmetric(fixed.weight)
        if weight is not None and _means(weight, network.weight(site)):
            found[site] = weight
    return found


def fixed_ranges(network: Network) -> dict[tuple[str, int], QParams]:
    """Return the file's ranges of what sites read, by node of the float graph and bits."""
    roots = quantizer_roots(network, kinds(network, allow_float=True))
    found: dict[tuple[str, int], QParams] = {}
    for site, fixed in _fixed(network).items():
        if fixed.input is not None:
            source = network.node(network.node_of[site]).args[0]
            found[roots[source.name], fixed.input.bits] = _qparams(fixed.input)
    return found


def fixed_candidates(network: Network) -> dict[str, str]:
    """Return the candidate that has the file's bits, for sites whose codes are taken."""
    fixed = _fixed(network)
    return {
        site: _candidate(weight, fixed[site].input)
        for site, weight in fixed_weights(network).items()
    }


def with_fixed(network: Network, calibration: Calibration) -> Calibration:
    """Return a calibration that has the file's codes and ranges."""
    if not network.captured.fixed:
        return calibration
    weights = {(site, weight.spec): weight for site, weight in fixed_weights(network).items()}
    found = calibration.with_qparams(fixed_ranges(network))
    return replace(found, weights={**found.weights, **weights})


def fixed_note(network: Network) -> str:
    """Say how much of the network is quantized as the file says."""
    ranges = sum(fixed.input is not None for fixed in _fixed(network).values())
    count = len(network.sites)
    return (
        f"the file came quantized: codes of {len(fixed_weights(network))} and input ranges of "
        f"{ranges} of {count} sites are the file's; the others, and tensors between sites, "
        "are calibrated"
    )


def _fixed(network: Network) -> dict[str, FixedSite]:
    by_weight: Mapping[str, FixedSite] = network.captured.fixed
    return {site.id: by_weight[site.group] for site in network.sites if site.group in by_weight}


def _as_symmetric(constant: QuantizedConstant) -> QuantizedWeight | None:
    """Return signed codes around 0 with scales by channel or group, or None.

    Unsigned codes around the middle of their range are the same numbers.
    """
    middle = 0 if constant.signed else 2 ** (constant.bits - 1)
    if constant.bits > 8 or not bool((constant.zero_point.int() == middle).all()):
        return None
    codes = (constant.codes.int() - middle).to(torch.int8)
    grouped = _scales(constant.scale)
    if grouped is None:
        return None
    scale, group = grouped
    spec = QSpec(bits=constant.bits, signed=True, symmetric=True, axis=0, group_size=group)
    if int(codes.min()) < spec.qmin:
        return None
    return QuantizedWeight(codes=codes.contiguous(), scale=scale, spec=spec)


def _scales(scale: Tensor) -> tuple[Tensor, int | None] | None:
    """Return scales by row, [N], or by equal groups of a row's elements, [N, groups]."""
    rows = scale.reshape(scale.shape[0], -1).float()
    if bool((rows == rows[:, :1]).all()):
        return rows[:, 0].contiguous(), None
    changes = (rows[:, 1:] != rows[:, :-1]).any(0).nonzero().flatten() + 1
    size = int(changes[0])
    if rows.shape[1] % size or bool((changes % size != 0).any()):
        return None
    return rows[:, ::size].contiguous(), size


def _means(weight: QuantizedWeight, real: Tensor) -> bool:
    """Tell whether codes are those of a site's weight: a pass may have folded a norm into it."""
    return weight.codes.shape == real.shape and torch.equal(weight.dequantize(), real)


def _qparams(fixed: FixedRange) -> QParams:
    spec = QSpec(bits=fixed.bits, signed=False, symmetric=False)
    return QParams(spec=spec, scale=fixed.scale, zero_point=fixed.zero_point)


def _candidate(weight: QuantizedWeight, input: FixedRange | None) -> str:
    group = f"g{weight.spec.group_size}" if weight.spec.group_size else ""
    return f"w{weight.spec.bits}a{16 if input is None else input.bits}{group}"
