"""Several parts of one model → one problem, one plan, one budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mpq_compile.allocate import Allocation, solve_allocation
from mpq_compile.attempts import SLACK
from mpq_compile.closed_loop import MAX_ROUNDS, learn, verified
from mpq_compile.errors import InfeasibleBudgetError, PlanError
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.session import Session
from mpq_compile.types import Budget, CostTable, Plan, Predicted, SensitivityTable, Verification


def compile_parts(
    sessions: Sequence[Session], budget: Budget, verify: bool
) -> list[CompiledNetwork]:
    """Plan, build and measure until all parts together keep the budget.

    Args:
        sessions: Of the parts, in the order in which they run.
        budget: Bounds on their sums.
        verify: Measure latency although nothing bounds it.

    Raises:
        InfeasibleBudgetError: No assignment was measured within the budget.
        PlanError: The budget needs the whole network at a time.
    """
    if budget.max_drop is not None or budget.max_loss is not None:
        raise PlanError(
            "a bound on the loss needs the whole network",
            expected="a model without graph breaks, or a budget of costs",
            found=f"{len(sessions)} parts",
            remedy="remove the graph breaks (torch.compile(fullgraph=True) shows them)",
        )
    bounded = budget.latency_ms is not None or budget.latency_p95_ms is not None
    if any(session.analytic for session in sessions) or not (verify or bounded):
        return _built(sessions, solve_parts(sessions, budget))
    return _measured(sessions, budget)


def solve_parts(sessions: Sequence[Session], budget: Budget) -> list[Plan]:
    """Return the share of each part in the plan of least loss within the budget.

    Site ids count on from part to part and groups go by the names of weights, so that tables of
    several parts are simply put together: a weight that two parts read has one candidate. Losses
    add as those of sites do; a metric that looks at outputs sees those of its part.
    """
    allocation = joined([session.allocation() for session in sessions])
    solution = solve_allocation(allocation, budget, sessions[0].solver)
    assignment = allocation.expand(solution)
    shares = [share_of(session, assignment) for session in sessions]
    return [s.plan_for(share, budget, solution) for s, share in zip(sessions, shares, strict=True)]


def _built(sessions: Sequence[Session], plans: Sequence[Plan]) -> list[CompiledNetwork]:
    return [session.build(plan) for session, plan in zip(sessions, plans, strict=True)]


def _measured(sessions: Sequence[Session], budget: Budget) -> list[CompiledNetwork]:
    aim, least = budget, math.inf
    for number in range(1, MAX_ROUNDS + 1):
        plans = [replace(plan, budget=budget.given()) for plan in solve_parts(sessions, aim)]
        networks = _built(sessions, plans)
        seen = [verified(network, {}, number) for network in networks]
        used = share_used(seen, budget)
        least = min(least, sum(v.latency_ms_upper95 for v in seen))
        if used <= 1:
            return networks
        for session, plan, found in zip(sessions, plans, seen, strict=True):
            learn(session, plan, found, budget)
        aim = aim.with_latency_scaled((1 - SLACK / 2) / used)
    raise InfeasibleBudgetError(
        f"no assignment of {len(sessions)} parts was measured within the budget "
        f"in {MAX_ROUNDS} rounds",
        expected=", ".join(f"{k}={v:g}" for k, v in budget.given().items()),
        found=f"{least:.4g} ms at the least, all parts together",
        remedy="raise the latency budget, or remove graph breaks: each part has a cost",
    )


def share_of(session: Session, assignment: Mapping[str, str]) -> dict[str, str]:
    """Return what an assignment says of one part's sites."""
    return {s.id: assignment[s.id] for s in session.network.sites if s.id in assignment}


def share_used(seen: Sequence[Verification], budget: Budget) -> float:
    """Return the largest share of a bound on latency that all parts together use.

    Upper ends of intervals are added, which is more than the upper end of the sum.
    """
    totals = {
        budget.latency_ms: sum(v.latency_ms_upper95 for v in seen),
        budget.latency_p95_ms: sum(v.latency_p95_ms_upper95 for v in seen),
    }
    return max((v / limit for limit, v in totals.items() if limit is not None), default=0.0)


def joined(allocations: Sequence[Allocation]) -> Allocation:
    """Return one allocation of all sites; what a part costs beside its sites adds up."""
    overhead: dict[str, float] = {}
    for allocation in allocations:
        for axis, value in allocation.costs.overhead.items():
            overhead[axis] = overhead.get(axis, 0.0) + value
    tables = [allocation.sensitivity for allocation in allocations]
    return Allocation(
        sites=[site for allocation in allocations for site in allocation.sites],
        choices={k: v for allocation in allocations for k, v in allocation.choices.items()},
        sensitivity=SensitivityTable(
            metric=tables[0].metric,
            unit=tables[0].unit,
            loss={site: row for table in tables for site, row in table.loss.items()},
            spread={site: row for table in tables for site, row in table.spread.items()},
            pairs={pair: terms for table in tables for pair, terms in table.pairs.items()},
        ),
        costs=CostTable(
            costs={k: v for a in allocations for k, v in a.costs.costs.items()},
            transitions={k: v for a in allocations for k, v in a.costs.transitions.items()},
            overhead=overhead,
        ),
        p95_ratio=max(allocation.p95_ratio for allocation in allocations),
    )


def joined_plan(sessions: Sequence[Session], plans: Sequence[Plan]) -> Plan:
    """Return the plan of a model from those of its parts; of one part, its own."""
    first = plans[0]
    if len(plans) == 1:
        return first
    losses = [plan.loss for plan in plans if plan.loss is not None]
    return replace(
        first,
        assignment={site: name for plan in plans for site, name in plan.assignment.items()},
        loss=sum(losses) if len(losses) == len(plans) else None,
        predicted=_predicted(sessions, [plan.predicted for plan in plans]),
        table=[row for plan in plans for row in plan.table],
        constraints={k: v for plan in plans for k, v in plan.constraints.items()},
        notes=[
            f"one plan for {len(plans)} parts of the model",
            *dict.fromkeys(note for plan in plans for note in plan.notes),
        ],
        provenance={
            **first.provenance,
            "network": "+".join(plan.provenance["network"] for plan in plans),
        },
    )


def _predicted(sessions: Sequence[Session], parts: Sequence[Predicted]) -> Predicted:
    weights = [sum(site.stored_weights for site in s.network.sites) for s in sessions]
    bits = sum(w * p.avg_bits for w, p in zip(weights, parts, strict=True))

    def total(name: str) -> float | None:
        values = [getattr(part, name) for part in parts]
        return None if None in values else sum(values)

    return Predicted(
        latency_ms=total("latency_ms"),
        latency_ms_lower95=total("latency_ms_lower95"),
        latency_ms_upper95=total("latency_ms_upper95"),
        size_bytes=sum(part.size_bytes for part in parts),
        bops=sum(part.bops for part in parts),
        avg_bits=bits / sum(weights),
        peak_activation_bytes=max(part.peak_activation_bytes for part in parts),
        energy_mj=total("energy_mj"),
    )
