"""What the loop of a budget predicted and measured, kept for the report."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from mpq_compile.cost.latency import Z95, LatencyModel, Observation
from mpq_compile.errors import MpqError
from mpq_compile.runtime.history import Comparison, History, write_history
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.session import Session
from mpq_compile.types import Plan, Verification

log = logging.getLogger(__name__)


@dataclass
class Recording:
    """Whole networks of one compilation, in the order in which they were measured."""

    session: Session
    _rows: list[Comparison] = field(default_factory=list, init=False)

    def add(self, plan: Plan, seen: Verification) -> None:
        """Record a round; the first one follows what the latency model has learned from."""
        if not self._rows:
            self._rows += _anchors(self.session)
        self._rows.append(_round(plan, seen))

    def kept_in(self, network: CompiledNetwork) -> CompiledNetwork:
        """Write what was recorded beside the network's artifact, and what each of its kernels
        takes where that can be measured; return the network."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        write_history(network.folder, History(comparisons=tuple(self._rows), time=time))
        try:
            network.trace()
        except MpqError as error:
            log.info("kernels were not traced: %s", error.message)
        return network


def _round(plan: Plan, seen: Verification) -> Comparison:
    predicted = plan.predicted
    assert predicted.latency_ms is not None
    assert predicted.latency_ms_lower95 is not None and predicted.latency_ms_upper95 is not None
    return Comparison(
        kind="round",
        name=f"round {seen.rounds}",
        predicted_ms=predicted.latency_ms,
        predicted_ms_lower95=predicted.latency_ms_lower95,
        predicted_ms_upper95=predicted.latency_ms_upper95,
        measured_ms=seen.latency_ms,
        measured_ms_lower95=seen.latency_ms_lower95,
        measured_ms_upper95=seen.latency_ms_upper95,
        status=seen.status,
    )


def _anchors(session: Session) -> list[Comparison]:
    prior = session.costing.latency_prior
    return [_anchor(prior, seen) for seen in session.costing.latency.observations]


def _anchor(prior: LatencyModel, seen: Observation) -> Comparison:
    predicted = prior.predict(seen.assignment)
    low, high = predicted.interval_us
    half_width = Z95 * seen.error * seen.latency_us
    return Comparison(
        kind="anchor",
        name=_spelled(seen.assignment),
        predicted_ms=predicted.mean_us / 1e3,
        predicted_ms_lower95=low / 1e3,
        predicted_ms_upper95=high / 1e3,
        measured_ms=seen.latency_us / 1e3,
        measured_ms_lower95=max(0.0, seen.latency_us - half_width) / 1e3,
        measured_ms_upper95=(seen.latency_us + half_width) / 1e3,
    )


def _spelled(assignment: Mapping[str, str]) -> str:
    """Return ``all w8a8``, or how many sites have each candidate."""
    counts = Counter(assignment.values()).most_common()
    if len(counts) == 1:
        return f"all {counts[0][0]}"
    return ", ".join(f"{count} × {name}" for name, count in counts)
