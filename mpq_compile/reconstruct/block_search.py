"""Roundings of all sites of a block, learned together by what the block's output loses.

AdaRound's variables and penalty (:mod:`reconstruct.soft_rounding`) for every weight of the block,
with the loss of BRECQ (arXiv 2102.05426). Beside them, or alone where codes stay, each channel
learns a gain of its scales and its bias [derived]: both go into scale and bias, so kernels and size
stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mpq_compile.passes.network import Network
from mpq_compile.reconstruct.block_runner import BlockRunner, GivenSite
from mpq_compile.reconstruct.rounded_site import RoundedSite
from mpq_compile.reconstruct.soft_rounding import Annealing, SoftRounding
from mpq_compile.types import Candidate


@dataclass(frozen=True, kw_only=True)
class BlockSearch:
    """How the roundings of a block are searched.

    Args:
        annealing: Steps, rate of the roundings, penalty, seed.
        samples: Samples that a step sees.
        channel_rate: Rate of gains and biases.
        drop: Share of the activations that are left float meanwhile.
    """

    annealing: Annealing = Annealing(steps=300, rate=2e-2, penalty=0.3)
    samples: int = 32
    channel_rate: float = 1e-3
    drop: float = 0.0


class LearnedSite(nn.Module):
    """A site while its rounding, its gains and its bias are learned.

    Args:
        start: Codes, scales and shift to start from.
        bias: The float bias, [N]; None where the site has none.
        weight: The float weight [N, ...] whose rounding is learned; None where codes stay.
    """

    bias: Tensor | None

    def __init__(
        self, start: RoundedSite, bias: Tensor | None, weight: Tensor | None = None
    ) -> None:
        super().__init__()
        self._start = start
        self._float_bias = bias
        self.soft = None if weight is None else SoftRounding(weight, start.weight)
        self.gain = nn.Parameter(torch.zeros_like(start.shift))
        self.bias = None if bias is None else nn.Parameter(bias + start.shift)

    @classmethod
    def from_float(cls, network: Network, site: str, candidate: Candidate) -> LearnedSite:
        """Return a site with its float weight, each code to be chosen of the two beside it."""
        nearest = network.rounded(site, candidate)
        bias = network.bias(site)
        start = RoundedSite(weight=nearest, shift=torch.zeros_like(bias))
        return cls(start, bias if network.biased(site) else None, network.weight(site))

    @classmethod
    def from_codes(cls, network: Network, site: str, rounded: RoundedSite) -> LearnedSite:
        """Return a site whose codes stay: gains and bias are learned alone."""
        return cls(rounded, network.bias(site) if network.biased(site) else None)

    def weight(self) -> Tensor:
        """Return the weight as it is now."""
        codes = self._start.weight.dequantize() if self.soft is None else self.soft()
        return codes * self.gain.exp().reshape(-1, *[1] * (codes.dim() - 1))

    @torch.no_grad()
    def rounded(self) -> RoundedSite:
        """Return the site with hard codes."""
        hard = self._start.weight if self.soft is None else self.soft.hardened()
        gain = self.gain.exp()
        wide = gain if hard.scale.dim() == 1 else gain[:, None]
        shift = self._start.shift
        if self.bias is not None and self._float_bias is not None:
            shift = self.bias.detach() - self._float_bias
        return RoundedSite(weight=replace(hard, scale=hard.scale * wide), shift=shift)


def learn(
    runner: BlockRunner,
    sites: Mapping[str, LearnedSite],
    batches: Sequence[int],
    search: BlockSearch,
) -> dict[str, RoundedSite]:
    """Train the sites of a block, and return how they are rounded then.

    Args:
        runner: The block; its loss is counted in what the sites lose with hard codes at first.
        sites: The sites, at their start.
        batches: Numbers of the batches to learn from.
        search: How.
    """
    before = loss_of(runner, {site: found.rounded() for site, found in sites.items()}, batches)
    if before > 0:
        generator = torch.Generator().manual_seed(search.annealing.seed)
        run = replace(runner, sites=sites, drop=search.drop, generator=generator)
        with torch.enable_grad():
            _train(run, list(sites.values()), batches, before, search)
    return {site: found.rounded() for site, found in sites.items()}


def loss_of(runner: BlockRunner, sites: Mapping[str, RoundedSite], batches: Sequence[int]) -> float:
    """Return the mean loss of a block over these batches with its sites rounded so."""
    network = runner.lockstep.graph.network
    given = {site: GivenSite.of(network, site, rounded) for site, rounded in sites.items()}
    run = replace(runner, sites=given)
    with torch.no_grad():
        return float(torch.stack([run.loss(i) for i in batches]).mean())


def _train(
    run: BlockRunner,
    sites: Sequence[LearnedSite],
    batches: Sequence[int],
    before: float,
    search: BlockSearch,
) -> None:
    how = search.annealing
    soft = [site.soft for site in sites if site.soft is not None]
    channels = [p for site in sites for p in (site.gain, site.bias) if p is not None]
    optimizer = torch.optim.Adam(
        [
            {"params": channels, "lr": search.channel_rate},
            {"params": [rounding.choice for rounding in soft], "lr": how.rate},
        ]
    )
    size = len(run.lockstep.exact[run.block.exit][0])
    # A network that fixes its batch takes several of them a step.
    count = max(1, search.samples // max(size, 1))
    for step in range(how.steps):
        optimizer.zero_grad()
        for i in torch.randint(len(batches), (count,), generator=run.generator).tolist():
            (run.loss(batches[i]) / (before * count)).backward()
        for pull in [how.pull(step, rounding) / len(soft) for rounding in soft]:
            if pull.requires_grad:
                pull.backward()
        optimizer.step()
