"""Whole networks, uniform and mixed, that are measured: what the latency model is anchored on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mpq_compile.building import build_plans
from mpq_compile.cost.latency import Observation
from mpq_compile.cost.measurement import Measurement, MeasurementKey
from mpq_compile.cost.store import Store
from mpq_compile.cost.summary import measurement_of
from mpq_compile.cost.table import workload_of
from mpq_compile.runtime.device import Device
from mpq_compile.runtime.fingerprint import kernel_hash, lowering_hash, toolchain_hash
from mpq_compile.runtime.timing import by_process
from mpq_compile.runtime.verify import settled, time_settled
from mpq_compile.types import Candidate, CostTable

if TYPE_CHECKING:
    from mpq_compile.session import Session

PROCESSES, BLOCKS = 3, 4
MIXED = 4
# Measurements further apart than this find another machine, as it were.
_OCCASION_S = 300.0
# The machine drifts by about this much between two measurements, however many blocks they have.
LEAST_ERROR = 0.01


def network_anchors(
    session: Session, costs: CostTable, store: Store, measured: bool = True, again: bool = False
) -> list[Observation]:
    """Return what whole networks take: measured once in fresh processes, and then stored.

    What is not known is built first and then timed in turns: anchors are compared with each other.
    Those of another occasion than the first have a run of their own. ``measured=False`` returns
    only those that are known; ``again`` measures once more what was taken while the device was not
    as usual.
    """
    assignments = anchor_assignments(session, costs)
    keys = {name: _key(session, name, chosen) for name, chosen in assignments.items()}
    known = store.get_many(keys.values())
    good = {key for key, value in known.items() if value.settled or not again}
    missing = [name for name in assignments if keys[name] not in good] if measured else []
    networks = build_plans(session, [session.bare_plan(assignments[name]) for name in missing])
    if networks:
        found = _timed(session.device, [network.folder for network in networks])
        rows = [(keys[name], value) for name, value in zip(missing, found, strict=True)]
        known.update(rows)
        store.put_many(rows)
    there = {name: known[key] for name, key in keys.items() if key in known}
    runs = _occasions(there)
    return [_observation(assignments[name], value, runs[name]) for name, value in there.items()]


def _timed(device: Device, folders: Sequence[Path]) -> list[Measurement]:
    """Time networks in turns, in several fresh processes: one process may be lucky throughout."""
    timings = time_settled(device, folders, BLOCKS, PROCESSES)
    measured = [measurement_of([1e3 * float(ms) for ms in row]) for row in by_process(timings)]
    # The median of processes is that of a usual one if most are.
    usual = 2 * sum(settled([timing]) for timing in timings) > len(timings)
    # The range of a few processes is no interval of 95 %, and no outlier shows among them.
    return [
        replace(value, low_us=None, high_us=None, outliers=None, settled=usual)
        for value in measured
    ]


def _occasions(measured: Mapping[str, Measurement]) -> dict[str, int]:
    """Number the occasions on which anchors were measured, the earliest first.

    Where the machine was as usual for some and not for others, those are occasions of their own.
    """
    runs: dict[str, int] = {}
    last: Measurement | None = None
    for name in sorted(measured, key=lambda name: measured[name].moment):
        value = measured[name]
        new = last is not None and (
            (value.moment - last.moment).total_seconds() > _OCCASION_S
            or value.settled != last.settled
        )
        runs[name] = max(runs.values(), default=0) + new
        last = value
    return runs


def _observation(assignment: Mapping[str, str], measured: Measurement, run: int) -> Observation:
    """Return a measured network with the standard error of its median (of normal noise)."""
    deviation = 1.25 * (measured.variance / measured.count) ** 0.5
    return Observation(
        assignment=assignment,
        latency_us=measured.median_us,
        error=max(LEAST_ERROR, deviation / measured.median_us),
        run=run,
        settled=measured.settled,
    )


def anchor_assignments(session: Session, costs: CostTable) -> dict[str, dict[str, str]]:
    """Return the assignments that are measured as whole networks, by name.

    Uniform ones by candidate, one for each set of kernels; where they have several formats, a few
    in which each site has one at random, so that it is seen what changes of format cost.
    """
    by_kernels: dict[tuple[str, ...], str] = {}
    assignments = {}
    for name in dict.fromkeys(n for choice in session.choices.values() for n in choice):
        assignment = _uniform(session, costs, name)
        kernels = tuple(
            workload_of(
                session.network, site, Candidate.parse(assignment[site.id]), session.tier
            ).key
            for site in session.network.sites
        )
        if by_kernels.setdefault(kernels, name) == name:
            assignments[name] = assignment
    uniform = list(assignments.values())
    if len({Candidate.parse(name).input_format for name in assignments}) > 1:
        for number in range(MIXED):
            assignments[f"mixed{number}"] = _mixed(session, uniform, number)
    return assignments


def _mixed(session: Session, uniform: Sequence[Mapping[str, str]], seed: int) -> dict[str, str]:
    """Return an assignment that takes each tie of sites from one of the uniform ones."""
    generator = random.Random(seed)
    ties = dict.fromkeys(site.group for site in session.network.sites)
    chosen = {tie: generator.choice(uniform) for tie in ties}
    return {site.id: chosen[site.group][site.id] for site in session.network.sites}


def _uniform(session: Session, costs: CostTable, name: str) -> dict[str, str]:
    def fastest(site: str) -> str:
        entries = costs.costs[site]
        return min(entries, key=lambda c: entries[c]["latency_us"])

    return {s: name if name in names else fastest(s) for s, names in session.choices.items()}


def _key(session: Session, name: str, assignment: dict[str, str]) -> MeasurementKey:
    others = "".join(sorted(f"{s}={c};" for s, c in assignment.items() if c != name))
    if name not in assignment.values():
        others = hashlib.sha256(others.encode()).hexdigest()[:16]
    parts = session.digest(), others, lowering_hash(), schedules_digest(session, assignment)
    return MeasurementKey(
        device=session.device.fingerprint,
        toolchain=toolchain_hash(),
        kernels=kernel_hash(),
        operator="network",
        shape="/".join(part for part in parts if part),
        candidate=name,
    )


def schedules_digest(session: Session, assignment: Mapping[str, str]) -> str:
    """Return a digest of the schedules that differ from the cost model's; empty without any."""
    sites = session.network.sites
    workloads = [
        workload_of(session.network, site, Candidate.parse(assignment[site.id]), session.tier)
        for site in sites
    ]
    named = {
        w.key: choice for w in workloads if (choice := session.costing.choice_of(w)) is not None
    }
    text = "".join(f"{key}/{choice};" for key, choice in sorted(named.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""
