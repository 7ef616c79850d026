"""Codes, scales and biases of each site on the float network's inputs, for any of its widths.

What :mod:`gptq` finds for a site depends on the sites before it, so that each assignment needs its
own. Here the inputs are the float network's, and a fit belongs to (site, weight spec) alone: the
target is the float weight, the metric its inputs' second moments, which are gathered once and
serve every width. Fits are made once, kept on disk, and then any number of assignments costs
nothing more: sensitivities can be measured on them, and thousands of networks judged. What is
lost against ``gptq`` is that no site makes up for the error of another [derived].
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx

from mpq_compile.calibrate import Batch
from mpq_compile.errors import PlanError, nearest
from mpq_compile.passes.network import Network
from mpq_compile.progress import counted, track
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.weights import QuantizedWeight, weight_spec
from mpq_compile.reconstruct.correction import FEWEST
from mpq_compile.reconstruct.kept_fits import KeptFits, fit_of, spec_name, tensors_of
from mpq_compile.reconstruct.lockstep import MEMORY_MB
from mpq_compile.reconstruct.moments import Moments, Positions, Reader
from mpq_compile.reconstruct.output_fisher import row_fisher
from mpq_compile.reconstruct.site_fit import SiteProblem
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.types import Candidate, Site
from mpq_compile.workpool import Results, Work, current_pool, titled

log = logging.getLogger(__name__)

# What sensitivities are measured on.
WEIGHTS = ("nearest", "rounded")
# Processes that work together get so many groups of sites each: their costs differ.
_GROUPS_A_PROCESS = 2
# Nearest codes of a site, one entry for each weight spec that is to be fitted.
Starts = Mapping[str, Sequence[QuantizedWeight]]


def check_weights(name: str) -> None:
    """Raise ``PlanError`` for weights that no sensitivity is measured on."""
    if name not in WEIGHTS:
        raise PlanError(
            f"unknown weights to measure sensitivities on: {name!r}",
            expected=f"one of {', '.join(WEIGHTS)}",
            found=repr(name),
            remedy=nearest(name, WEIGHTS),
        )


def reconstruct_per_site(
    network: Network,
    calibration: Calibration,
    batches: Sequence[Batch],
    assignment: Mapping[str, str | Sequence[str]],
    memory_mb: float = MEMORY_MB,
) -> None:
    """Add to ``calibration`` the codes, scales and biases of these candidates that it lacks.

    Weights of 8 bits and floats are left as they are, and so are sites that share a weight with
    another, and those that see fewer than 64 values of a channel. No channel ends farther from
    float than with the nearest codes, as far as the calibration data tell.

    Args:
        network: The prepared network.
        calibration: Its ``weights`` and ``fits`` are filled.
        batches: Calibration data; all of it is run once for each group of sites whose moments fit
            into memory together.
        assignment: A candidate, or several, by site.
        memory_mb: What the moments of a group of sites may take, 10⁶ bytes.

    Raises:
        CalibrationError: A site's inputs or outputs are not finite.
    """
    missing = _missing(network, calibration, assignment)
    if not missing:
        return
    kept = KeptFits(network, batches)
    wanted: dict[str, list[QuantizedWeight]] = {}
    for site, starts in missing.items():
        for start in starts:
            found = kept.load(site, start)
            if found is None:
                wanted.setdefault(site, []).append(start)
            else:
                calibration.weights[site, start.spec], calibration.fits[site, start.spec] = found
    pool = current_pool()
    most = -(-len(wanted) // (_GROUPS_A_PROCESS * pool.size)) if pool.size > 1 else len(wanted)
    groups = groups_within(network, wanted, memory_mb, most)
    graph = QuantizedGraph(network, calibration)

    def fitted(unit: str) -> Results:
        sites = json.loads(unit)
        found = gathered(network, batches, sites, row_fisher(graph, batches, sites))
        return {
            name: value
            for site in sites
            for name, value in _fits(network, site, found[site], missing[site]).items()
        }

    work = Work(key=lambda: kept.key, units=[json.dumps(group) for group in groups], compute=fitted)
    with counted(len(wanted), titled("fit sites")) as advance:
        for unit, results in pool.results(work):
            for site in json.loads(unit):
                _take(calibration, site, wanted[site], results, kept)
                advance(1)


def _missing(
    network: Network, calibration: Calibration, choices: Mapping[str, str | Sequence[str]]
) -> Starts:
    """Return what is to be fitted, by site in the order of execution."""
    # Sites that share a weight share its codes: there is no one input to fit them to.
    tied = Counter(site.group for site in network.sites)
    missing: dict[str, list[QuantizedWeight]] = {}
    for site in network.sites:
        names = choices.get(site.id, ())
        names = [names] if isinstance(names, str) else names
        candidates = [c for c in map(Candidate.parse, names) if c.weight_bits < 8]
        by_spec = {weight_spec(candidate): candidate for candidate in candidates}
        new = [c for spec, c in by_spec.items() if (site.id, spec) not in calibration.weights]
        if new and tied[site.group] == 1 and site.multiplies:
            missing[site.id] = [network.rounded(site.id, candidate) for candidate in new]
    return missing


def groups_within(
    network: Network, wanted: Starts, memory_mb: float, most: int | None = None
) -> Iterator[list[str]]:
    """Yield at most ``most`` sites whose moments fit into ``memory_mb`` together; one at least."""
    group: list[str] = []
    left = memory_mb * 1e6
    for site in network.sites:
        if site.id not in wanted:
            continue
        needed = moment_bytes(network, site)
        if group and (needed > left or len(group) == most):
            yield group
            group, left = [], memory_mb * 1e6
        group.append(site.id)
        left -= needed
    if group:
        yield group


def moment_bytes(network: Network, site: Site) -> float:
    """Return the bytes of a site's moments: float64 [G, K, K] and [G, n, K], and their means."""
    outputs, *inputs = network.weight(site.id).flatten(1).shape
    width = inputs[0]
    return 8.0 * (site.groups * width * (width + 1) + outputs * (width + 1))


