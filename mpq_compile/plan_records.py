"""What a session knows of an assignment, written down as a plan."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mpq_compile import __version__
from mpq_compile.allocate import Allocation
from mpq_compile.cost.latency import Prediction
from mpq_compile.cost.table import counted_costs, fixed_bytes
from mpq_compile.passes.fixed_qparams import fixed_note
from mpq_compile.quant.calibration import Calibration
from mpq_compile.reconstruct.enough import shortage
from mpq_compile.runtime.fingerprint import kernel_hash, toolchain_hash
from mpq_compile.solve.problem import Solution
from mpq_compile.types import PLAN_VERSION, Budget, Candidate, Plan, Predicted

if TYPE_CHECKING:
    from mpq_compile.session import Session


def plan_of(
    session: Session,
    assignment: Mapping[str, str],
    budget: Budget,
    solution: Solution | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Return the plan of an assignment, with what the tables predict for it."""
    allocation = session.allocation()
    usage = allocation.usage(assignment)
    peak = max(allocation.costs.costs[s][n]["peak_bytes"] for s, n in assignment.items())
    return Plan(
        version=PLAN_VERSION,
        assignment=dict(assignment),
        loss=allocation.loss(assignment),
        predicted=_predicted(session, usage, peak, _interval(session, assignment)),
        budget=budget.given(),
        target=session.target_name,
        metric=session.metric,
        solver=solution.solver if solution else "given",
        certificate=_certificate(solution),
        table=_rows(session, assignment, allocation),
        constraints=dict(session.constraints or {}),
        notes=[
            *notes,
            *_of_data(session, assignment),
            *_estimates(session, assignment),
            *_unsettled(session),
            *_remarks(assignment, allocation),
        ],
        seed=session.seed,
        provenance=provenance_of(session),
    )


def unmeasured_plan(session: Session, assignment: Mapping[str, str]) -> Plan:
    """Return a plan without sensitivity and measured costs, for ``assign``."""
    network = session.network
    fixed = fixed_bytes(network, {site: (name,) for site, name in assignment.items()})
    totals: dict[str, float] = {"size_bytes": float(fixed)}
    peaks = []
    for site in network.sites:
        entry = counted_costs(network, site, Candidate.parse(assignment[site.id]))
        peaks.append(entry["peak_bytes"])
        for axis, value in entry.items():
            totals[axis] = totals.get(axis, 0.0) + value
    return Plan(
        version=PLAN_VERSION,
        assignment=dict(assignment),
        loss=None,
        predicted=_predicted(session, totals, max(peaks)),
        budget={},
        target=session.target_name,
        metric="none",
        solver="given",
        certificate={},
        table=[],
        constraints={},
        notes=[
            "assigned by hand: no sensitivity or latency was measured",
            *_of_data(session, assignment),
        ],
        seed=session.seed,
        provenance=provenance_of(session),
    )


def _interval(session: Session, assignment: Mapping[str, str]) -> Prediction | None:
    return None if session.analytic else session.costing.latency.predict(assignment)


def _predicted(
    session: Session,
    totals: Mapping[str, float],
    peak_bytes: float,
    latency: Prediction | None = None,
) -> Predicted:
    weights = sum(site.stored_weights for site in session.network.sites)
    latency_us = totals.get("latency_us") if latency is None else latency.mean_us
    return Predicted(
        latency_ms=None if latency_us is None else latency_us / 1e3,
        latency_ms_lower95=None if latency is None else latency.interval_us[0] / 1e3,
        latency_ms_upper95=None if latency is None else latency.interval_us[1] / 1e3,
        size_bytes=round(totals["size_bytes"]),
        bops=round(totals["bops"]),
        avg_bits=totals["weight_bits"] / weights,
        peak_activation_bytes=round(peak_bytes),
        energy_mj=totals.get("energy_mj"),
    )


def _rows(
    session: Session, assignment: Mapping[str, str], allocation: Allocation
) -> list[dict[str, Any]]:
    """Return the site × candidate table that ``mpq explain`` prints."""
    return [
        {
            "site": site.id,
            "candidate": name,
            "loss": session.sensitivity.loss[site.id][name],
            "spread": session.sensitivity.spread.get(site.id, {}).get(name),
            "latency_us": allocation.costs.costs[site.id][name]["latency_us"],
            "latency_source": _source(session, site.id, name),
            "size_bytes": allocation.costs.costs[site.id][name]["size_bytes"],
            "chosen": assignment[site.id] == name,
            "group": site.group,
        }
        for site in session.network.sites
        for name in session.choices[site.id]
    ]


def _source(session: Session, site: str, name: str) -> str:
    """Return where the latency of a site comes from."""
    if session.analytic:
        return "analytic" if session.profile.kind == "analytic" else "measured"
    return "estimated" if _is_estimated(session, site, name) else "measured"


def _is_estimated(session: Session, site: str, name: str) -> bool:
    return session.costing.measured.kernels[site][name] in session.costing.measured.estimated


def _of_data(session: Session, assignment: Mapping[str, str]) -> list[str]:
    """Say how the data was read, and whether there is enough of it."""
    methods = {"correction": session.recipe.correction, "rounding": session.recipe.rounding}
    samples = session.ranges.samples
    came_quantized = [fixed_note(session.network)] if session.network.captured.fixed else []
    return [
        *came_quantized,
        *session.data.notes,
        session.range_note(),
        *_observers(session.ranges),
        *shortage(session.network, samples, assignment, methods),
    ]


def _observers(ranges: Calibration) -> list[str]:
    """Say which observers the network's outputs chose."""
    found = [f"{name} at {bits} bits" for bits, name in sorted(ranges.chosen.items())]
    return [f"ranges of least noise at the outputs: {', '.join(found)}"] if found else []


def _estimates(session: Session, assignment: Mapping[str, str]) -> list[str]:
    """Say how many of the assignment's latencies are estimated, and how."""
    if session.analytic or not session.costing.measured.estimated:
        return []
    count = sum(_is_estimated(session, site, name) for site, name in assignment.items())
    return [
        f"the latency of {count} of {len(assignment)} sites is estimated, not measured "
        f"({session.costing.measured.estimator})"
    ]


def _unsettled(session: Session) -> list[str]:
    """Say how many of the networks that predictions rest on found the machine not as usual."""
    if session.analytic:
        return []
    seen = session.costing.latency.observations
    count = sum(not observation.settled for observation in seen)
    if not count:
        return []
    return [
        f"{count} of the {len(seen)} networks that latencies are predicted from were timed while "
        "the machine was not as usual: intervals are wide; `mpq profile` measures those again"
    ]


def provenance_of(session: Session) -> dict[str, str]:
    """Return versions and hashes that the plan depends on."""
    return {
        "mpq_compile": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "toolchain": toolchain_hash(),
        "kernels": kernel_hash(),
        "device": session.device.fingerprint,
        "reached": session.device.name,
        "network": session.digest(),
        "data": session.data.what,
        **session.recipe.provenance(),
    }


def _certificate(solution: Solution | None) -> dict[str, Any]:
    if solution is None:
        return {}
    return {
        "status": solution.status,
        "bound": solution.bound,
        "gap": solution.gap,
        "wall_s": solution.wall_s,
        **solution.certificate,
    }


def _remarks(assignment: Mapping[str, str], allocation: Allocation) -> list[str]:
    names = set(assignment.values())
    free = any(len(names) > 1 for names in allocation.choices.values())
    if len(names) == 1 and free:
        return [f"one uniform candidate dominates within this budget: all {names.pop()}"]
    return []
