"""Codes, scales and biases of each site by integer least squares, in the order of execution.

Each site is brought as close as its bits allow to what the float network computes there, on the
inputs that the quantized sites before it give, and with the residual that they give: what an
earlier site lost is made up for by a later one as far as it can be. There is no gradient and no
step size; GPTQ (arXiv 2210.17323) by name, with coordinate descent after its error feedback.
Rows of linear layers count by how much the network's output minds an error there
(``output_fisher``).

A weight that several sites multiply by (steps of a recurrent layer, layers used again) is brought
as close as it can be at all of them together, before the others: the moments of its sites are added
up. Their inputs are those of the float network, as what quantized sites before some of them give
depends on the weight itself [derived].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, fx

from mpq_compile.calibrate import Batch
from mpq_compile.passes.network import Network
from mpq_compile.progress import counted
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.weights import weight_spec
from mpq_compile.reconstruct.lockstep import Lockstep, Unit, site_units
from mpq_compile.reconstruct.moments import Moments, Pool, Positions, Reader
from mpq_compile.reconstruct.output_fisher import row_fisher
from mpq_compile.reconstruct.rounded_site import searched_sites, shared_weights
from mpq_compile.reconstruct.site_fit import Place, SiteProblem
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.types import Candidate


def reconstruct_gptq(
    network: Network,
    calibration: Calibration,
    batches: Sequence[Batch],
    assignment: Mapping[str, str],
) -> None:
    """Put codes, scales and biases of all sites with integer weights into ``calibration``.

    Left as they are: sites that see fewer than 64 values of a channel, and weights that an
    embedding shares. No channel ends farther from float than with the nearest codes, as far as the
    calibration data tell.

    Raises:
        CalibrationError: A site's inputs or outputs are not finite.
    """
    graph = QuantizedGraph(network, calibration)
    sites = searched_sites(network, assignment)
    shared = shared_weights(network, assignment)
    several = [site for readers, _ in shared.values() for site in readers]
    weights = row_fisher(graph, batches, [*sites, *several])
    graph.assign(assignment)
    units = site_units(graph)
    if shared:
        _fit_shared(Lockstep(graph, batches), units, shared, weights)
    lockstep = Lockstep(graph, batches)
    with counted(len(network.sites), "gptq") as advance:

        def visit(unit: Unit) -> None:
            for site in unit.sites:
                if site in sites:
                    fit_site(lockstep, unit.exit, site, sites[site], weights)
                advance(1)

        lockstep.run(units, visit)


def _fit_shared(
    lockstep: Lockstep,
    units: Sequence[Unit],
    shared: Mapping[str, tuple[Sequence[str], Candidate]],
    weights: Mapping[str, Sequence[Tensor]],
) -> None:
    """Find the weights that several sites multiply by, and a bias for each site."""
    network, calibration = lockstep.graph.network, lockstep.graph.calibration
    owners = {site: owner for owner, (sites, _) in shared.items() for site in sites}
    pools = {owner: Pool() for owner in shared}
    places: dict[str, Place] = {}
    readers: dict[str, Reader] = {}

    def visit(unit: Unit) -> None:
        for site in unit.sites:
            if site in owners:
                reader = Reader(node=unit.exit, weight=network.weight(site).float())
                bias, counts = network.bias(site), weights.get(site)
                moments = gather(lockstep, reader, bias, counts, rounded=False)
                readers[site], places[site] = reader, Place.of(site, moments, bias)
                pools[owners[site]].add(moments, places[site].biased)

    with counted(len(shared), "gptq of shared weights") as advance:
        lockstep.run(units, visit)
        for owner, (sites, candidate) in shared.items():
            of_sites = [places[site] for site in sites]
            problem = SiteProblem.together(readers[owner], pools[owner], of_sites)
            if problem is not None:
                found = problem.fits(network.rounded(owner, candidate))
                for site, (weight, fit) in zip(sites, found, strict=True):
                    calibration.weights[site, weight.spec] = weight
                    calibration.fits[site, weight.spec] = fit
            advance(1)


def fit_site(
    lockstep: Lockstep,
    node: fx.Node,
    site: str,
    candidate: Candidate,
    weights: Mapping[str, Sequence[Tensor]],
) -> None:
    """Find weight and bias of one site whose inputs both networks have reached.

    Args:
        lockstep: Both networks.
        node: The site in the quantized graph.
        site: Its id.
        candidate: Its format.
        weights: What rows count, of :func:`output_fisher.row_fisher`.
    """
    network, calibration = lockstep.graph.network, lockstep.graph.calibration
    reader = Reader(node=node, weight=network.weight(site).float())
    bias = network.bias(site)
    moments = gather(lockstep, reader, bias, weights.get(site))
    problem = SiteProblem.of(site, reader, moments, bias)
    if problem is not None:
        key = site, weight_spec(candidate)
        found = problem.fit(network.rounded(site, candidate))
        calibration.weights[key], calibration.fits[key] = found


def gather(
    lockstep: Lockstep,
    reader: Reader,
    bias: Tensor,
    weights: Sequence[Tensor] | None = None,
    rounded: bool = True,
) -> Moments:
    """Return the moments of a site: quantized inputs, and what float makes of float inputs.

    A residual counts with its own error: the target is what is to be added to the quantized one.
    ``weights`` say what each row of a batch counts; None for all alike. Where inputs are not
    ``rounded``, all is as in the float network.
    """
    moments, node = Moments(), reader.node
    quantizer, residual = node.args[0], node.args[3]
    source = quantizer.args[0]
    draw = Positions(reader, len(lockstep.batches))
    for i in range(len(lockstep.batches)):
        shape = lockstep.exact[node][i].shape
        positions = draw(shape)
        exact = reader.inputs(lockstep.exact[source][i], shape, positions)
        targets = reader.rows @ exact + bias.reshape(reader.groups, -1, 1)
        if residual is not None and rounded:
            error = lockstep.exact[residual][i] - lockstep.rounded[residual][i]
            targets = targets + reader.outputs(error.expand(shape), positions)
        counts = None if weights is None else weights[i][positions]
        inputs = exact
        if rounded:
            x = lockstep.evaluate(quantizer, {source: lockstep.rounded[source][i]})
            inputs = reader.inputs(x, shape, positions)
        moments.add(inputs, targets, len(lockstep.exact[node][i]), counts)
    return moments
