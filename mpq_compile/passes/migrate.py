"""Move the spread of activations into the weights that read them, as far as it pays.

One scale serves a whole tensor of activations, but every row of a weight has its own. A factor s
by channel, divided into what makes the tensor and multiplied into the columns that read it
(``passes.seams``), evens out the one and costs the other. With the magnitudes |x| of an input
channel over calibration data and |w| of its column,

    smoothquant:  s = (max |x|)^α / (max |w|)^(1 − α)     (Xiao et al., arXiv 2211.10438, eq. 4)
    awq:          s = (mean |x|)^α                        (Lin et al., arXiv 2306.00978, eq. 5)

Here |w| is relative to the largest |w| max |x| of its row: rows have scales of their own, where the
paper's share one, and so it does not matter how a row is scaled [derived].
α is searched for each seam on a grid, by the error of the outputs of what reads it, quantized at
the widths that the method is meant for. Scales are taken only where they lower the error at each
of these widths by 2 % at least: no α is trusted unseen [derived]. The
error counts relative to each output channel's power, as scales of channels mean nothing [derived].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpq_compile.passes.equalize import columns_of, magnitudes_of
from mpq_compile.passes.network import Network
from mpq_compile.passes.rescale import by_column, rescale
from mpq_compile.passes.scale_trials import Factors, InputMagnitudes, Magnitude, Trial, TrialErrors
from mpq_compile.passes.seams import Seam
from mpq_compile.types import Candidate

# One batch each: a network's inputs.
Inputs = Sequence[tuple[Tensor, ...]]
# What the error must fall to, as a share of that without scales.
_WORTH = 0.98
# Scales are judged on so many samples, and batches, at most.
_SAMPLES, _BATCHES = 32, 4


@dataclass(frozen=True, kw_only=True)
class Method:
    """A family of scales and how they are judged.

    Args:
        scale: From max |x|, mean |x| and max |w| by channel, float64 [N], and α, to s.
        alphas: What is tried.
        judged_at: Candidates at each of which the error must fall.
    """

    scale: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    alphas: tuple[float, ...]
    judged_at: tuple[Candidate, ...]


METHODS: Mapping[str, Method] = {
    "smoothquant": Method(
        scale=lambda peak, _, weight, alpha: peak**alpha / weight ** (1 - alpha),
        alphas=(0.5, 0.25, 0.375, 0.625, 0.75, 0.875, 1.0),
        judged_at=(Candidate.parse("w8a8"), Candidate.parse("w4a8")),
    ),
    "awq": Method(
        scale=lambda _, mean, __, alpha: mean**alpha,
        alphas=tuple(step / 10 for step in range(1, 11)),
        judged_at=(Candidate.parse("w4a16"),),
    ),
}


def migrate(
    network: Network,
    seams: Sequence[Seam],
    inputs: Inputs,
    method: Method,
    observer: str = "mse",
    others: Sequence[Factors] = (),
) -> Network:
    """Return a network with scales moved across ``seams``, and the same function.

    Args:
        network: The prepared network; it stays as it is.
        seams: Where scales may move; those that meet in one reader share one α.
        inputs: Calibration data.
        method: Of ``METHODS``.
        observer: How ranges of activations are chosen.
        others: Factors that are tried beside those of the method.

    Raises:
        CalibrationError: The input of a site is not finite.
    """
    if not seams:
        return network
    magnitudes = InputMagnitudes(network, seams)
    with torch.no_grad():
        for batch in inputs:
            magnitudes.run(*batch)
        weights = {
            name: _by_share(weight, magnitudes.found[name])
            for name, weight in magnitudes_of(network, seams).items()
        }
        trials = [
            _trial(part, magnitudes.found, weights, method, others) for part in connected(seams)
        ]
        judge = TrialErrors(network, trials, method.judged_at, observer)
        for batch in _first(inputs):
            judge.run(*batch)
    factors: dict[str, Tensor] = {}
    for trial, errors in zip(trials, judge.errors, strict=True):
        factors |= trial.tried[best_of(errors)]
    return rescale(network, seams, factors)


def connected(seams: Sequence[Seam]) -> list[tuple[Seam, ...]]:
    """Return the seams in parts that have no reader in common."""
    parts: list[tuple[set[str], tuple[Seam, ...]]] = []
    for seam in seams:
        readers = {reader.node for reader in seam.readers}
        members: tuple[Seam, ...] = (seam,)
        apart = []
        for names, others in parts:
            if names & readers:
                readers, members = readers | names, (*others, *members)
            else:
                apart.append((names, others))
        parts = [*apart, (readers, members)]
    return [members for _, members in parts]


def best_of(errors: Tensor) -> int:
    """Return which trial has the least error, summed over candidates: what is large counts.

    Args:
        errors: [trials, candidates]; the first is what there is without scales, and stays unless
            others are better by 2 % at every candidate.
    """
    helps = (errors < _WORTH * errors[0]).all(1)
    return int(errors.sum(1).where(helps, torch.inf).argmin()) if bool(helps.any()) else 0


def _by_share(weight: Tensor, inputs: Magnitude) -> Tensor:
    """Return magnitudes of a weight [N, C/groups], each row relative to its largest product."""
    largest = (weight * by_column(inputs.peak, weight)).amax(1, keepdim=True)
    return weight / largest.where(largest > 0, torch.ones_like(largest))


def _trial(
    part: tuple[Seam, ...],
    inputs: Mapping[str, Magnitude],
    weights: Mapping[str, Tensor],
    method: Method,
    others: Sequence[Factors],
) -> Trial:
    channels = {seam.producer: _channels(seam, inputs, weights) for seam in part}
    tried: list[Factors] = [{}, *({name: given[name] for name in channels} for given in others)]
    for alpha in method.alphas:
        scales = {name: method.scale(*found, alpha) for name, found in channels.items()}
        peaks = {name: found[0] for name, found in channels.items()}
        tried.append(_settled(scales, peaks, part))
    return Trial(seams=part, tried=tuple(tried))


def _channels(
    seam: Seam, inputs: Mapping[str, Magnitude], weights: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return max |x|, mean |x| and max |w| by channel of the producer, over all readers."""
    peak, mean = (torch.zeros(len(seam.free), dtype=torch.float64) for _ in range(2))
    for reader in seam.readers:
        seen = reader.channels >= 0
        found = inputs[reader.node]
        peak.scatter_reduce_(0, reader.channels[seen], found.peak[seen], "amax")
        mean.scatter_reduce_(0, reader.channels[seen], found.mean[seen], "amax")
    return peak, mean, columns_of(seam, weights)


