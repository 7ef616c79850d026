"""AdaRound: each weight up or down, site by site, by what the site's output loses.

    min over V of  E ‖f(W x + r) − f(W̃(V) x̂ + r̂)‖²

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv 2004.10568: x
and r are the inputs and the residual of the float network, x̂ and r̂ those of the quantized one,
f the site's clamp; scales are those that round the weight best. A site is a product of matrices at
positions that are drawn once, so a step costs rows × inputs × positions, whatever the image. What
rounding leaves to a gain and a shift of each channel is fitted to the codes last [derived].
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from mpq_compile.calibrate import Batch
from mpq_compile.passes import ops
from mpq_compile.passes.network import Network
from mpq_compile.progress import counted
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.weights import QuantizedWeight
from mpq_compile.reconstruct.correction import FEWEST
from mpq_compile.reconstruct.lockstep import Lockstep, Unit, site_units
from mpq_compile.reconstruct.moments import Positions, Reader
from mpq_compile.reconstruct.rounded_site import (
    RoundedSite,
    check_finite,
    check_samples,
    searched_sites,
)
from mpq_compile.reconstruct.soft_rounding import Annealing, SoftRounding
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.types import Candidate

log = logging.getLogger(__name__)

DEFAULT = Annealing(steps=1000)
# Positions of an output that are drawn, fewer where their inputs would take more values; and how
# many of them a step sees.
_POSITIONS, _VALUES, _STEP = 16384, 2**25, 256


def reconstruct_adaround(
    network: Network,
    calibration: Calibration,
    batches: Sequence[Batch],
    assignment: Mapping[str, str],
    annealing: Annealing = DEFAULT,
) -> None:
    """Put codes, scales and biases of all sites with integer weights into ``calibration``.

    Left as they are: sites that share a weight with another, and those that see fewer than 64
    values of a channel. A channel that does not get better keeps the nearest codes with their gain
    and shift, and how many did is logged.

    Raises:
        CalibrationError: There are too few samples, or a site's inputs or outputs are not finite.
    """
    check_samples(batches, "adaround")
    graph = QuantizedGraph(network, calibration)
    graph.assign(assignment)
    lockstep = Lockstep(graph, batches)
    sites = searched_sites(network, assignment)
    with counted(len(network.sites), "adaround") as advance:

        def visit(unit: Unit) -> None:
            for site in unit.sites:
                if site in sites:
                    _round_site(lockstep, unit.exit, site, sites[site], annealing)
                advance(1)

        lockstep.run(site_units(graph), visit)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A site as a product of matrices at some positions, which are in random order.

    G is the number of groups of the convolution, K the inputs of an output, n the outputs of a
    group, P the positions.

    Args:
        inputs: x̂, float32 [G, K, P].
        exact: W x + r + bias of the float network, float32 [G, n, P].
        added: r̂ + bias, float32 [G, n, P] or [G, n, 1].
        bounds: The site's clamp.
    """

    inputs: Tensor
    exact: Tensor
    added: Tensor
    bounds: tuple[float, float] = (-ops.INF, ops.INF)

    @property
    def count(self) -> int:
        """Number of positions."""
        return self.inputs.shape[-1]

    def chunk(self, step: int, size: int) -> Layer:
        """Return the positions that a step sees: the next ones, around and around."""
        chunks = max(1, self.count // size)
        start = step % chunks * size
        span = slice(start, start + size)
        whole = self.added.shape[-1] == 1
        return Layer(
            inputs=self.inputs[..., span],
            exact=self.exact[..., span],
            added=self.added if whole else self.added[..., span],
            bounds=self.bounds,
        )

    def products(self, weight: Tensor) -> Tensor:
        """Return W x̂ of a weight [N, ...], float32 [G, n, P]."""
        return weight.flatten(1).unflatten(0, (self.inputs.shape[0], -1)) @ self.inputs

    def loss(self, products: Tensor) -> Tensor:
        """Return the mean squared error of each output channel, [N]."""
        found = ops.clamp(products + self.added, *self.bounds)
        return (found - ops.clamp(self.exact, *self.bounds)).square().mean(-1).flatten()


def search_codes(
    layer: Layer, weight: Tensor, nearest: QuantizedWeight, annealing: Annealing
) -> QuantizedWeight:
    """Return up-or-down roundings of a float weight [N, ...] with the scales of ``nearest``.

    A row that would lose more than with its nearest codes keeps them.
    """
    before = layer.loss(layer.products(nearest.dequantize()))
    soft = SoftRounding(weight, nearest)
    with torch.enable_grad():
        optimizer = torch.optim.Adam(soft.parameters(), lr=annealing.rate)
        for step in range(annealing.steps if before.any() else 0):
            part = layer.chunk(step, _STEP)
            loss = part.loss(part.products(soft())).sum() / before.sum()
            optimizer.zero_grad()
            (loss + annealing.pull(step, soft)).backward()
            optimizer.step()
    found = soft.hardened()
    better = layer.loss(layer.products(found.dequantize())) < before
    wide = better.reshape(-1, *[1] * (weight.dim() - 1))
    return replace(found, codes=torch.where(wide, found.codes, nearest.codes))


def _round_site(
    lockstep: Lockstep, node: fx.Node, site: str, candidate: Candidate, annealing: Annealing
) -> None:
    network, calibration = lockstep.graph.network, lockstep.graph.calibration
    weight = network.weight(site).float()
    layer = read_layer(lockstep, node, weight, network.bias(site), annealing.seed)
    if layer.count < FEWEST:
        return
    check_finite(site, layer.inputs, layer.exact)
    start = RoundedSite.of(network, calibration, site, candidate)
    codes = search_codes(layer, weight, network.rounded(site, candidate), annealing)
    plain = RoundedSite(weight=codes, shift=torch.zeros_like(start.shift))
    fitted = _fitted(layer, codes, biased=network.biased(site))
    found, kept = _best(layer, [start, plain, fitted])
    if kept:
        log.info("%s: %d of %d channels keep the nearest codes", site, kept, len(start.shift))
    found.put(calibration, site)


def read_layer(lockstep: Lockstep, node: fx.Node, weight: Tensor, bias: Tensor, seed: int) -> Layer:
    """Return a site, whose inputs both networks have reached, at positions that are drawn."""
    reader = Reader(node=node, weight=weight)
    quantizer, residual = node.args[0], node.args[3]
    source = quantizer.args[0]
    wanted = max(FEWEST, min(_POSITIONS, _VALUES // weight[0].numel() // reader.groups))
    draw = Positions(reader, len(lockstep.batches), wanted)
    constant = bias.reshape(reader.groups, -1, 1)
    inputs, exact, added = [], [], []
    for i in range(len(lockstep.batches)):
        shape = lockstep.exact[node][i].shape
        positions = draw(shape)
        x = lockstep.evaluate(quantizer, {source: lockstep.rounded[source][i]})
        inputs.append(reader.inputs(x, shape, positions))
        full = reader.rows @ reader.inputs(lockstep.exact[source][i], shape, positions) + constant
        if residual is not None:
            ours, theirs = lockstep.rounded[residual][i], lockstep.exact[residual][i]
            added.append(reader.outputs(ours.expand(shape), positions) + constant)
            full = full + reader.outputs(theirs.expand(shape), positions)
        exact.append(full)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(sum(x.shape[-1] for x in inputs), generator=generator)
    return Layer(
        inputs=torch.cat(inputs, -1)[..., order],
        exact=torch.cat(exact, -1)[..., order],
        added=torch.cat(added, -1)[..., order] if added else constant,
        bounds=(float(node.args[-2]), float(node.args[-1])),
    )


def _fitted(layer: Layer, codes: QuantizedWeight, biased: bool) -> RoundedSite:
    """Return codes with the gain and shift that bring them nearest to float before the clamp."""
    z = layer.products(codes.dequantize()).flatten(0, 1).double()
    y = (layer.exact - layer.added).flatten(0, 1).double()
    means = [v.mean(1, keepdim=True) * biased for v in (y, z)]
    above, below = (((v - m) * (z - means[1])).sum(1) for v, m in zip((y, z), means, strict=True))
    # A channel that does not vary has no gain, and one that lost its sign is not turned over.
    usable = (below > 0) & (above > 0)
    gain = torch.where(usable, above / below.where(usable, torch.ones_like(below)), 1.0)[:, None]
    wide = gain if codes.scale.dim() == 2 else gain[:, 0]
    return RoundedSite(
        weight=replace(codes, scale=(codes.scale * wide).float()),
        shift=(means[0] - gain * means[1])[:, 0].float(),
    )


def _best(layer: Layer, choices: Sequence[RoundedSite]) -> tuple[RoundedSite, int]:
    """Return what loses least, channel by channel, and how many channels have the first choice."""
    groups = layer.inputs.shape[0]
    losses = [
        layer.loss(layer.products(c.weight.dequantize()) + c.shift.reshape(groups, -1, 1))
        for c in choices
    ]
    best = torch.stack(losses).argmin(0)

    def picked(values: Sequence[Tensor]) -> Tensor:
        return torch.stack(tuple(values))[best, torch.arange(len(best))]

    weight = QuantizedWeight(
        codes=picked([c.weight.codes for c in choices]),
        scale=picked([c.weight.scale for c in choices]),
        spec=choices[0].weight.spec,
    )
    shift = picked([c.shift for c in choices])
    return RoundedSite(weight=weight, shift=shift), int((best == 0).sum())
