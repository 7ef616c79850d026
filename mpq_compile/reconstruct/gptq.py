"""Codes, scales and biases of each site by integer least squares, in the order of execution.

Each site is brought as close as its bits allow to what the float network computes there, on the
inputs that the quantized sites before it give, and with the residual that they give: what an
earlier site lost is made up for by a later one as far as it can be. There is no gradient and no
step size; GPTQ (arXiv 2210.17323) by name, with coordinate descent after its error feedback.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from mpq_compile.calibrate import Batch
from mpq_compile.errors import CalibrationError
from mpq_compile.passes.network import Network
from mpq_compile.progress import counted
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.weights import ChannelFit, QuantizedWeight, weight_spec
from mpq_compile.reconstruct.correction import FEWEST
from mpq_compile.reconstruct.integer_least_squares import Grid, solve
from mpq_compile.reconstruct.lockstep import Lockstep, Unit, site_units
from mpq_compile.reconstruct.moments import Moments, Reader, positions_wanted
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.types import Candidate

# What pulls towards the float weight, as a share of the mean power of the inputs.
_DAMPING = 0.01
_LEAST_POWER = 1e-12


def reconstruct_gptq(
    network: Network,
    calibration: Calibration,
    batches: Sequence[Batch],
    assignment: Mapping[str, str],
) -> None:
    """Put codes, scales and biases of all sites with integer weights into ``calibration``.

    Left as they are: sites that share a weight with another, and those that see fewer than 64
    values of a channel. No channel ends farther from float than with the nearest codes, as far as
    the calibration data tell.

    Raises:
        CalibrationError: A site's inputs or outputs are not finite.
    """
    graph = QuantizedGraph(network, calibration)
    graph.assign(assignment)
    lockstep = Lockstep(graph, batches)
    units = site_units(graph)
    groups = {site.id: site.group for site in network.sites}
    tied = Counter(groups.values())
    with counted(len(network.sites), "gptq") as advance:

        def visit(unit: Unit) -> None:
            for site in unit.sites:
                candidate = Candidate.parse(assignment[site])
                # Sites that share a weight share its codes: there is no one input to fit them to.
                if not candidate.is_float and tied[groups[site]] == 1:
                    fit_site(lockstep, unit.exit, site, candidate)
                advance(1)

        lockstep.run(units, visit)


def fit_site(lockstep: Lockstep, node: fx.Node, site: str, candidate: Candidate) -> None:
    """Find weight and bias of one site whose inputs both networks have reached."""
    network, calibration = lockstep.graph.network, lockstep.graph.calibration
    reader = Reader(node=node, weight=network.weight(site).float())
    bias = network.bias(site)
    moments = gather(lockstep, reader, bias)
    if moments.count < FEWEST:
        return
    if not moments.finite:
        raise CalibrationError(
            "activations are not finite",
            where=site,
            expected="finite inputs and outputs on the calibration data",
            found="NaN or infinite values",
            remedy="look for samples, or for a layer, that overflow in float",
        )
    biased = node.args[2] is not None
    squares, crosses = moments.centred(about_mean=biased)
    rows = reader.rows
    # Inputs that never vary are held where they are.
    power = squares.diagonal(dim1=1, dim2=2).mean(1).clamp_min(_LEAST_POWER)
    ridge = (_DAMPING * power)[:, None, None]
    damped = squares + ridge * torch.eye(rows.shape[-1], dtype=torch.float64)
    target = torch.linalg.solve(damped, crosses + ridge * rows.double(), left=False)
    spec, start = weight_spec(candidate), network.rounded(site, candidate)
    grid = Grid(low=spec.qmin, high=spec.qmax, group_size=spec.group_size)
    codes, scale = solve(
        target.float(),
        damped.float(),
        start.codes.reshape(rows.shape).float(),
        start.scale.reshape(*rows.shape[:2], -1),
        grid,
    )
    found = QuantizedWeight(
        codes=codes.reshape(start.codes.shape).to(torch.int8),
        scale=scale.reshape(start.scale.shape).contiguous(),
        spec=spec,
    )
    shift = torch.zeros_like(bias)
    if biased:
        x, t = moments.means()
        real = found.dequantize().reshape(rows.shape).double()
        shift = (t - (real @ x[..., None]).squeeze(-1)).flatten().float() - bias
    calibration.weights[site, spec] = found
    calibration.fits[site, spec] = ChannelFit(gain=torch.ones_like(shift), shift=shift)


def gather(lockstep: Lockstep, reader: Reader, bias: Tensor) -> Moments:
    """Return the moments of a site: quantized inputs, and what float makes of float inputs.

    A residual counts with its own error: the target is what is to be added to the quantized one.
    """
    moments, node = Moments(), reader.node
    quantizer, residual = node.args[0], node.args[3]
    source = quantizer.args[0]
    generator = torch.Generator().manual_seed(0)
    wanted = positions_wanted(reader.rows.shape[-1])
    for i in range(len(lockstep.batches)):
        shape = lockstep.exact[node][i].shape
        samples, count = reader.count(shape)
        share = -(-wanted // (len(lockstep.batches) * samples))
        positions = torch.randperm(count, generator=generator)[:share]
        x = lockstep.evaluate(quantizer, {source: lockstep.rounded[source][i]})
        exact = reader.inputs(lockstep.exact[source][i], shape, positions)
        targets = reader.rows @ exact + bias.reshape(reader.groups, -1, 1)
        if residual is not None:
            error = lockstep.exact[residual][i] - lockstep.rounded[residual][i]
            targets = targets + reader.outputs(error.expand(shape), positions)
        moments.add(reader.inputs(x, shape, positions), targets)
    return moments
