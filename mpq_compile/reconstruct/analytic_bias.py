"""What rounding shifts, told by batch norms alone: bias correction without data.

A rounded weight Ŵ moves a site's mean output by (Ŵ − W) E[x]. Behind a batch norm and a clamp, the
input of each channel is a normal of mean β and deviation |γ|, cut to [lo, hi], whose mean is known
(Nagel et al., arXiv 1906.04721, section 4.2 and appendix C): with a = (lo − β)/|γ| and
b = (hi − β)/|γ|,

    E[x] = lo Φ(a) + hi (1 − Φ(b)) + β (Φ(b) − Φ(a)) + |γ| (φ(a) − φ(b))

Beyond the paper [derived]: sums of residuals add means and variances, as if they were independent;
other activations are integrated by Gauss-Hermite quadrature; averages keep the mean; and zeros that
pad a convolution are counted, by running it on E[x]. Where an input has no such history (the
network's own, maximum pooling, products, layers without a batch norm) nothing is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isinf, pi, sqrt

import numpy as np
import torch
from torch import Tensor, fx

from mpq_compile.passes import ops
from mpq_compile.passes.base import is_call
from mpq_compile.passes.kinds import RESHAPES, Kind, classify
from mpq_compile.passes.network import Network
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.weights import ChannelFit, QuantizedWeight

aten = torch.ops.aten
_RESIDUAL = 3
_POINTS, _MASSES = np.polynomial.hermite_e.hermegauss(64)
_MASSES = _MASSES / _MASSES.sum()


@dataclass(frozen=True, kw_only=True, eq=False)
class Spread:
    """Mean and variance of each value of a tensor, float64, in its shape for the example inputs."""

    mean: Tensor
    variance: Tensor


def shift_by_statistics(
    network: Network, calibration: Calibration, wanted: Mapping[str, Sequence[QuantizedWeight]]
) -> dict[str, list[QuantizedWeight]]:
    """Add to ``calibration`` the shifts of rounded weights that follow from batch norms.

    Args:
        network: The prepared network.
        calibration: Its ``fits`` are filled; gains are 1, and shifts 0 where a site has no bias.
        wanted: Rounded weights by site.

    Returns:
        What is left: weights of sites whose inputs no batch norm tells of.
    """
    inputs = expected_inputs(network)
    for site in wanted.keys() & inputs.keys():
        exact = network.weight(site)
        biased = network.biased(site)
        for weight in wanted[site]:
            lost = exact.double() - weight.dequantize().double()
            shift = _mean_output(network.node(network.node_of[site]), inputs[site], lost).float()
            calibration.fits[site, weight.spec] = ChannelFit(
                gain=torch.ones_like(shift), shift=shift if biased else torch.zeros_like(shift)
            )
    return {site: list(weights) for site, weights in wanted.items() if site not in inputs}


def expected_inputs(network: Network) -> dict[str, Tensor]:
    """Return the mean input of each site that batch norms tell of, float64, in its shape."""
    known: dict[fx.Node, Spread] = {}
    found: dict[str, Tensor] = {}
    site_of = network.site_of
    for node in network.module.graph.nodes:
        if node.name in site_of and node.args[0] in known:
            found[site_of[node.name].id] = known[node.args[0]].mean
        spread = _spread(network, node, known)
        if spread is not None:
            known[node] = spread
    return found


def clipped(spread: Spread, lo: float, hi: float) -> Spread:
    """Return mean and variance of normals that are cut to [lo, hi]."""
    mean, std = spread.mean, spread.variance.sqrt().clamp_min(1e-30)
    below, density_lo, first_lo = _edge(mean, std, lo)
    upto, density_hi, first_hi = _edge(mean, std, hi)
    low, high = (0.0 if isinf(bound) else bound for bound in (lo, hi))
    inside, slope = upto - below, density_lo - density_hi
    cut = low * below + high * (1 - upto) + mean * inside + std * slope
    square = low**2 * below + high**2 * (1 - upto) + (mean**2 + std**2) * inside
    square = square + 2 * mean * std * slope + std**2 * (first_lo - first_hi)
    return Spread(mean=cut, variance=(square - cut**2).clamp_min(0.0))


def _edge(mean: Tensor, std: Tensor, bound: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return Φ(a), φ(a) and a φ(a) of a bound in standard deviations."""
    if isinf(bound):
        nothing = torch.zeros_like(mean)
        return (nothing + 1 if bound > 0 else nothing), nothing, nothing
    a = (bound - mean) / std
    density = torch.exp(-0.5 * a**2) / sqrt(2 * pi)
    return torch.special.ndtr(a), density, a.clamp(-1e9, 1e9) * density


