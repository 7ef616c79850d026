"""What ours are meant to reach against the peers, and whether a run shows it.

The goals were set for a machine with AMX; on others they say how far it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from contenders.interleave import Result
from contenders.ratios import Ratio, ratio_to_best

# Ours may be this much noisier than the peer it is compared with.
NOISE_TOLERANCE_DB = 1.0
# Above this, two outputs differ by the order of float32 sums only.
FLOAT_DB = 100.0


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Ours is at least ``at_least`` times as fast as the best of ``peers`` (all for none)."""

    ours: str
    at_least: float
    peers: tuple[str, ...] = ()


_FLOAT_GOALS = (
    Goal(ours="ours bf16", at_least=1.0, peers=("OpenVINO bf16",)),
    Goal(ours="ours fp32", at_least=0.9, peers=("ONNX Runtime fp32", "OpenVINO fp32")),
)
_SINGLE = {"resnet18": 1.25, "mobilenetv2": 1.3, "resnet20": 1.6, "encoder": 1.3}


def goals_of(network: str, batch: int, mixes: Sequence[str] = ()) -> tuple[Goal, ...]:
    """Return the goals of a network at a batch; ``mixes`` are names of ours that have w8a8's."""
    names = ("ours w8a8", *mixes)
    if batch > 1:
        return tuple(Goal(ours=name, at_least=0.9) for name in names)
    # Networks that no goal was set for are to be as fast as the best peer.
    single = _SINGLE.get(network, 1.0)
    return (*(Goal(ours=name, at_least=single) for name in names), *_FLOAT_GOALS)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A goal beside what was measured.

    Args:
        goal: Which.
        ratio: What was measured.
        noise_db: SQNR of ours less that of the peer, both cut at what float32 tells apart; None
            where outputs were not compared.
        met: The lower end of the ratio's interval reaches the goal, and the noise is tolerable.
    """

    goal: Goal
    ratio: Ratio
    noise_db: float | None
    met: bool


def timed(results: Sequence[Result]) -> dict[str, Result]:
    """Return the results that have times, by name."""
    return {r.contender.name: r for r in results if not r.reason}


def judged(results: Sequence[Result], goals: Sequence[Goal]) -> list[Verdict]:
    """Return a verdict for each goal whose contenders ran."""
    found = timed(results)
    verdicts = []
    for goal in goals:
        names = goal.peers or [n for n, r in found.items() if not r.contender.ours]
        peers = {name: found[name].block_ms for name in names if name in found}
        if goal.ours in found and peers:
            verdicts.append(_verdict(goal, found, peers))
    return verdicts


def _verdict(
    goal: Goal, found: Mapping[str, Result], peers: Mapping[str, Sequence[float]]
) -> Verdict:
    ratio = ratio_to_best(found[goal.ours].block_ms, peers)
    assert ratio is not None
    noise = noise_difference_db(found[goal.ours], found[ratio.peer])
    quiet = noise is None or noise >= -NOISE_TOLERANCE_DB
    return Verdict(goal=goal, ratio=ratio, noise_db=noise, met=ratio.low >= goal.at_least and quiet)


def noise_difference_db(ours: Result, peer: Result) -> float | None:
    """Return the SQNR of ours less the peer's, dB, each cut at ``FLOAT_DB``."""
    if ours.sqnr_db is None or peer.sqnr_db is None:
        return None
    return min(ours.sqnr_db, FLOAT_DB) - min(peer.sqnr_db, FLOAT_DB)