def gathered(
    network: Network,
    batches: Sequence[Batch],
    sites: Sequence[str],
    weights: Mapping[str, Sequence[Tensor]],
) -> dict[str, Moments]:
    """Return the moments of float inputs and outputs of some sites, from one pass over the data.

    ``weights`` say what rows of a site count, a tensor for each batch.
    """
    gathering = _Gathering(network, sites, len(batches))
    with torch.no_grad():
        for i, batch in enumerate(track(batches, "gather moments")):
            counts = {site: parts[i] for site, parts in weights.items()}
            gathering.run_batch(batch.inputs, counts)
    return gathering.moments


def _fits(
    network: Network, site: str, moments: Moments, starts: Sequence[QuantizedWeight]
) -> dict[str, Tensor]:
    """Return the tensors of a site's fits by site, spec and name; none where it saw too little."""
    reader = _reader(network, site)
    problem = SiteProblem.of(site, reader, moments, network.bias(site))
    if problem is None:
        few = f"{moments.count} values of a channel, {FEWEST} are needed"
        log.warning("%s keeps its nearest codes: the calibration data has %s", site, few)
        return {}
    return {
        f"{site} {spec_name(start.spec)} {name}": value
        for start in starts
        for name, value in tensors_of(problem.fit(start)).items()
    }


def _take(
    calibration: Calibration,
    site: str,
    starts: Sequence[QuantizedWeight],
    results: Results,
    kept: KeptFits,
) -> None:
    """Put a site's fits into ``calibration`` and on disk; nearest codes where none was found."""
    for start in starts:
        prefix = f"{site} {spec_name(start.spec)} "
        own = {k.removeprefix(prefix): v for k, v in results.items() if k.startswith(prefix)}
        if not own:
            calibration.weights[site, start.spec] = start
            continue
        fit = fit_of(own, start)
        calibration.weights[site, start.spec], calibration.fits[site, start.spec] = fit
        kept.save(site, fit)


def _reader(network: Network, site: str) -> Reader:
    return Reader(node=network.node(network.node_of[site]), weight=network.weight(site).float())


class _Gathering(fx.Interpreter):
    """Runs the float graph; at each site, adds its inputs and what it makes of them."""

    def __init__(self, network: Network, sites: Sequence[str], batches: int) -> None:
        super().__init__(network.module)
        self._site_of = {network.node_of[site]: site for site in sites}
        self._readers = {site: _reader(network, site) for site in sites}
        self._draws = {site: Positions(self._readers[site], batches) for site in sites}
        self._biases = {site: network.bias(site) for site in sites}
        self.moments = {site: Moments() for site in sites}
        self._left: set[str] = set()
        self._counts: Mapping[str, Tensor] = {}

    def run_batch(self, inputs: Sequence[Tensor], counts: Mapping[str, Tensor]) -> None:
        """Add a batch; what comes after the last of the sites is not computed."""
        self._left, self._counts = set(self._site_of), counts
        self.run(*inputs)

    def run_node(self, node: fx.Node) -> object:
        if not self._left:
            return None
        site = self._site_of.get(node.name)
        if site is None:
            return super().run_node(node)
        self._left.remove(node.name)
        x: Tensor = self.env[node.args[0]]
        y: Tensor = super().run_node(node)
        reader, shape = self._readers[site], tuple(y.shape)
        positions = self._draws[site](shape)
        inputs = reader.inputs(x, shape, positions)
        targets = reader.rows @ inputs + self._biases[site].reshape(reader.groups, -1, 1)
        counts = self._counts.get(site)
        self.moments[site].add(
            inputs, targets, len(y), None if counts is None else counts[positions]
        )
        return y
