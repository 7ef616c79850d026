"""Whole networks measured under uniform assignments: what the latency model is anchored on."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from mpq_compile.cost.fingerprint import device_fingerprint, kernel_hash, toolchain_hash
from mpq_compile.lock import timing_lock
from mpq_compile.cost.measurement import Measurement, MeasurementKey, utc_now
from mpq_compile.cost.store import Store
from mpq_compile.cost.table import workload_of
from mpq_compile.progress import track
from mpq_compile.runtime.threads import thread_count
from mpq_compile.runtime.timing import time_blocks
from mpq_compile.types import Candidate, CostTable

if TYPE_CHECKING:
    from mpq_compile.session import Session


def network_anchors(session: Session, costs: CostTable, store: Store) -> dict[str, float]:
    """Return the latency in µs of each uniform assignment, measured once and then stored.

    Candidates whose kernels are the same at every site share one measurement. A candidate that
    some sites cannot have is completed there by the site's own fastest.
    """
    anchors: dict[str, float] = {}
    by_kernels: dict[tuple[str, ...], str] = {}
    names = dict.fromkeys(name for choice in session.choices.values() for name in choice)
    for name in track(list(names), "profile whole networks"):
        assignment = _uniform(session, costs, name)
        kernels = tuple(
            workload_of(session.network, site, Candidate.parse(assignment[site.id])).key
            for site in session.network.sites
        )
        if kernels in by_kernels:
            continue
        by_kernels[kernels] = name
        anchors[name] = _measured(session, store, name, assignment)
    return anchors


def _uniform(session: Session, costs: CostTable, name: str) -> dict[str, str]:
    def fastest(site: str) -> str:
        entries = costs.costs[site]
        return min(entries, key=lambda c: entries[c]["latency_us"])

    return {s: name if name in names else fastest(s) for s, names in session.choices.items()}


def _measured(session: Session, store: Store, name: str, assignment: dict[str, str]) -> float:
    constraints = "".join(sorted(f"{s}={c};" for s, c in assignment.items() if c != name))
    key = MeasurementKey(
        device=device_fingerprint(tier=session.tier.name, threads=thread_count()),
        toolchain=toolchain_hash(),
        kernels=kernel_hash(),
        operator="network",
        shape=session.digest() + (f"/{constraints}" if constraints else ""),
        candidate=name,
    )
    known = store.get(key)
    if known is None:
        known = _measure(session, assignment)
        store.put(key, known)
    return known.median_us


def _measure(session: Session, assignment: dict[str, str]) -> Measurement:
    network = session.build(session.bare_plan(assignment))
    with timing_lock():
        blocks = time_blocks(network._executor, blocks=5)
    medians = [statistics.median(block) * 1e3 for block in blocks]
    return Measurement(
        count=len(medians),
        median_us=statistics.median(medians),
        mean_us=statistics.fmean(medians),
        variance=statistics.variance(medians),
        min_us=min(medians),
        clock_mhz=None,
        time=utc_now(),
    )
