"""What ``solver="auto"`` does: several metrics propose, the quantized network itself decides.

No metric ranks best on every network and at every budget, and each sees sites alone or two by
two. So each of a few proposes its optimum within the budget, the network is run on the calibration
data with every proposal, and a swarm goes on from the best one, judged by the network's own
divergence from float. No labels are needed, and nothing but the calibration data is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mpq_compile.allocate import solve_allocation
from mpq_compile.network_loss import NetworkLoss, expanded, network_black_box
from mpq_compile.progress import track
from mpq_compile.session import Session
from mpq_compile.solve.black_box import minimize_black_box
from mpq_compile.solve.problem import Solution
from mpq_compile.types import Budget, Plan

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
    first = session.solve(budget)
    loss = NetworkLoss(session)
    proposals = _proposals(session, budget)
    best = min(track(proposals, "run proposals"), key=lambda n: loss(_sites(session, proposals[n])))
    before = loss(_sites(session, proposals[best]))
    found = minimize_black_box(
        network_black_box(session, budget, loss),
        "gcpso",
        seed=session.seed,
        evaluations=evaluations,
        start=proposals[best].assignment,
    )
    plan = session.plan_for(expanded(session.allocation(), found.assignment), budget)
    if session.excess(plan, budget) > 1.0:
        # A sum over pairs says less than the prediction: the first plan was solved for both.
        return replace(first, notes=[*first.notes, "what the network prefers is predicted slower"])
    note = (
        f"proposed by {', '.join(proposals)}: {best} is best by the network's own loss, "
        f"{before:.4g}; {found.loss:.4g} after {found.evaluations} runs"
    )
    certificate = {"objective": "network", "loss": found.loss, "evaluations": found.evaluations}
    return replace(plan, solver=AUTO, certificate=certificate, notes=[*plan.notes, note])


def _proposals(session: Session, budget: Budget) -> dict[str, Solution]:
    """Return the optimum of each metric within the budget, by its name."""
    allocation = session.allocation()
    found: dict[str, Solution] = {}
    for name in dict.fromkeys((session.metric, *PROPOSERS)):
        table = session.sensitivity_by(name)
        found[name] = solve_allocation(replace(allocation, sensitivity=table), budget, "exact")
    return found


def _sites(session: Session, solution: Solution) -> Mapping[str, str]:
    return session.allocation().expand(solution)
