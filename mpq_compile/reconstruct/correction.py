"""Gain and shift of each output channel that bring a site with rounded weights back to float.

Rounding changes the mean of a channel and, at few bits, shrinks it: what is left of the signal is
the part that correlates with the float output. Over calibration data, with y the float output
before residual and clamp and ŷ that of the rounded weight,

    gain, shift = argmin E (y − gain · ŷ − shift)²        by channel, in closed form

``affine`` fits both; ``bias`` leaves the gain at 1, which is empirical bias correction (Nagel et
al., arXiv 1906.04721; Finkelstein et al., arXiv 1906.03193); ``analytic`` takes that shift from
batch norms instead of data, and from data where there are none (``analytic_bias``). The gain goes
into the scale of the weights and the shift into the bias: codes, kernels and size stay what they
are [derived]. A site without a bias gets a gain alone, and sites that share a weight share one
gain, so that its scales are stored once. Inputs are the float network's, so a fit belongs to its
sites and the width of their weight, whatever other sites have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from mpq_compile.calibrate import Batch
from mpq_compile.errors import PlanError, nearest
from mpq_compile.passes import ops
from mpq_compile.passes.base import is_call
from mpq_compile.passes.network import Network
from mpq_compile.progress import track
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.weights import ChannelFit, QuantizedWeight, weight_spec
from mpq_compile.reconstruct.analytic_bias import shift_by_statistics
from mpq_compile.types import Candidate, QSpec

CORRECTIONS = ("affine", "bias", "analytic", "none")
# Each channel is fitted on so many values where the data has them, and on so many samples.
_VALUES, _SAMPLES = 16384, 32
# Two numbers fitted to fewer values would follow their noise: such sites are left as they are.
FEWEST = 64
# A channel that rounding left without signal is not blown up, nor turned over.
_LEAST, _MOST = 0.25, 4.0


def check_correction(name: str) -> None:
    """Raise ``PlanError`` for an unknown correction."""
    if name not in CORRECTIONS:
        raise PlanError(
            f"unknown correction {name!r}",
            expected=f"one of {', '.join(CORRECTIONS)}",
            found=repr(name),
            remedy=nearest(name, CORRECTIONS),
        )


def fit_channels(
    network: Network,
    calibration: Calibration,
    batches: Sequence[Batch],
    choices: Mapping[str, str | Sequence[str]],
    correction: str = "affine",
) -> None:
    """Add to ``calibration`` the fits of these candidates that it lacks, in one pass over the data.

    Weights of 8 bits and floats are left as they are, and so are sites that see fewer than 64
    values of a channel: a linear layer on less than 64 samples.

    Args:
        network: The prepared network.
        calibration: Its ``fits`` are filled.
        batches: Calibration data; only as much as is needed is run.
        choices: A candidate, or several, by site.
        correction: One of ``CORRECTIONS``.
    """
    check_correction(correction)
    wanted = {} if correction == "none" else _missing(network, calibration, choices)
    if correction == "analytic":
        wanted = shift_by_statistics(network, calibration, wanted)
    if not wanted:
        return
    fitting = _Fitting(network, wanted)
    with torch.no_grad():
        for batch in track(batches, "fit channels"):
            if fitting.complete:
                break
            fitting.run(*batch.inputs)
    for (_, spec), moments in _by_weight(network, wanted, fitting.moments).items():
        biased = {site: network.biased(site) for site in moments}
        gain = _gain([moment.products(biased[site]) for site, moment in moments.items()])
        if correction != "affine" or sum(m.count for m in moments.values()) < FEWEST:
            gain = torch.ones_like(gain)
        for site, moment in moments.items():
            calibration.fits[site, spec] = moment.fit(gain, biased[site])


def _missing(
    network: Network, calibration: Calibration, choices: Mapping[str, str | Sequence[str]]
) -> dict[str, list[QuantizedWeight]]:
    """Return the rounded weights that are to be fitted, by site."""
    wanted: dict[str, list[QuantizedWeight]] = {}
    multiplying = {site.id for site in network.sites if site.multiplies}
    for site, names in choices.items():
        if site not in multiplying:
            continue
        names = [names] if isinstance(names, str) else names
        candidates = [Candidate.parse(name) for name in names]
        rounded = {weight_spec(c): c for c in candidates if c.weight_bits < 8}
        new = [c for spec, c in rounded.items() if (site, spec) not in calibration.fits]
        if new:
            wanted[site] = [network.rounded(site, candidate) for candidate in new]
    return wanted


@dataclass
class _Moments:
    """Sums over values by channel, float64 [N]: of y and ŷ, and of their products."""

    count: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(4, 1, dtype=torch.float64))

    def add(self, exact: Tensor, rounded: Tensor) -> None:
        """Add values, float64 [N, count]."""
        products = (exact, rounded, exact * rounded, rounded * rounded)
        self.sums = self.sums + torch.stack([value.sum(1) for value in products])
        self.count += exact.shape[1]

    def products(self, biased: bool) -> Tensor:
        """Return Σ y·ŷ and Σ ŷ², about the means where there is a shift, and Σ ŷ², [3, N]."""
        y, z, yz, zz = self.sums
        count = max(self.count, 1)
        return torch.stack([yz - y * z / count, zz - z * z / count, zz] if biased else [yz, zz, zz])

    def fit(self, gain: Tensor, biased: bool) -> ChannelFit:
        """Return ``gain`` with the least-squares shift, which is zero for few values."""
        shift = torch.zeros_like(gain)
        if biased and self.count >= FEWEST:
            y, z, _, _ = self.sums / self.count
            shift = y - gain * z
        return ChannelFit(gain=gain.float(), shift=shift.float())


def _gain(products: Sequence[Tensor]) -> Tensor:
    """Return the least-squares gain of each channel, float64 [N], of the sites of one weight."""
    above, below, power = torch.stack(list(products)).sum(0)
    ones = torch.ones_like(above)
    # A channel that does not vary has no gain to be found.
    varies = below > 1e-9 * power
    return torch.where(varies, above / below.where(varies, ones), ones).clamp(_LEAST, _MOST)


def _by_weight(
    network: Network,
    wanted: Mapping[str, Sequence[QuantizedWeight]],
    moments: Mapping[str, Sequence[_Moments]],
) -> dict[tuple[str, QSpec], dict[str, _Moments]]:
    """Return the moments of the sites that multiply by one rounded weight, by that weight."""
    together: dict[tuple[str, QSpec], dict[str, _Moments]] = {}
    for site, weights in wanted.items():
        for weight, moment in zip(weights, moments[site], strict=True):
            key = network.scale_owner_of[site], weight.spec
            together.setdefault(key, {})[site] = moment
    return together


class _Fitting(fx.Interpreter):
    """Runs the float graph; at each site, compares what rounded weights make of its input."""

    def __init__(self, network: Network, wanted: Mapping[str, Sequence[QuantizedWeight]]) -> None:
        super().__init__(network.module)
        self._network = network
        self._weights = {
            site: [weight.dequantize() for weight in weights] for site, weights in wanted.items()
        }
        self._site_of = {network.node_of[site]: site for site in wanted}
        self._samples = dict.fromkeys(wanted, 0)
        self.moments = {site: [_Moments() for _ in weights] for site, weights in wanted.items()}

    @property
    def complete(self) -> bool:
        """True where no site needs more data."""
        return all(self._has_enough(site) for site in self.moments)

    def _has_enough(self, site: str) -> bool:
        return self.moments[site][0].count >= _VALUES and self._samples[site] >= _SAMPLES

    def run_node(self, node: fx.Node) -> object:
        site = self._site_of.get(node.name)
        if site is not None and not self._has_enough(site):
            self._compare(node, site)
        return super().run_node(node)

    def _compare(self, node: fx.Node, site: str) -> None:
        x: Tensor = self.env[node.args[0]]
        self._samples[site] += len(x) if x.dim() else 1
        exact = _plain(node, x, self._network.weight(site))
        for moments, weight in zip(self.moments[site], self._weights[site], strict=True):
            moments.add(exact, _plain(node, x, weight))


def _plain(node: fx.Node, x: Tensor, weight: Tensor) -> Tensor:
    """Return what a site computes before bias, residual and clamp, float64 [N, values]."""
    if is_call(node, ops.site_linear):
        found = ops.site_linear(x, weight, None, None)
        return found.reshape(-1, found.shape[-1]).T.double()
    geometry = node.args[4:9]
    found = ops.site_conv2d(x, weight, None, None, *geometry)
    return found.transpose(0, 1).flatten(1).double()
