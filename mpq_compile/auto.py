"""What ``solver="auto"`` does: several metrics propose, the quantized network itself decides.

No metric ranks best on every network and at every budget, and each sees sites alone or two by
two. So each of a few proposes its optimum within the budget, the network is run on the calibration
data with every proposal, and a swarm goes on from the best one, judged by the network's own
divergence from float. No labels are needed, and nothing but the calibration data is seen.
"""

from __future__ import annotations

from dataclasses import replace

from mpq_compile.allocate import Allocation, solve_allocation
from mpq_compile.network_loss import NetworkLoss, improve
from mpq_compile.progress import track
from mpq_compile.session import Session
from mpq_compile.solve.problem import Solution
from mpq_compile.types import Budget, Plan, SensitivityTable

AUTO = "auto"
# What proposes beside the session's own metric.
PROPOSERS = ("kl", "gauss_newton", "sqnr", "roundoff")
# Runs over the calibration data that the swarm may take.
EVALUATIONS = 64


def plan_auto(session: Session, budget: Budget, evaluations: int = EVALUATIONS) -> Plan:
    """Return the plan of least divergence of the network itself that was found within ``budget``.

    On the calibration data it is never worse than what any of the proposing metrics leads to.

    Raises:
        InfeasibleBudgetError: No assignment is within the budget.
    """
    loss, allocation = NetworkLoss(session), session.allocation()
    proposals = _proposals(session, allocation, budget)
    losses = {
        name: loss(allocation.expand(solution))
        for name, solution in track(list(proposals.items()), "run proposals")
    }
    best = min(losses, key=losses.__getitem__)
    plan, found = improve(
        session,
        budget,
        loss,
        proposals[best],
        proof=proposals[session.metric],
        solver="gcpso",
        evaluations=evaluations,
        seed=session.seed,
    )
    if session.excess(plan, budget) > 1.0:
        # A sum over pairs says less than the prediction, which the session's solution heeds.
        first = session.solve(budget)
        return replace(first, notes=[*first.notes, "what the network prefers is predicted slower"])
    note = (
        f"proposed by {', '.join(proposals)}: {best} is best by the network's own loss, "
        f"{losses[best]:.4g}; {found.loss:.4g} after {found.evaluations} runs"
    )
    return replace(plan, solver=AUTO, notes=[*plan.notes, note])


def _proposals(session: Session, allocation: Allocation, budget: Budget) -> dict[str, Solution]:
    """Return the optimum of each metric within the budget, by its name."""
    names = dict.fromkeys((session.metric, *PROPOSERS))
    tables = {name: _table(session, name) for name in names}
    return {
        name: solve_allocation(replace(allocation, sensitivity=table), budget, "exact")
        for name, table in tables.items()
    }


def _table(session: Session, name: str) -> SensitivityTable:
    """Return the table of a metric; ``kl``'s is what ``pairwise`` has of single sites."""
    own = session.sensitivity
    if name == "kl" and own.metric == "pairwise":
        return replace(own, metric="kl", pairs={})
    return session.sensitivity_by(name)
