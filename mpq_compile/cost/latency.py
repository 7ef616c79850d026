"""Latency of a network from its sites, anchored on whole networks that were measured.

A site measured alone tells nothing of what lies between sites. For each uniform assignment c that
was measured as a whole, T(c) is compared with the sum of its L sites. What is missing is spread
evenly; where the sum is too large (a kernel in a loop of its own finds colder caches than in the
network, or the other way round), every site shrinks alike:

    t'_l(c) = t_l(c) + (T(c) − Σ_l t_l(c)) / L    where T(c) ≥ Σ_l t_l(c)        [derived]
    t'_l(c) = t_l(c) · T(c) / Σ_l t_l(c)          elsewhere

so that every anchored assignment is predicted exactly, and mixed ones in between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from mpq_compile.types import Candidate, CostTable


def anchored(costs: CostTable, anchors_us: Mapping[str, float]) -> CostTable:
    """Return ``costs`` with latencies corrected by whole-network measurements.

    Args:
        costs: Latencies of sites measured alone.
        anchors_us: Measured latency of the network with all sites at a candidate, µs. Candidates
            without an anchor take the correction of the one nearest to them: the same input
            format, then the nearest weight bits.
    """
    if not anchors_us:
        return costs
    correct = {name: _correction(costs, name, total) for name, total in anchors_us.items()}
    corrected: dict[str, dict[str, dict[str, float]]] = {}
    for site, entries in costs.costs.items():
        corrected[site] = {}
        for name, entry in entries.items():
            latency = correct[_nearest(correct, name)](entry["latency_us"])
            corrected[site][name] = {**entry, "latency_us": latency}
    return dataclasses.replace(costs, costs=corrected)


def _correction(costs: CostTable, name: str, total_us: float) -> Callable[[float], float]:
    """Return t → t' for the assignment of ``name``; sites without it are at their fastest."""
    alone = [
        entries[name]["latency_us"]
        if name in entries
        else min(entry["latency_us"] for entry in entries.values())
        for entries in costs.costs.values()
    ]
    missing = total_us - sum(alone)
    if missing >= 0:
        return lambda latency_us: latency_us + missing / len(alone)
    return lambda latency_us: latency_us * total_us / sum(alone)


def _nearest(anchors: Mapping[str, object], name: str) -> str:
    return min(anchors, key=lambda anchor: _distance(anchor, name))


def _distance(anchor: str, name: str) -> tuple[bool, int]:
    first, second = Candidate.parse(anchor), Candidate.parse(name)
    same = first.input_format == second.input_format
    return not same, abs(first.weight_bits - second.weight_bits)


def scaled(costs: CostTable, factor: float) -> CostTable:
    """Return ``costs`` with every latency multiplied by ``factor``."""
    table = {
        site: {
            name: {**entry, "latency_us": entry["latency_us"] * factor}
            for name, entry in entries.items()
        }
        for site, entries in costs.costs.items()
    }
    transitions = {
        pair: {formats: value * factor for formats, value in entry.items()}
        for pair, entry in costs.transitions.items()
    }
    return dataclasses.replace(costs, costs=table, transitions=transitions)
