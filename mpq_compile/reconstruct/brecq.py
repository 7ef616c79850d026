"""BRECQ: roundings of a block together, by what its output loses in the eyes of the network's.

    min over V of  E (z − ẑ(V))ᵀ diag F (z − ẑ(V))

Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", arXiv
2102.05426: z is what a block of the float network gives, ẑ what the quantized one makes of the
inputs that the quantized blocks before it give, F the diagonal Fisher information of z. Activations
are quantized meanwhile, with a straight-through gradient; in ``qdrop`` half of them, drawn anew in
each step, are left float (QDrop, Wei et al., arXiv 2203.05740).

Each block first gets the codes of :mod:`reconstruct.gptq` for the inputs that reach it. What is
learned from the float weights, as published, takes their place where it loses less, and to the
better of the two gains and biases of the channels are tuned; both are judged on samples that
nothing is learned from [derived].
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from mpq_compile.calibrate import Batch
from mpq_compile.passes.network import Network
from mpq_compile.progress import counted
from mpq_compile.quant.calibration import Calibration
from mpq_compile.reconstruct.block_runner import BlockRunner
from mpq_compile.reconstruct.block_search import BlockSearch, LearnedSite, learn, loss_of
from mpq_compile.reconstruct.blocks import block_units, parts
from mpq_compile.reconstruct.gptq import fit_site
from mpq_compile.reconstruct.lockstep import Lockstep, Unit
from mpq_compile.reconstruct.output_fisher import diagonal_fisher, row_fisher
from mpq_compile.reconstruct.rounded_site import RoundedSite, check_samples, searched_sites
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.types import Candidate

log = logging.getLogger(__name__)

DEFAULT = BlockSearch()
# One batch in so many is not learned from.
_HELD = 4


def reconstruct_brecq(
    network: Network,
    calibration: Calibration,
    batches: Sequence[Batch],
    assignment: Mapping[str, str],
    search: BlockSearch = DEFAULT,
) -> None:
    """Put codes, scales and biases of all sites with integer weights into ``calibration``.

    Left as they are: sites that share a weight with another. A block that is not better than what
    ``gptq`` finds keeps that, and which did is logged.

    Raises:
        CalibrationError: There are too few samples, a site's inputs or outputs are not finite, or
            no output tells how far a network is from float.
    """
    check_samples(batches, "brecq")
    graph = QuantizedGraph(network, calibration)
    blocks = block_units(graph)
    exits = [block.exit.name for block in blocks if block.sites]
    sites = searched_sites(network, assignment)
    fisher = diagonal_fisher(graph, batches, exits, search.annealing.seed)
    weights = row_fisher(graph, batches, sites)
    graph.assign(assignment)
    lockstep = Lockstep(graph, batches)
    kept: list[str] = []
    searched = 0
    with counted(len(network.sites), "brecq") as advance:

        def visit(block: Unit) -> None:
            nonlocal searched
            own = {site: sites[site] for site in block.sites if site in sites}
            if own:
                searched += 1
                exit_fisher = fisher[block.exit.name]
                if not search_block(lockstep, block, own, exit_fisher, weights, search):
                    kept.append(", ".join(own))
            advance(len(block.sites))

        lockstep.run(blocks, visit)
    if kept:
        log.warning(
            "%d of %d blocks keep what gptq found: %s", len(kept), searched, "; ".join(kept)
        )


def reconstruct_qdrop(
    network: Network,
    calibration: Calibration,
    batches: Sequence[Batch],
    assignment: Mapping[str, str],
    search: BlockSearch = DEFAULT,
) -> None:
    """As ``reconstruct_brecq``, with half of the activations left float meanwhile."""
    reconstruct_brecq(network, calibration, batches, assignment, replace(search, drop=0.5))


def search_block(
    lockstep: Lockstep,
    block: Unit,
    sites: Mapping[str, Candidate],
    fisher: Tensor,
    weights: Mapping[str, Sequence[Tensor]],
    search: BlockSearch,
) -> bool:
    """Search one block that both networks have reached; tell whether it got better than gptq.

    ``fisher`` weighs the elements of its output, ``weights`` the rows of its sites.
    """
    network, calibration = lockstep.graph.network, lockstep.graph.calibration
    for part in parts(lockstep.graph, block):
        for site in part.sites:
            if site in sites:
                fit_site(lockstep, part.exit, site, sites[site], weights)
        lockstep.advance(part)
    runner = BlockRunner(lockstep=lockstep, block=block, sites={}, fisher=fisher)
    count = len(lockstep.batches)
    # Not the last one, which may be short.
    held = range(min(1, count - 1), count, _HELD)
    seen = [i for i in range(count) if i not in held] or list(held)
    gptq = {s: RoundedSite.of(network, calibration, s, c) for s, c in sites.items()}
    first = loss_of(runner, gptq, held)
    from_float = {s: LearnedSite.from_float(network, s, c) for s, c in sites.items()}
    soft = learn(runner, from_float, seen, search)
    second = loss_of(runner, soft, held)
    best = soft if second < first else gptq
    from_codes = {s: LearnedSite.from_codes(network, s, rounded) for s, rounded in best.items()}
    tuned = learn(runner, from_codes, seen, search)
    third = loss_of(runner, tuned, held)
    names = ", ".join(sites)
    log.info("%s: gptq %.4g, learned %.4g, the better tuned %.4g", names, first, second, third)
    for site, rounded in (tuned if third < min(first, second) else best).items():
        rounded.put(calibration, site)
    return min(second, third) < first