def _settled(
    scales: Mapping[str, Tensor], peaks: Mapping[str, Tensor], part: Sequence[Seam]
) -> dict[str, Tensor]:
    """Bring scales to a size at which the largest input stays what it is.

    Held channels keep their own size, and share a tensor with the others. A channel that is never
    seen, or never read, takes the middle one of the scales.
    """
    usable = {
        seam.producer: seam.free & scales[seam.producer].isfinite() & (scales[seam.producer] > 0)
        for seam in part
    }
    known = torch.cat([scales[name][mask] for name, mask in usable.items()])
    if not len(known):
        return {}
    middle = known.median()
    full = {name: scales[name].where(mask, middle) for name, mask in usable.items()}
    before = torch.cat([peaks[name][mask] for name, mask in usable.items()]).max()
    after = torch.cat([(peaks[name] / full[name])[mask] for name, mask in usable.items()]).max()
    return {name: scale * (after / before) for name, scale in full.items()}


def _first(inputs: Inputs) -> list[tuple[Tensor, ...]]:
    """Return the first batches, up to the samples that scales are judged on."""
    chosen: list[tuple[Tensor, ...]] = []
    seen = 0
    for batch in inputs[:_BATCHES]:
        if seen >= _SAMPLES:
            break
        chosen.append(batch)
        seen += len(batch[0]) if batch[0].dim() else 1
    return chosen
