"""Latency of a network from its sites, anchored on whole networks that were measured.

A site measured alone tells nothing of what lies between sites. For each uniform assignment c that
was measured as a whole, the difference to the sum of its sites is spread evenly over them:

    t'_l(c) = t_l(c) + (T(c) − Σ_l t_l(c)) / L        [derived]

so that every anchored assignment is predicted exactly, and mixed ones in between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

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
    share = {name: _share(costs, name, total) for name, total in anchors_us.items()}
    corrected: dict[str, dict[str, dict[str, float]]] = {}
    for site, entries in costs.costs.items():
        corrected[site] = {}
        for name, entry in entries.items():
            nearest = min(share, key=lambda anchor, name=name: _distance(anchor, name))  # type: ignore[misc]
            # A correction never makes a site free: what it costs is at least a tenth of its own.
            latency = max(entry["latency_us"] + share[nearest], 0.1 * entry["latency_us"])
            corrected[site][name] = {**entry, "latency_us": latency}
    return dataclasses.replace(costs, costs=corrected)


def _share(costs: CostTable, name: str, total_us: float) -> float:
    alone = [entries[name]["latency_us"] for entries in costs.costs.values() if name in entries]
    rest = [
        min(entry["latency_us"] for entry in entries.values())
        for entries in costs.costs.values()
        if name not in entries
    ]
    return (total_us - sum(alone) - sum(rest)) / len(costs.costs)


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