def _spread(network: Network, node: fx.Node, known: Mapping[fx.Node, Spread]) -> Spread | None:
    """Return what is known of a node's values; None where nothing is."""
    if is_call(node, *ops.SITE_OPS):
        return _of_site(network, node, known)
    sources = node.all_input_nodes
    if node.op != "call_function" or not sources or any(n not in known for n in sources):
        return None
    if is_call(node, ops.add):
        return clipped(_sum(known[node.args[0]], known[node.args[1]]), *node.args[2:])
    if is_call(node, ops.clamp):
        return clipped(known[node.args[0]], *node.args[1:])
    if is_call(node, aten.cat.default):
        return _mapped(lambda *v: torch.cat(v, *node.args[1:]), *(known[n] for n in node.args[0]))
    if len(sources) > 1 or node.name not in network.shapes:
        return None
    return _of_one(network, node, known[sources[0]])


def _of_site(network: Network, node: fx.Node, known: Mapping[fx.Node, Spread]) -> Spread | None:
    statistics, residual = network.statistics.get(node.name), node.args[_RESIDUAL]
    if statistics is None or (residual is not None and residual not in known):
        return None
    shape = network.shapes[node.name][0]
    spread = [1] * len(shape)
    spread[1 if is_call(node, ops.site_conv2d) else -1] = -1
    own = Spread(
        mean=statistics.mean.reshape(spread).expand(shape),
        variance=statistics.std.square().reshape(spread).expand(shape),
    )
    return clipped(own if residual is None else _sum(own, known[residual]), *node.args[-2:])


def _of_one(network: Network, node: fx.Node, source: Spread) -> Spread | None:
    """Return what is known of a function of one tensor."""
    kind = classify(network, node)
    if is_call(node, *RESHAPES):
        shape = network.shapes[node.name][0]
        return _mapped(lambda value: value.reshape(shape), source)
    if kind in (Kind.MOVE, Kind.AVERAGE):
        # The variance of an average is at most the average of the variances.
        return _mapped(lambda value: node.target(value, *node.args[1:], **node.kwargs), source)
    return _integrated(node, source) if kind is Kind.TABLE else None


def _sum(a: Spread, b: Spread) -> Spread:
    return Spread(mean=a.mean + b.mean, variance=a.variance + b.variance)


def _mapped(function: Callable[..., Tensor], *sources: Spread) -> Spread:
    return Spread(
        mean=function(*(s.mean for s in sources)),
        variance=function(*(s.variance for s in sources)),
    )


def _integrated(node: fx.Node, source: Spread) -> Spread:
    """Return mean and variance of a function of normals, by quadrature."""
    mean, square = torch.zeros_like(source.mean), torch.zeros_like(source.mean)
    std = source.variance.sqrt()
    for point, mass in zip(_POINTS, _MASSES, strict=True):
        value = node.target(source.mean + std * point, *node.args[1:], **node.kwargs)
        mean += mass * value
        square += mass * value**2
    return Spread(mean=mean, variance=(square - mean**2).clamp_min(0.0))


def _mean_output(node: fx.Node, mean: Tensor, weight: Tensor) -> Tensor:
    """Return what a weight makes of the mean input, on average over positions, float64 [N]."""
    if is_call(node, ops.site_linear):
        return ops.site_linear(mean, weight, None, None).flatten(0, -2).mean(0)
    return ops.site_conv2d(mean, weight, None, None, *node.args[4:9]).mean((0, 2, 3))
